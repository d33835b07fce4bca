"""The server as its clients see it: OpenAI's protocol, one batch for all, bounds, strangers, and no request that breaks it."""

import asyncio
import json
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from serving_models import LONG, ScriptedModel, app_of, make_tokenizer, random_model, served, talker
from starlette.testclient import TestClient

from jieyue.data.history import Message, alternate, fit_history
from jieyue.decoding.reply import Reply
from jieyue.decoding.sampling import Sampling
from jieyue.errors import InputError
from jieyue.hf.batched_decoding import Stepper
from jieyue.serving.answering import Reader
from jieyue.serving.batching import Batcher, Full, Job
from jieyue.serving.bounds import Bounds
from jieyue.serving.server import open_models, read_key

CHAT = "/v1/chat/completions"
BASE = "http://127.0.0.1:8000"


def body(text="hello", **more):
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **more}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def client(tokenizer):
    bounds = Bounds(body_bytes=20_000, reply_tokens=64)
    models = [
        talker(ScriptedModel(tokenizer), tokenizer, bounds, "scripted"),
        talker(random_model(tokenizer), tokenizer, bounds, "random"),
    ]
    models.append(
        Reader("reader", "read", lambda asked: {"answer": asked["passages"][0][:3], "start": 0, "end": 3}, bounds)
    )
    with TestClient(app_of(models, bounds), base_url=BASE) as found:
        yield found


def events(answer):
    lines = [line for line in answer.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_a_whole_answer(client):
    found = client.post(CHAT, json=body(model="scripted")).json()
    assert found["object"] == "chat.completion" and found["model"] == "scripted"
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello there, nice to meet you.", "refusal": None}
    assert choice["finish_reason"] == "stop"
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 4


def test_a_streamed_answer_is_the_whole_one(client):
    chunks = events(client.post(CHAT, json=body("zh", stream=True, stream_options={"include_usage": True})))
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    pieces = [c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]]
    assert "".join(pieces) == "你好，我们聊聊天气吧。" and len([p for p in pieces if p]) > 5
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]][-1] == "stop"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 5
    assert len({c["id"] for c in chunks}) == 1


