"""NEZHA as a dialogue model, the article's: trained by the recipe, saved, loaded, talked to, served; cached = uncached."""

import json

import pytest
import torch
from fastapi.testclient import TestClient
from serving_models import app_of
from test_cli import jieyue

from jieyue.data.corpora.everyday import compose_talks
from jieyue.data.history import Message, encode_talks
from jieyue.decoding.sampling import Sampling
from jieyue.hf.loading import load, read_record
from jieyue.hf.nezha import NezhaConfig, NezhaForCausalLM, NezhaForMaskedLM
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.run.conversation import Conversation
from jieyue.run.waterfall import Step, Waterfall
from jieyue.serving.server import open_models

TALKS = compose_talks(0, 60)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A masked LM as checkpoints of NEZHA are."""
    folder = tmp_path_factory.mktemp("nezha") / "start"
    tokenizer = make_tokenizer(learn_vocabulary([one.text for talk in TALKS for one in talk]))
    torch.manual_seed(0)
    config = NezhaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_relative_position=16, initializer_range=0.2, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        eos_token_id=None, sep_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    NezhaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory):
    out = tmp_path_factory.mktemp("nezha") / "talker"
    data, few = out.parent / "talks.jsonl", out.parent / "few.jsonl"
    lines = [json.dumps([one.text for one in talk]) for talk in TALKS]
    data.write_text("\n".join(lines), encoding="utf-8")
    few.write_text("\n".join(lines[:3]), encoding="utf-8")
    flags = ["--steps", "2", "--max-tokens", "48", "--effective-batch", "4", "--budget", "3GiB"]
    with pytest.MonkeyPatch.context() as patch:
        left_out = Waterfall(
            steps=(Step(added="left out", update="exact", predicted_bytes=1),), effective_batch=4, positions=48
        )
        patch.setattr("jieyue.run.jobs.savings", lambda *_: left_out)
        done = jieyue("train", "chat", "--model", start, "--data", data, "--held-out", few, "--out", out, *flags)
    assert done.returncode == 0, done.stderr
    return out


def test_the_folder_is_a_causal_nezha(start, trained):
    model, tokenizer = load(trained, "causal-lm")
    assert isinstance(model, NezhaForCausalLM) and read_record(trained)["recipe"] == "chat"
    assert model.config.sep_token_id == tokenizer.sep_token_id == model.generation_config.eos_token_id
    before = load(start)[0].state_dict()
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_reply_is_what_the_whole_talk_gives_at_every_step(trained):
    """Segments of speakers come from the model alone; the talk's state, kept over turns, equals reading everything anew."""
    model, tokenizer = load(trained, "causal-lm")
    model = model.double()
    talk = Conversation(model, tokenizer, Sampling(temperature=0), reply_tokens=6)
    for text in ("你好！", "我手机没电了。", "Thanks!"):
        said = "".join(talk.say(text))
        history = talk.messages if not said.strip() else talk.messages[:-1]
        ids = encode_talks(tokenizer, [history])[0].ids.tolist()
        alone = []
        while len(alone) < 6:
            logits = model(torch.tensor([[*ids, *alone]]), use_cache=False).logits
            alone.append(int(logits[0, -1].argmax()))
            if alone[-1] == tokenizer.sep_token_id:
                alone.pop()
                break
        assert said.strip() == tokenizer.decode(alone, skip_special_tokens=True).strip()
        if not said.strip():
            talk.messages.append(Message("assistant", "好"))


def test_chat_and_serve(trained):
    told = jieyue("chat", trained, "--temperature", "0", "--max-tokens", "5", stdin="你好！\n")
    assert told.returncode == 0, told.stderr
    with TestClient(app_of(open_models([trained])), base_url="http://127.0.0.1:8000") as client:
        asked = {
            "model": "talker",
            "messages": [{"role": "user", "content": "你好！"}],
            "temperature": 0,
            "max_tokens": 5,
        }
        answer = client.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"].strip() == told.stdout.strip()
