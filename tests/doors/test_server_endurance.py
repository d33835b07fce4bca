"""The server in the long run: ten minutes of 32 clients, and a hundred thousand requests that are nearly right. Slow."""

import asyncio
import copy
import http.client
import json
import os
import random
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from serving_models import ScriptedModel, app_of, make_tokenizer, random_model, served, talker

from jieyue.machine import resident_bytes
from jieyue.serving.answering import Reader
from jieyue.serving.bounds import Bounds

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
FUZZ_REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "100000"))
GROWN = 96 * 2**20  # bytes that the process may hold more at the end than when it was warm

CHAT = {
    "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "zh"}]},
    ],
    **{
        "model": "small",
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 1,
        "n": 1,
    },
    **{"stop": ["x"], "stream": False, "stream_options": None, "logprobs": True, "top_logprobs": 2, "user": "me"},
    **{"frequency_penalty": 0.5, "presence_penalty": 0.5, "repetition_penalty": 1.1, "no_repeat_ngram_size": 2},
    "generation_config": '{"do_sample": false}',
}
TEXT = {"prompt": "hello", "max_tokens": 2, "logprobs": 2, "echo": False}
READ = {"question": "where", "passages": ["here", "there"]}
CLASSIFY = {"texts": ["good", "bad"]}
BODIES = {"/v1/chat/completions": CHAT, "/v1/completions": TEXT, "/v1/read": READ, "/v1/classify": CLASSIFY}
LEAVES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    -2,
    2,
    2.5,
    1e308,
    1e400,
    float("nan"),
    10**30,
    "",
    " ",
    "a",
    "\ud800",
    "é😀",
    "\x00",
]
LEAVES += [[], {}, [[]], [None], {"a": {"b": []}}, "user", "text", "hello " * 300, ["x"] * 9, "[SEP]", "{{ 1 }}"]


def places(value):
    """Every (container, key) in a body."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from places(inner)


def mutated(body, draw):
    body = copy.deepcopy(body)
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3, 5])):
        found = list(places(body))
        if not found:
            break
        inside, key = draw.choice(found)
        kind = draw.random()
        if kind < 0.6:
            inside[key] = copy.deepcopy(draw.choice(LEAVES))
        elif kind < 0.75:
            del inside[key]
        elif isinstance(inside, dict):
            inside[draw.choice(["x", "content", "role", "model", "tools", "\ud800", "a b\r\nc", "n"])] = draw.choice(
                LEAVES
            )
        else:
            inside.append(copy.deepcopy(draw.choice(LEAVES)))
    raw = json.dumps(body).encode()
    if draw.random() < 0.1:
        at = draw.randrange(len(raw) + 1)
        raw = raw[:at] + draw.randbytes(draw.randrange(4)) + raw[at + draw.randrange(3) :]
    return raw


async def answered(app, path, raw, headers=()):
    """Status and body of one request, straight through the application."""
    sent, given = [], [{"type": "http.request", "body": raw, "more_body": False}]

    async def receive():
        if given:
            return given.pop()
        await asyncio.sleep(3600)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [(b"host", b"localhost:8000"), *headers], "client": ("127.0.0.1", 1), "http_version": "1.1"}
    await asyncio.wait_for(app(scope, receive, send), 60)
    return sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:])


def fuzzed(number, seed):
    tokenizer = make_tokenizer()
    bounds = Bounds(body_bytes=20_000, reply_tokens=4)
    models = [talker(ScriptedModel(tokenizer), tokenizer, bounds)]
    models.append(Reader("reader", "read", lambda asked: {"answer": asked["passages"][0]}, bounds))
    models.append(
        Reader("judge", "classify", lambda asked: {"answers": [{"label": "a"} for _ in asked["texts"]]}, bounds)
    )
    app, draw, statuses, memory = app_of(models, bounds), random.Random(seed), {}, []

    async def all_of_them():
        for done in range(number):
            path = draw.choice(list(BODIES))
            raw = mutated(BODIES[path], draw)
            status, body = await answered(app, path, raw)
            assert status < 500, (path, raw, body)
            if status != 200:
                assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}, (path, raw, body)
            statuses[status] = statuses.get(status, 0) + 1
            if done % max(1, number // 10) == 0:
                memory.append(resident_bytes())

    asyncio.run(all_of_them())
    for model in models:
        model.stop()
    return statuses, memory


def test_a_thousand_nearly_right_requests():
    statuses, _ = fuzzed(1000, 7)
    assert {200, 400} <= set(statuses) and min(statuses[200], statuses[400]) > 100


@pytest.mark.slow
def test_a_hundred_thousand_nearly_right_requests():
    statuses, memory = fuzzed(FUZZ_REQUESTS, 11)
    assert {200, 400} <= set(statuses)
    assert memory[-1] - memory[len(memory) // 5] < GROWN, memory


@pytest.mark.slow
def test_ten_minutes_of_32_clients():
    """Talks that go on, streams, clients that leave in the middle, silent sockets: no error, and memory stays flat."""
    tokenizer = make_tokenizer()
    one = talker(random_model(tokenizer).float(), tokenizer, Bounds())
    troubles, replies, memory = [], [0], []
    ends = time.monotonic() + SOAK_SECONDS

    def client(number, address):
        draw, host = random.Random(number), address.removeprefix("http://")
        messages = []
        while time.monotonic() < ends and not troubles:
            try:
                messages = [*messages, {"role": "user", "content": draw.choice(["hello", "说点什么", "a question"])}]
                body = {"messages": messages, "stream": draw.random() < 0.7, "max_tokens": draw.randrange(1, 40)}
                link = http.client.HTTPConnection(host, timeout=60)
                link.request("POST", "/v1/chat/completions", json.dumps(body))
                answer = link.getresponse()
                assert answer.status == 200, answer.read()
                if draw.random() < 0.1:
                    answer.read(20)
                    link.close()
                    continue
                text = answer.read().decode()
                link.close()
                said = text if not body["stream"] else ""
                assert not body["stream"] or text.endswith("data: [DONE]\n\n"), text[-200:]
                replies[0] += 1
                content = json.loads(said)["choices"][0]["message"]["content"] if said else "hm"
                messages = [*messages, {"role": "assistant", "content": content}] if len(messages) < 12 else []
            except Exception as error:
                troubles.append(repr(error))

    with served([one]) as address:
        threads = [threading.Thread(target=client, args=(number, address)) for number in range(32)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            memory.append(resident_bytes())
            time.sleep(min(5, SOAK_SECONDS / 20))
    assert troubles == [] and replies[0] > SOAK_SECONDS
    assert one.batcher.failed == 0
    kept = one.batcher.kept_bytes
    assert memory[-1] - memory[len(memory) // 5] < GROWN + kept, memory[:: max(1, len(memory) // 10)]