def test_lengths_stops_and_choices(client):
    cut = client.post(CHAT, json=body("long", max_tokens=5)).json()
    assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["completion_tokens"] == 5
    stopped = client.post(CHAT, json=body("long", stop=[" three", "x y"])).json()["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("One two", "stop")
    many = client.post(CHAT, json=body(n=3, model="random", temperature=1, seed=1, max_tokens=12)).json()["choices"]
    assert [one["index"] for one in many] == [0, 1, 2]
    assert len({one["message"]["content"] for one in many}) == 3
    streamed = events(
        client.post(CHAT, json=body(n=3, model="random", temperature=1, seed=1, max_tokens=12, stream=True))
    )
    for choice in many:
        said = [
            c["choices"][0]["delta"].get("content", "") for c in streamed if c["choices"][0]["index"] == choice["index"]
        ]
        assert "".join(said) == choice["message"]["content"]


def test_a_seed_says_the_same_again(client):
    asked = body(model="random", temperature=1, top_k=0, max_tokens=20)
    said = [
        client.post(CHAT, json=asked | {"seed": seed}).json()["choices"][0]["message"]["content"] for seed in (4, 4, 5)
    ]
    assert said[0] == said[1] != said[2]


def test_completions_and_lists(client):
    found = client.post("/v1/completions", json={"prompt": "hello", "model": "random", "max_tokens": 4}).json()
    assert found["object"] == "text_completion" and "text" in found["choices"][0]
    chunks = events(client.post("/v1/completions", json={"prompt": ["hello"], "max_tokens": 4, "stream": True}))
    assert all(c["object"] == "text_completion" for c in chunks)
    rows = client.get("/v1/models").json()["data"]
    assert [(row["id"], row["kind"]) for row in rows] == [("scripted", "chat"), ("random", "chat"), ("reader", "read")]
    assert client.get("/v1/models/random").json()["id"] == "random"
    assert client.get("/v1/models/nobody").status_code == 404
    assert client.get("/health").json() == {"status": "ok"}


def test_reading(client):
    found = client.post("/v1/read", json={"question": "Where?", "passage": "In the hall."}).json()
    assert found == {"answer": "In ", "start": 0, "end": 3, "model": "reader"}
    for wrong in (
        {},
        {"question": "a"},
        {"question": "a", "passages": []},
        {"question": 1, "passage": "b"},
        {"question": "a", "passage": "b", "x": 1},
    ):
        assert client.post("/v1/read", json=wrong).status_code == 400
    assert client.post("/v1/title", json={"text": "a"}).status_code == 404
    assert client.post(CHAT, json=body(model="reader")).status_code == 404


def test_metrics(client):
    text = client.get("/metrics").text
    assert 'jieyue_reply_tokens_total{model="scripted"}' in text and "jieyue_first_token_seconds_bucket" in text
    assert client.get("/secret-name").status_code == 404
    assert "secret-name" not in client.get("/metrics").text
    for line in text.splitlines():
        assert line.startswith("# ") or float(line.rsplit(" ", 1)[1]) >= 0


WRONG = [
    (400, b"", "JSON"),
    (400, b"[1]", "object"),
    (400, b'{"messages": "hi"}', "messages"),
    (400, b"\xff\xfe", "UTF-8"),
    (400, b'{"a": NaN}', "NaN"),
    (400, b"[" * 1000, "the body is"),  # nested too deeply, or not JSON: how deep Python reads differs by version
    (400, b"[" * 1000 + b"]" * 1000, "the body is"),
    (400, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
    (400, {"messages": []}, "messages"),
    (400, {"messages": ["hi"]}, "messages[0]"),
    (400, {"messages": [{"role": "wizard", "content": "a"}]}, "wizard"),
    (400, {"messages": [{"role": "user", "content": ""}]}, "content"),
    (400, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not text"),
    (400, body(temperature="hot"), "temperature"),
    (400, body(temperature=3), "temperature"),
    (400, body(temperature=True), "temperature"),
    (400, body(top_p=1.5), "top_p"),
    (400, body(n=0), "'n'"),
    (400, body(n=99), "'n'"),
    (400, body(n=1.5), "'n'"),
    (400, body(max_tokens=0), "max_tokens"),
    (400, body(seed=2**70), "seed"),
    (400, body(stop=["a"] * 5), "stop"),
    (400, body(stop=""), "stop"),
    (400, body(stream="yes"), "stream"),
    (400, body(stream_options={}), "stream_options"),
    (400, body(tools=[{"type": "function"}]), "tools"),
    (400, body(frobnicate=1), "frobnicate"),
    (400, body(logit_bias={"5": 1}), "logit_bias"),
    (400, body(top_k=-2), "top_k"),
    (400, body(max_tokens=-2), "max_tokens"),
    (400, body(logprobs=1), "logprobs"),
    (400, body(top_logprobs=2), "top_logprobs"),
    (400, body(logprobs=True, top_logprobs=21), "top_logprobs"),
    (400, body(frequency_penalty=2.1), "frequency_penalty"),
    (400, body(presence_penalty=-3), "presence_penalty"),
    (400, {"messages": [{"role": "system", "content": "a"}]}, "system's"),
    (400, {"messages": [{"role": "assistant", "content": ""}]}, "nothing is said"),
    (400, {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    (400, {"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]}, "tool_calls"),
    (400, {"messages": [{"role": "user", "content": "a", "colour": 1}]}, "colour"),
    (400, body(generation_config="{"), "generation_config"),
    (404, body(model="../../etc/passwd"), "no model"),
    (400, body(model=3), "model"),
    (413, body("hello " * 600), "tokens"),
    (413, body("x" * 30_000), "bytes"),
    (413, {"messages": [{"role": "user", "content": "a"}] * 2001}, "bytes"),
]


@pytest.mark.parametrize(("status", "asked", "said"), WRONG, ids=range(len(WRONG)))
def test_mistakes_have_openais_shape(client, status, asked, said):
    raw = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    answer = client.post(CHAT, content=raw)
    error = answer.json()["error"]
    assert (answer.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert said in error["message"]


def test_what_asks_for_nothing_is_let_through(client):
    nothing = {
        "frobnicate": None,
        "metadata": {"a": 1},
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "logit_bias": {},
        "logprobs": False,
        "tools": [],
        "user": "me",
    }
    found = client.post(CHAT, json=body(**nothing, response_format={"type": "text"}, store=False))
    ignored = "frobnicate, metadata, logit_bias, tools, response_format, store"
    assert found.status_code == 200 and found.headers["x-jieyue-ignored"] == ignored
    streamed = client.post(CHAT, json=body(metadata={}, stream=True))
    assert streamed.headers["x-jieyue-ignored"] == "metadata"
    assert "x-jieyue-ignored" not in client.post(CHAT, json=body()).headers
    assert client.post(CHAT, json=body(top_p=0)).status_code == 200


def test_no_limit_and_too_much_are_understood(client):
    """-1 is no limit; a reply longer than the bound is asked for in vain, and that is told."""
    assert client.post(CHAT, json=body(top_k=-1)).status_code == 200
    for most, clamped in ((-1, None), (10**9, "max_tokens=64"), (64, None)):
        found = client.post(CHAT, json=body("long", max_tokens=most))
        assert found.status_code == 200 and found.json()["usage"]["completion_tokens"] == 64
        assert found.headers.get("x-jieyue-clamped") == clamped


def test_an_empty_reply_may_be_sent_back(client):
    for content in ("", None, [], [{"type": "text", "text": ""}]):
        said = [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": content, "refusal": None, "tool_calls": None},
            {"role": "user", "content": "zh"},
        ]
        found = client.post(CHAT, json={"messages": said, "temperature": 0})
        assert found.status_code == 200, found.text
        assert found.json()["choices"][0]["message"]["content"] == "你好，我们聊聊天气吧。"


def test_several_system_messages_are_one(tokenizer):
    from jieyue.serving.requests import parse_chat

    listed = [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": "hello"},
        {"role": "system", "content": "Now be long."},
        {"role": "user", "content": "hello"},
    ]
    found = parse_chat({"messages": listed}, Bounds()).messages
    assert [(one.role, one.text) for one in found[:2]] == [("system", "Be kind.\n\nBe short."), ("user", "hello")]
    assert [one.role for one in found] == ["system", "user", "system", "user"]


def test_the_assistants_last_message_is_continued(client):
    """The beginning of a reply sent back is gone on with, the first space included, whole and streamed."""
    for beginning in ("One two", "One two three four"):
        said = {"role": "assistant", "content": beginning}
        asked = {"messages": [*body("long")["messages"], said], "temperature": 0, "max_tokens": 30}
        more = client.post(CHAT, json=asked).json()["choices"][0]["message"]["content"]
        assert more.startswith(" ") and LONG.startswith(beginning + more)
        streamed = events(client.post(CHAT, json=asked | {"stream": True}))
        assert "".join(one["choices"][0]["delta"].get("content", "") for one in streamed) == more


def test_log_probabilities_are_the_models(tokenizer, monkeypatch):
    """Against one pass over the whole talk in float64; streamed they are the same."""
    import torch

    from jieyue.serving.chat_model import ChatModel

    model, talks, talk = random_model(tokenizer), [], ChatModel.talk

    async def overheard(self, asked):
        talks.append(await talk(self, asked))
        return talks[-1]

    monkeypatch.setattr(ChatModel, "talk", overheard)
    with TestClient(app_of([talker(model, tokenizer)]), base_url=BASE) as client:
        asked = body("hello", logprobs=True, top_logprobs=3, temperature=1, seed=2, max_tokens=9, frequency_penalty=1)
        told = client.post(CHAT, json=asked).json()["choices"][0]["logprobs"]["content"]
        (job,) = talks[0].jobs
        streamed = events(client.post(CHAT, json=asked | {"stream": True}))
        pieces = [one["choices"][0].get("logprobs") for one in streamed]
        assert [one for piece in pieces if piece for one in piece["content"]] == told
        said = [token for token in job.reply.ids if token not in job.reply.ends]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*job.prompt, *said]])).logits[0, len(job.prompt) - 1 :]
        for row, token, one in zip(logits.log_softmax(-1), said, told, strict=False):
            assert one["token"] == tokenizer.decode([token]) and bytes(one["bytes"]).decode() == one["token"]
            assert one["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
            values, tokens = row.topk(3)
            assert [each["token"] for each in one["top_logprobs"]] == [tokenizer.decode([each]) for each in tokens]
            assert [each["logprob"] for each in one["top_logprobs"]] == pytest.approx(values.tolist(), abs=1e-4)
        assert len(told) == len(said) > 3
        text = client.post("/v1/completions", json={"prompt": "hello", "logprobs": 2, "max_tokens": 4}).json()
        found = text["choices"][0]["logprobs"]
        assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["text_offset"]) <= 4
        assert client.post(CHAT, json=body()).json()["choices"][0]["logprobs"] is None


def test_what_transformers_chat_sends_is_understood(client):
    config = json.dumps({"do_sample": False, "max_new_tokens": 3, "transformers_version": "5"})
    asked = {"messages": body("long")["messages"], "generation_config": config}
    found = client.post(CHAT, json=asked)
    assert (
        found.json()["usage"]["completion_tokens"] == 3 and "generation_config.t" in found.headers["x-jieyue-ignored"]
    )


def test_a_model_that_is_there_is_ready_and_no_other_is_loaded(client):
    """What ``transformers chat`` asks first."""
    found = client.post("/load_model", json={"model": "random"})
    assert found.text == 'data: {"status": "ready", "model": "random", "cached": true}\n\n'
    for wrong, status in (({"model": "../etc"}, 404), ({"model": "reader"}, 404), ({}, 400), ({"model": 1}, 400)):
        assert client.post("/load_model", json=wrong).status_code == status


def test_methods_paths_and_headers(client):
    wrong = client.get(CHAT)
    assert wrong.status_code == 405 and "error" in wrong.json() and wrong.headers["allow"] == "POST"
    wrong = client.post("/health")
    assert wrong.status_code == 405 and set(wrong.headers["allow"].split(", ")) == {"GET", "HEAD"}
    for path in ("/", "/health", "/metrics", "/v1/models", "/v1/models/random"):
        found = client.head(path)
        assert found.status_code == 200 and found.content == b"", path
    for path in ("/docs", "/reset", "/../etc/passwd", "/v1/%00", "/title"):
        answer = client.get(path)
        assert answer.status_code == 404 and "error" in answer.json(), path
    page = client.get("/")
    assert page.status_code == 200 and "script-src 'sha256-" in page.headers["content-security-policy"]
    for answer in (page, client.get("/health"), client.get("/nowhere")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.options(CHAT, headers={"origin": BASE}).status_code == 405


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1:9999"}, 403),
        ({"host": "localhost:8000"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:8000"}, 200),
        ({"origin": "http://127.0.0.1:8000.evil.example"}, 403),
        ({"origin": "http://evil.example://127.0.0.1:8000"}, 403),
        ({"origin": "ftp://127.0.0.1:8000"}, 403),
        ({"origin": "http://127.0.0.1:8000/"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "cross-site", "origin": "http://localhost:8000"}, 403),
    ],
)
def test_strangers_are_refused(client, headers, status):
    for path in ("/", "/health", "/v1/models"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == status
        if status == 403:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            assert "--allow-host" in answer.text or "--allow-origin" in answer.text


def test_a_link_may_lead_to_a_page_and_nowhere_else(client):
    follows = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=follows).status_code == 200
    assert client.get("/v1/models", headers=follows).status_code == 403


def test_an_origin_is_allowed_by_name(tokenizer):
    from jieyue.serving.guard import allowed_origins

    key, site = "0123456789abcdef", "https://app.example"
    origins = allowed_origins([site + "/"], key)
    asks = {
        "origin": site,
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-a, authorization",
    }
    with TestClient(
        app_of([talker(ScriptedModel(tokenizer), tokenizer)], key=key, origins=origins), base_url=BASE
    ) as client:
        before = client.options(CHAT, headers=asks)
        assert before.status_code == 204 and before.headers["access-control-allow-origin"] == site
        assert before.headers["access-control-allow-headers"] == "x-a, authorization"
        sent = {"origin": site, "sec-fetch-site": "cross-site", "authorization": f"Bearer {key}"}
        found = client.post(CHAT, json=body(), headers=sent)
        assert found.status_code == 200 and found.headers["access-control-allow-origin"] == site
        assert found.headers["vary"] == "origin"
        refused = client.post(CHAT, json=body(), headers=sent | {"authorization": "Bearer no"})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == site
        for other in ("http://app.example", "https://app.example:444", "https://xapp.example", "null"):
            wrong = client.options(CHAT, headers=asks | {"origin": other})
            assert wrong.status_code == 403 and "access-control-allow-origin" not in wrong.headers
    with TestClient(
        app_of([talker(ScriptedModel(tokenizer), tokenizer)], origins=allowed_origins(["*"], None)), base_url=BASE
    ) as client:
        assert (
            client.get("/v1/models", headers={"origin": "https://any.example"}).headers["access-control-allow-origin"]
            == "*"
        )
    for wrong in (["*"], ["app.example"], ["https://app.example/path"], ["null"]):
        with pytest.raises(InputError, match="allow-origin"):
            allowed_origins(wrong, key)


def test_a_key_is_asked_for_and_compared(tokenizer, tmp_path, monkeypatch):
    import hmac

    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr("jieyue.serving.guard.hmac.compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    (tmp_path / "key").write_text("0123456789abcdef\n")
    app = app_of([talker(ScriptedModel(tokenizer), tokenizer)], key=read_key(tmp_path / "key"))
    with TestClient(app, base_url=BASE) as client:
        for given in (None, "Bearer wrong", "Basic 0123456789abcdef", "Bearer", "Bearer é"):
            headers = {} if given is None else {"authorization": given.encode("latin-1")}
            assert client.get("/v1/models", headers=headers).status_code == 401
            assert client.get("/metrics", headers=headers).status_code == 401
        assert client.get("/v1/models", headers={"authorization": "Bearer 0123456789abcdef"}).status_code == 200
        assert client.get("/").status_code == client.get("/health").status_code == 200
    assert compared
    for wrong in ("short", "0123456789 abcdef", "0123456789abcdé"):
        (tmp_path / "key").write_text(wrong)
        with pytest.raises(InputError, match="api-key-file"):
            read_key(tmp_path / "key")
    with pytest.raises(InputError, match="api-key-file"):
        read_key(tmp_path / "absent")


def alone(model, tokenizer, text, tokens=24):
    """The oracle: greedy, the whole talk in one pass for every token."""
    import torch

    ids = fit_history(tokenizer, [Message("user", text)], 200).ids.tolist()
    said = []
    while len(said) < tokens:
        with torch.no_grad():
            said.append(int(model(input_ids=torch.tensor([[*ids, *said]]), use_cache=False).logits[0, -1].argmax()))
        if said[-1] == tokenizer.sep_token_id:
            break
    return tokenizer.decode([one for one in said if one != tokenizer.sep_token_id], skip_special_tokens=True)


@pytest.mark.parametrize("attention", [None, "local(4)"])
def test_many_at_once_hear_what_each_would_alone(tokenizer, attention):
    from jieyue.hf.use import use

    model = random_model(tokenizer)
    expected = {
        text: alone(model, tokenizer, text) for text in ("hello", "说点什么", "be kind", "a question", "user", "h")
    }
    if attention:
        use(model, attention=attention)
        expected = {text: alone(model, tokenizer, text) for text in expected}
    with TestClient(app_of([talker(model, tokenizer)]), base_url=BASE) as client:
        found = {}

        def ask(text, wait):
            time.sleep(wait)
            found[text] = client.post(CHAT, json=body(text, max_tokens=24)).json()["choices"][0]["message"]["content"]

        threads = [threading.Thread(target=ask, args=(text, 0.01 * n)) for n, text in enumerate(expected)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {text: "".join(said.split()) for text, said in found.items()} == {
        t: "".join(s.split()) for t, s in expected.items()
    }


def test_the_state_of_a_turn_serves_the_next(tokenizer):
    model = random_model(tokenizer)
    with TestClient(app_of([one := talker(model, tokenizer)]), base_url=BASE) as client:
        turns = [{"role": "user", "content": "hello there"}]
        for _ in range(3):
            found = client.post(CHAT, json={"messages": turns, "temperature": 0, "max_tokens": 12}).json()
            fresh = Batcher(model, kept_bytes=0)
            said = []
            ids = fit_history(tokenizer, [Message(t["role"], t["content"]) for t in turns], 200).ids.tolist()
            done = threading.Event()
            reply = Reply(Sampling(temperature=0), ids, ends=one.ends, decode=one.decode, max_tokens=12)
            fresh.submit(
                Job(ids, reply, lambda s, said=said, done=done: (said.append(s.text), s.finish and done.set()))
            )
            assert done.wait(20)
            fresh.stop()
            content = found["choices"][0]["message"]["content"]
            assert content == "".join(said)
            turns += [{"role": "assistant", "content": content or "hm"}, {"role": "user", "content": "and then?"}]
        assert one.batcher.reused_tokens > 10


def test_a_client_that_leaves_is_let_go(tokenizer):
    import httpx2

    one = talker(ScriptedModel(tokenizer, seconds=0.02), tokenizer)
    with served([one]) as address:
        with httpx2.stream("POST", address + CHAT, json=body("long", stream=True)) as answer:
            for line in answer.iter_lines():
                if "three" in line:
                    break
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(address + CHAT, json=body("long"), timeout=0.3)
        deadline = time.time() + 5
        while time.time() < deadline and (one.batcher.cancelled < 2 or one.batcher.num_active):
            time.sleep(0.02)
        assert one.batcher.cancelled == 2 and one.batcher.num_active == 0
        assert one.batcher.reply_tokens < 100


def test_too_many_wait(tokenizer):
    bounds = Bounds(waiting=1, rows=1)
    one = talker(ScriptedModel(tokenizer, seconds=0.004), tokenizer, bounds)
    with TestClient(app_of([one], bounds), base_url=BASE) as client:
        statuses = []
        threads = [
            threading.Thread(target=lambda: statuses.append(client.post(CHAT, json=body("long"))), args=())
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.03)
        for thread in threads:
            thread.join()
        found = sorted(answer.status_code for answer in statuses)
        assert found == [200, 200, 429, 429]
        busy = next(answer for answer in statuses if answer.status_code == 429)
        assert busy.headers["retry-after"] == "1" and busy.json()["error"]["type"] == "rate_limit_error"


def test_stopping_finishes_what_was_begun(tokenizer):
    one = talker(ScriptedModel(tokenizer, seconds=0.005), tokenizer)
    heard = []
    ids = fit_history(tokenizer, alternate(["long"]), 200).ids.tolist()
    reply = Reply(Sampling(temperature=0), ids, ends=one.ends, decode=one.decode, max_tokens=100)
    one.batcher.submit(Job(ids, reply, heard.append))
    while not heard:
        time.sleep(0.01)
    one.stop()
    assert heard[-1].finish == "length" and len(reply.ids) == 100
    with pytest.raises(Full):
        one.batcher.submit(Job(ids, reply, heard.append))


def test_a_step_that_fails_is_told(tokenizer, monkeypatch):
    one = talker(ScriptedModel(tokenizer), tokenizer)
    monkeypatch.setattr(Stepper, "step", lambda *_: 1 / 0)
    with TestClient(app_of([one]), base_url=BASE) as client:
        answer = client.post(CHAT, json=body())
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "unfinished"
        monkeypatch.undo()
        assert client.post(CHAT, json=body()).status_code == 200


def test_slow_and_chunked_bodies_are_bounded(tokenizer):
    """A body without Content-Length is counted as it comes; one that never ends is given up."""
    bounds = Bounds(body_bytes=100, seconds=0.2)
    app = app_of([talker(ScriptedModel(tokenizer), tokenizer, bounds)], bounds)

    async def status(parts, last):
        sent = []

        async def receive():
            if parts:
                return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts) or not last}
            await asyncio.sleep(60)

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "headers": [(b"host", b"localhost:8000")],
            "query_string": b"",
        }
        await app(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(status([b"a" * 60, b"b" * 60], True)) == 413
    assert asyncio.run(status([b"a"], False)) == 408


WORDS = "messages role content user assistant system model scripted random n stream stop seed temperature top_p top_k max_tokens "
WORDS += "prompt stream_options include_usage type text question"
words = st.sampled_from(WORDS.split())
leaves = st.none() | st.booleans() | st.integers(-3, 70) | st.integers() | st.floats() | st.text(max_size=8) | words
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant"]) | leaves, "content": st.text(max_size=20) | values}
)
requests = st.fixed_dictionaries(
    {"messages": st.lists(message, max_size=4) | values, "max_tokens": st.just(3) | values},
    optional=dict.fromkeys(
        ("model", "n", "stream", "stop", "seed", "temperature", "top_p", "top_k", "min_p", "stream_options"), values
    )
    | {"prompt": values, "question": values, "passages": values},
)


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(asked=requests | values | st.binary(max_size=60), path=st.sampled_from([CHAT, "/v1/completions", "/v1/read"]))
def test_no_request_breaks_the_server(client, asked, path):
    raw = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    answer = client.post(path, content=raw)
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=60)
@given(
    path=st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#"), max_size=20),
    header=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
)
def test_no_path_or_header_breaks_the_server(client, path, header):
    for name in ("content-type", "authorization", "accept", "origin"):
        answer = client.get("/" + path.lstrip("/"), headers={name: header.strip()})
        assert answer.status_code < 500


def test_folders_are_named_once(tmp_path):
    for folders in ([], [tmp_path / "a", tmp_path / "b" / "a"]):
        with pytest.raises(InputError, match="serve"):
            open_models(folders)


def test_openais_own_client(tokenizer):
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    with served([talker(ScriptedModel(tokenizer), tokenizer)], key="0123456789abcdef") as address:
        api = openai.OpenAI(base_url=address + "/v1", api_key="0123456789abcdef", max_retries=0)
        asked = {"model": "small", "messages": [{"role": "user", "content": "zh"}], "temperature": 0}
        assert api.chat.completions.create(**asked).choices[0].message.content == "你好，我们聊聊天气吧。"
        pieces = [c.choices[0].delta.content or "" for c in api.chat.completions.create(**asked, stream=True)]
        assert "".join(pieces) == "你好，我们聊聊天气吧。"
        assert [one.id for one in api.models.list()] == ["small"]
        assert api.completions.create(model="small", prompt="long", max_tokens=4).usage.completion_tokens == 4
        with pytest.raises(openai.BadRequestError, match="tools"):
            api.chat.completions.create(**asked, tools=[{"type": "function", "function": {"name": "f"}}])
        with pytest.raises(openai.NotFoundError):
            api.chat.completions.create(**(asked | {"model": "big"}))
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=address + "/v1", api_key="wrong", max_retries=0).models.list()


def test_long_talks_lose_whole_turns(client):
    turns = [{"role": role, "content": LONG[:200]} for role in ("user", "assistant") * 6]
    found = client.post(CHAT, json={"messages": [*turns, {"role": "user", "content": "hello"}], "max_tokens": 8}).json()
    assert found["usage"]["dropped_turns"] >= 4
    assert found["usage"]["prompt_tokens"] <= 248


def test_folders_are_served_by_what_they_are(tokenizer, tmp_path, monkeypatch):
    """A folder's record names its recipe; a title model answers /v1/title, anything that does not write is refused."""
    from types import SimpleNamespace

    from jieyue.hf.loading import save

    save(random_model(tokenizer), tokenizer, tmp_path / "writer", {"recipe": "chat", "settings": {}})
    save(random_model(tokenizer), tokenizer, tmp_path / "titler", {"recipe": "title", "settings": {"kind": "causal"}})
    save(random_model(tokenizer), tokenizer, tmp_path / "other", {"recipe": "dance", "settings": {}})
    monkeypatch.setattr(
        "jieyue.serving.server.write_titles",
        lambda model, tokenizer, texts, settings: [
            SimpleNamespace(text=texts[0][:4], log_probability=-1.23456, finished=True)
        ],
    )
    models = open_models([tmp_path / "writer", tmp_path / "titler"])
    assert [(one.name, one.kind) for one in models] == [("writer", "chat"), ("titler", "title")]
    with TestClient(app_of(models), base_url=BASE) as client:
        found = client.post("/v1/title", json={"text": "hello there"}).json()
        assert (found["title"], found["log_probability"], found["model"]) == ("hell", -1.2346, "titler")
        assert client.post("/v1/title", json={"text": ""}).status_code == 400
        assert client.get("/title").status_code == client.get("/").status_code == 200
        assert client.get("/read").status_code == 404
        assert client.post(CHAT, json=body(max_tokens=2)).status_code == 200
    with pytest.raises(InputError, match="dance"):
        open_models([tmp_path / "other"])


def test_vendored_libraries_are_what_they_are_said_to_be():
    import hashlib
    from importlib.resources import files

    folder = files("jieyue.serving") / "pages" / "vendor"
    told = [
        line.split("|")[1:5] for line in (folder / "README.md").read_text("utf-8").splitlines() if ".min.js |" in line
    ]
    assert len(told) == 2
    for name, _, _, digest in told:
        assert hashlib.sha256((folder / name.strip()).read_bytes()).hexdigest() == digest.strip()


def test_the_schema_describes_every_endpoint(client):
    found = client.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/read", "/v1/models", "/health"} <= set(found["paths"])
    assert "/v1/title" not in found["paths"] and found["openapi"].startswith("3.1")
    asked = found["components"]["schemas"]["ChatBody"]["properties"]
    assert {"messages", "temperature", "logprobs", "frequency_penalty"} <= set(asked)
    named = json.dumps(found).split('"$ref": "#/components/schemas/')[1:]
    assert {one.split('"')[0] for one in named} <= set(found["components"]["schemas"])


@pytest.mark.slow
def test_a_trained_classifier_is_served(tmp_path):
    from test_cli import jieyue

    folder = tmp_path / "judge"
    done = jieyue(
        "train", "classify", "--steps", "2", "--limit", "60", "--budget", "2GiB", "--out", folder, savings=False
    )
    assert done.returncode == 0, done.stderr
    with TestClient(app_of(open_models([folder])), base_url=BASE) as client:
        found = client.post("/v1/classify", json={"texts": ["One text.", "另一段文字。"]}).json()
        assert found["model"] == "judge" and len(found["answers"]) == 2
        for answer in found["answers"]:
            first = answer["labels"][0]
            assert (answer["label"], answer["confidence"]) == (first["label"], first["probability"])
            shares = [one["probability"] for one in answer["labels"]]
            assert shares == sorted(shares, reverse=True) and 0 < sum(shares) < 1.01
        alone = client.post("/v1/classify", json={"text": "One text."}).json()["answers"]
        assert alone[0]["label"] == found["answers"][0]["label"]
        for wrong in (
            {},
            {"text": ""},
            {"texts": []},
            {"text": "a", "texts": ["b"]},
            {"text": "a", "x": 1},
            {"texts": [1]},
        ):
            assert client.post("/v1/classify", json=wrong).status_code == 400
        assert "ClassifyAnswer" in client.get("/openapi.json").text and client.get("/classify").status_code == 200
