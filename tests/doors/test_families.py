"""The law of ``use`` over model types: two dozen of every kind, and (slow) all that the installed transformers knows."""

import re
import warnings
from pathlib import Path

import pytest
import torch
import transformers

from jieyue.hf.families import FamilyRow, check_family, check_model
from jieyue.hf.tiny import model_types, tiny_config, tiny_inputs, tiny_model

EQUAL = {
    "bert": "encoder", "albert": "shared layers", "splinter": "eager only, bidirectional", "modernbert": "two windows",
    "distilbert": "encoder", "eurobert": "rotary encoder", "gpt2": "decoder", "opt": "decoder", "llama": "grouped heads",
    "mistral": "a window on every layer", "exaone4": "windows on some layers", "olmoe": "experts", "phi3": "packed projections",
    "deepseek_v3": "latent keys", "gemma3_text": "windows", "gemma4_text": "shared keys", "diffllama": "keys read twice",
    "lfm2": "convolutions between", "qwen3_next": "recurrent layers between", "bart": "encoder and decoder",
    "encoder-decoder": "put together", "t5": "biases by offset", "vit": "pictures", "whisper": "sound", "llava": "pictures and text",
    "nemotron_h": "state spaces between",
    "mpnet": "outside the interface, biases by offset", "bloom": "outside the interface, biases of keys",
}  # fmt: skip
REFUSED = {
    "doge": "of its own", "convbert": "outside transformers' attention interface", "deepseek_v32": "an indexer",
    "layoutlm": "of its own", "fnet": "no self-attention",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet():
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("model_type", EQUAL)
def test_unchanged(model_type):
    row = check_family(model_type)
    assert row.outcome == "equal", row
    assert set(row.found.values()) <= {"equal", "–"}, row


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused_by_name(model_type):
    row = check_family(model_type)
    assert row.outcome == "refused" and REFUSED[model_type] in row.why, row


def test_a_wrong_model_is_found(monkeypatch):
    """The broken twin: a mask that says causal where the model's does not."""
    import jieyue.hf.masks as masks

    model = tiny_model(tiny_config("bert"))
    inputs = next(tiny_inputs(model))
    monkeypatch.setattr(masks, "_meaning", lambda function: (True, None))
    monkeypatch.setattr("jieyue.hf.attention.look", lambda *_: {})
    monkeypatch.setattr("jieyue.hf.attention_call._asked", lambda module, layer, mask, stated: masks.ask_of(mask))
    row = check_model("bert", model, inputs)
    assert row.outcome == "wrong" and row.found["forward"].startswith("wrong: full() changes the output"), row


def test_the_readme_says_what_the_page_says():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "families.md").read_text(encoding="utf-8")
    counts = {name: int(number) for name, number in re.findall(r"^\| (\w[\w ]*) \| (\d+) \|$", page, re.M)}
    assert counts["equal"] >= 170 and counts["wrong"] == counts["crash"] == 0
    for name, words in (("README.md", "{} model types"), ("README.zh.md", "{} 种模型")):
        assert words.format(counts["equal"]) in (root / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_type_that_transformers_knows():
    torch.set_num_threads(1)
    rows: list[FamilyRow] = [check_family(name) for name in model_types()]
    assert [row for row in rows if row.outcome in ("wrong", "crash")] == []
    assert sum(row.outcome == "equal" for row in rows) >= 170
