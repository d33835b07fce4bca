"""Optimizer and dtype of a course: what a plan traces is what runs, to 1 % of the allocator; a resumed run keeps both."""

import dataclasses
import importlib.util

import pytest
import torch
from transformers.optimization import Adafactor

from jieyue.budget import Budget
from jieyue.errors import InputError, MissingExtra
from jieyue.hf.optimizers import OPTIMIZERS
from jieyue.planning.prediction import predict
from jieyue.planning.setting import Setting
from jieyue.planning.subject import Subject
from jieyue.run.config import TrainingConfig
from jieyue.run.fit import fit
from jieyue.run.measure import measured_memory
from jieyue.run.plan import plan_for
from jieyue.run.prepare import prepare
from jieyue.tasks import RunConfig
from jieyue.tasks.table import task
from jieyue.training.adam_mini import AdamMini
from jieyue.training.muon import MuonAdamW
from jieyue.training.remedies.adversarial import fgm
from jieyue.training.techniques import APPROXIMATE, EXACT, OTHER
from jieyue.training.tiger import Tiger

COURSE = TrainingConfig(steps=2, effective_batch=4, remedies=(fgm(0.5),))
KINDS = {
    "adamw": torch.optim.AdamW, "adafactor": Adafactor, "momentum": torch.optim.SGD, "tiger": Tiger, "muon": MuonAdamW,
    "adam-mini": AdamMini,
}  # fmt: skip


def prepared_for(course):
    return prepare(task("mlm"), RunConfig(model="albert-tiny", limit=60), course)


@pytest.fixture(scope="module")
def plain():
    return plan_for(prepared_for(COURSE), Budget(), COURSE)


@pytest.mark.parametrize(
    ("optimizer", "dtype", "update"),
    [
        ("adamw", "bfloat16", APPROXIMATE),
        ("adafactor", "float32", OTHER),
        ("momentum", "float32", OTHER),
        ("tiger", "float32", OTHER),
        ("muon", "float32", OTHER),
        ("adam-mini", "float32", OTHER),
    ],
)
def test_the_plan_predicts_the_optimizer_and_dtype_that_run(plain, optimizer, dtype, update, tmp_path):
    course = dataclasses.replace(COURSE, optimizer=optimizer, dtype=dtype)
    prepared = prepared_for(course)
    planned = plan_for(prepared, Budget(), course)
    assert planned.way.update == update and not planned.plan.exact
    seen = []
    base = prepared.objective

    def watched(model, batch):  # the dtype of what the layers give
        layer = model.albert.encoder.albert_layer_groups[0].albert_layers[0].ffn
        handle = layer.register_forward_hook(lambda *given: seen.append(given[-1].dtype))
        try:
            return base(model, batch)
        finally:
            handle.remove()

    trained = fit(dataclasses.replace(prepared, objective=watched), planned, course, tmp_path)
    assert type(trained.optimizer) is KINDS[optimizer]
    assert set(seen) == {torch.bfloat16 if dtype == "bfloat16" else torch.float32}
    assert planned.plan.predicted.peak_bytes == pytest.approx(
        measured_memory(prepared, planned, trained).peak_bytes, rel=0.01
    )
    changed = "activation_bytes" if dtype == "bfloat16" else "optimizer_bytes"  # the broken twin: another course's plan
    assert getattr(planned.plan.predicted, changed) < 0.9 * getattr(plain.plan.predicted, changed)
    assert plain.plan.exact and plain.way.update == EXACT


def test_a_resumed_run_keeps_optimizer_and_dtype(plain, tmp_path):
    prepared = prepared_for(COURSE)
    fit(prepared, plain, COURSE, tmp_path)
    for name, other, own in (("optimizer", "adafactor", "adamw"), ("dtype", "bfloat16", "float32")):
        course = dataclasses.replace(COURSE, **{name: other})
        with pytest.raises(InputError, match=f"resume: {name} is '{other}', but the interrupted run had '{own}'"):
            fit(prepared, plain, course, tmp_path, resume=True)


def test_what_cannot_run_is_refused_at_once():
    for bad in ({"optimizer": "lion"}, {"dtype": "float16"}):
        with pytest.raises(InputError, match="expected one of"):
            TrainingConfig(**bad)
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(MissingExtra, match=r"bitsandbytes.*jieyue\[eight-bit\]"):
            TrainingConfig(optimizer="adamw-8bit")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed here")
def test_eight_bits_cost_what_is_predicted():
    from test_plan_table import subject, warm_peak

    setting = Setting(micro_batch=2, optimizer="adamw-8bit")
    step = subject().step(setting)
    cost = predict(step, effective_batch=6, micro_batch=2)
    assert cost.peak_bytes == pytest.approx(warm_peak(step, setting, 6), rel=0.01)
    assert cost.optimizer_bytes < 0.3 * 2 * cost.weight_bytes


def test_every_choice_is_labelled():
    updates = {name: Setting(micro_batch=1, optimizer=name).update for name in OPTIMIZERS}
    others = dict.fromkeys(("adafactor", "momentum", "tiger", "muon", "adam-mini"), OTHER)
    assert updates == {"adamw": EXACT, **others, "adamw-8bit": APPROXIMATE}
    assert Setting(micro_batch=1, optimizer="adafactor", dtype="bfloat16").update == APPROXIMATE
    assert Setting(micro_batch=1, chunked=True, checkpointing=True, attention="full()").update == EXACT
    assert Setting(micro_batch=1, attention="local(4)").update == APPROXIMATE


def test_blocks_of_adam_mini_are_heads_rows_and_vectors():
    from transformers import BertConfig, GPT2Config, LlamaConfig

    sizes = {
        "vocab_size": 30,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 8,
    }
    llama = LlamaConfig(**sizes, num_key_value_heads=2, head_dim=4, tie_word_embeddings=False)
    gpt2 = GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=4, n_positions=8)
    expected = {"query.weight": 4, "key.weight": 4, "value.weight": 16, "q_proj.weight": 4, "k_proj.weight": 2,
                "v_proj.weight": 8, "word_embeddings.weight": 30, "embed_tokens.weight": 30, "c_attn.weight": 48,
                "mlp.c_fc.weight": 64, "norm.weight": 1, "query.bias": 1}  # fmt: skip
    found = {}
    for config, head in ((BertConfig(**sizes), "masked-lm"), (llama, "causal-lm"), (gpt2, "causal-lm")):
        subject = Subject(config=config, head=head, positions=8)
        step = subject.step(Setting(micro_batch=2, optimizer="adam-mini"))
        model = step.build_model()
        optimizer = step.make_optimizer(model)
        model(**{k: v for k, v in step.example_batch(2, 8).items() if k != "labels"}).logits.square().sum().backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found |= {
                    end: optimizer.state[parameter]["exp_avg_sq"].numel() for end in expected if name.endswith(end)
                }
    assert found == expected
