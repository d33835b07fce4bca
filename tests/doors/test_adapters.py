"""--adapter and --base in a run: planned to 1 %, only adapters move, resumed the same, and a folder that every door opens."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from jieyue.budget import Budget
from jieyue.errors import InputError
from jieyue.hf.loading import load, read_record
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.run import RunConfig, TrainingConfig
from jieyue.run.fit import fit, store
from jieyue.run.jobs import evaluate
from jieyue.run.measure import measured_memory
from jieyue.run.plan import plan_for
from jieyue.run.predict import Predictor
from jieyue.run.prepare import prepare
from jieyue.tasks.table import task
from jieyue.training.techniques import APPROXIMATE

pytestmark = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
BASES = [
    None,
    pytest.param(
        "nf4",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
        ),
    ),
]
TEXTS = [
    ("a red apple fell", "fruit"),
    ("a green pear grew", "fruit"),
    ("the old train ran", "ride"),
    ("a bus came", "ride"),
]
HOW = TrainingConfig(steps=4, effective_batch=4, save_steps=2, evaluate_every=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint of a masked LM, and twenty labelled texts."""
    folder = tmp_path_factory.mktemp("adapters")
    tokenizer = make_tokenizer(learn_vocabulary([text for text, _ in TEXTS]))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    lines = [json.dumps({"text": f"{text} {n}", "label": label}) for n in range(5) for text, label in TEXTS]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def ready(files, base, training=HOW, **more):
    texts = [files / "texts.jsonl"]
    config = RunConfig(
        model=str(files / "base"), data=texts, held_out=texts, new_head=True, adapter="lora:2", base=base, **more
    )
    prepared = prepare(task("classify"), config, training)
    return prepared, plan_for(prepared, Budget.parse("2GiB"), training), training


@pytest.mark.parametrize("base", BASES)
def test_a_run_is_planned_trained_resumed_and_opened_again(files, base, tmp_path):
    prepared, planned, training = ready(files, base)
    assert planned.way.update == APPROXIMATE
    assert ("in four bits" in str(prepared.model.adapter)) == (base is not None)
    before = {name: p.detach().clone() for name, p in prepared.model.build().named_parameters()}
    trained = fit(prepared, planned, training, tmp_path / "whole")
    assert trained.facts["learning_rate"] == 3e-4
    after = dict(trained.model.named_parameters())
    moved = {name for name, p in after.items() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in after.items() if p.requires_grad}
    assert {name.split(".")[0] for name in moved if "lora_" not in name} == {
        "bert",
        "classifier",
    }  # a pooler is new too
    predicted, measured = planned.plan.predicted, measured_memory(prepared, planned, trained)
    assert abs(predicted.peak_bytes / measured.peak_bytes - 1) < 0.01
    assert after["classifier.weight"].requires_grad

    for checkpoint in (tmp_path / "whole" / "checkpoints").glob("checkpoint-4"):
        checkpoint.rename(tmp_path / "gone")
    again = fit(prepared, planned, training, tmp_path / "whole", resume=True)
    assert all(torch.equal(p, after[name]) for name, p in again.model.named_parameters())

    store(trained, prepared, prepared.settings, tmp_path / "out", {"model": "base"})
    model, _ = load(tmp_path / "out")
    batch = {name: value for name, value in prepared.longest(2).items() if name != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, trained.model.eval()(**batch).logits, rtol=1e-4, atol=1e-5)
    assert read_record(tmp_path / "out")["recipe"] == "classify" and not list(
        model.config.to_dict().get("quantization_config", ())
    )
    assert evaluate(tmp_path / "out", [files / "texts.jsonl"]).title.startswith("Evaluation")
    assert len(Predictor(tmp_path / "out")([{"text": "a red apple"}])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_the_best_adapters_stay(files, base, tmp_path):
    prepared, planned, training = ready(files, base, replace(HOW, keep="best", evaluate_every=1))
    scores, seen = iter([0.2, 0.9, 0.1, 0.3]), []

    def look(model, _):
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return next(scores)

    trained = fit(prepared, planned, training, tmp_path, curve=look)
    assert all(torch.equal(p, seen[1][name]) for name, p in trained.model.named_parameters())


def test_what_cannot_be_adapted_is_refused(files):
    config = RunConfig(model="bert-tiny", data=[files / "texts.jsonl"], adapter="lora:2")
    with pytest.raises(InputError, match="found the preset bert-tiny, whose frozen weights would stay random"):
        prepare(task("classify"), config, HOW)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_four_bits_and_bfloat16_are_refused(files):
    with pytest.raises(InputError, match="base='nf4': found dtype=bfloat16 beside it"):
        ready(files, "nf4", replace(HOW, dtype="bfloat16"))
