"""What a budget leaves open: the exact way first, then Adafactor, then bfloat16; updates in backward of a whole run, to 1 %."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from jieyue.budget import Budget
from jieyue.errors import BudgetError, InputError
from jieyue.planning.choice import choose
from jieyue.planning.measurement import measure_step
from jieyue.planning.prediction import TrainingStep, predict
from jieyue.planning.search import fixed_cost
from jieyue.report import Report
from jieyue.run import RunConfig, TrainingConfig
from jieyue.run import ways as ways_module
from jieyue.run.fit import fit
from jieyue.run.measure import measured_memory
from jieyue.run.plan import plan_for
from jieyue.run.prepare import prepare
from jieyue.run.resume import as_before
from jieyue.run.ways import Decided, decide, ways_section
from jieyue.tasks.table import task
from jieyue.training.objective import token_loss
from jieyue.training.techniques import EXACT, OTHER
from jieyue.training.weightwise import step_in_backward

HOW = TrainingConfig(steps=3, effective_batch=4)


@pytest.fixture(scope="module")
def prepared():
    return prepare(task("mlm"), RunConfig(model="bert-tiny", limit=30), HOW)


def needs(prepared, **how):
    """Bytes of the leanest update of this kind: one row at a time, checkpointed."""
    return plan_for(
        prepared, Budget(), replace(HOW, effective_batch=1, checkpointing=True, **how), 0
    ).plan.predicted.peak_bytes


@pytest.mark.slow
def test_the_exact_way_comes_first_and_what_else_fits_is_named(prepared, monkeypatch):
    monkeypatch.setattr("jieyue.planning.choice.fixed_cost", lambda device: fixed)
    fixed = fixed_cost()
    between = Budget(memory_bytes=fixed + (needs(prepared) + needs(prepared, optimizer="adafactor")) // 2)
    roomy = decide(prepared, Budget(), replace(HOW, optimizer="auto", dtype="auto"))
    assert (roomy.training.optimizer, roomy.training.dtype, roomy.planned.way.update) == ("adamw", "float32", EXACT)
    found = decide(prepared, between, replace(HOW, optimizer="auto", dtype="auto"))
    assert (found.training.optimizer, found.training.dtype, found.planned.way.update) == ("adafactor", "float32", OTHER)
    assert found.planned.plan.predicted.process_bytes <= between.memory_bytes
    with pytest.raises(
        BudgetError, match=r"or, within this budget, .*--optimizer adafactor \(exact, of another optimizer;"
    ):
        decide(prepared, between, HOW)


def test_bfloat16_is_taken_last_and_really(prepared, monkeypatch):
    tried = []

    def planned(own, budget, way, fixed=None):
        tried.append((way.optimizer, way.dtype, way.in_backward))
        if (way.optimizer, way.dtype) != ("adafactor", "bfloat16"):
            raise BudgetError("no")
        return own.objective  # stands for the plan

    monkeypatch.setattr(ways_module, "plan_for", planned)
    found = decide(prepared, Budget(), replace(HOW, optimizer="auto", dtype="auto"))
    assert (found.training.optimizer, found.training.dtype) == ("adafactor", "bfloat16")
    assert found.planned is found.prepared.objective is not prepared.objective
    float32, bfloat16 = [[(one, dtype, False) for one in ("adamw", "adafactor")] for dtype in ("float32", "bfloat16")]
    assert tried == float32 + bfloat16
    monkeypatch.setattr(ways_module, "_flags", lambda way, _: f"{way.optimizer} {way.dtype} {way.in_backward}")
    with pytest.raises(
        BudgetError, match="no; or, within this budget, adafactor bfloat16 False, or adafactor bfloat16 True"
    ):
        decide(prepared, Budget(), replace(HOW, optimizer="auto"))  # a dtype that was named is kept


@pytest.mark.slow
def test_the_table_of_ways(prepared):
    plan = plan_for(prepared, Budget(), HOW, 0)
    report = Report("x")
    ways_section(report, Decided(prepared, HOW, plan), Budget())
    assert "not needed" in report.text()
    divided = replace(plan, plan=replace(plan.plan, micro_batch=2))
    report = Report("x")
    ways_section(report, Decided(prepared, HOW, divided), Budget())
    text = report.text()
    assert "Other ways to fit the budget" in text and text.count("adafactor") == 4 and text.count("bfloat16") == 4


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "tiger"])
def test_a_run_moves_its_weights_in_the_backward_pass_as_planned(prepared, optimizer, tmp_path):
    """The same weights as the usual run without clipping; with it, the norm of the step before (none at the first)."""
    usual = replace(HOW, optimizer=optimizer, max_grad_norm=0.0)
    moving = replace(usual, in_backward=True)
    plan = plan_for(prepared, Budget(), moving, 0)
    assert plan.plan.micro_batch == 4 and plan.way.update == plan_for(prepared, Budget(), usual, 0).way.update
    assert plan.plan.predicted.peak_bytes < plan_for(prepared, Budget(), usual, 0).plan.predicted.peak_bytes
    one = fit(prepared, plan, moving, tmp_path / "one", curve=None)
    other = fit(prepared, plan_for(prepared, Budget(), usual, 0), usual, tmp_path / "other", curve=None)
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert (p - q).abs().max() < 1e-5
    measured = measured_memory(prepared, plan, one)
    assert plan.plan.predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.01)
    clipped = fit(prepared, plan, replace(moving, max_grad_norm=1e-3), tmp_path / "clipped", curve=None)
    if optimizer == "tiger":
        assert any(
            not torch.equal(p, q) for p, q in zip(one.model.parameters(), clipped.model.parameters(), strict=True)
        )


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.layers = nn.Embedding(64, 128), nn.ModuleList(nn.Linear(128, 128) for _ in range(4))

    def forward(self, ids):
        x = self.tokens(ids)
        for layer in self.layers:
            x = layer(x).relu()
        return x @ self.tokens.weight.T


def toy_batch(rows, length):
    return {"ids": torch.arange(rows * length).view(rows, length) % 64}


TOY = TrainingStep(
    build_model=Toy,
    objective=lambda model, batch: token_loss(model(batch["ids"]), batch["ids"]),
    example_batch=toy_batch,
    make_optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
    length=4,
)


@pytest.mark.parametrize("longest", [0.0, 1.0])
def test_updates_in_backward_are_planned(longest):
    step = replace(TOY, in_backward=True, max_grad_norm=longest)
    model, batch = Toy(), toy_batch(4, 4)
    optimizer = step.make_optimizer(model)
    step_in_backward(step.objective, model, batch, optimizer, micro_batch=4)
    how = {"micro_batch": 4, "max_grad_norm": longest, "in_backward": True}
    measured = measure_step(step.objective, model, batch, optimizer, **how)
    cost = predict(step, effective_batch=4, micro_batch=4)
    assert cost.peak_bytes == pytest.approx(measured, rel=0.01)
    assert cost.peak_bytes < predict(replace(TOY, max_grad_norm=longest), effective_batch=4, micro_batch=4).peak_bytes


def test_what_in_backward_cannot_do_is_refused():
    step = replace(TOY, in_backward=True)
    with pytest.raises(InputError, match="in_backward: found pieces of 2 rows, expected the whole batch in one piece"):
        predict(step, effective_batch=4, micro_batch=2)
    assert choose(step, Budget(), effective_batch=4, fixed_bytes=0).micro_batch == 4
    with pytest.raises(
        BudgetError, match=r"the whole batch of rows of 4 positions at a time.*pieces, without updates in"
    ):
        choose(step, Budget(memory_bytes=1_200_000), effective_batch=512, fixed_bytes=0, checkpointing=False)


def test_a_resumed_run_keeps_what_was_chosen(tmp_path):
    (tmp_path / "training.json").write_text(
        '{"training": {"optimizer": "adafactor", "dtype": "bfloat16"}}', encoding="utf-8"
    )
    found = as_before(tmp_path, TrainingConfig(optimizer="auto"))
    assert (found.optimizer, found.dtype) == ("adafactor", "float32")
