"""What a run measures of itself when it is trained: its memory, what each saving was worth, what each remedy costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import TypeVar

import torch
from torch import nn

from jieyue.budget import Cost, Plan
from jieyue.hf.use import use
from jieyue.malloc import malloc_name
from jieyue.planning.measurement import measure_step
from jieyue.planning.prediction import TrainingStep, predict
from jieyue.planning.search import traced
from jieyue.training.accumulation import accumulate
from jieyue.training.objective import Objective

from .fit import Trained
from .plan import RunPlan
from .prepare import Prepared
from .waterfall import Step, Waterfall

__all__ = ["LengthCost", "Memory", "Price", "against_length", "measured_memory", "prices", "savings"]

Key = TypeVar("Key")

ROUNDS = 3  # alternating timings of each setting, after a warm one (0: that one alone); steps at a length
LONG = 20.0  # seconds after which no further round begins


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that were measured in training, each with how."""

    peak_bytes: int
    peak_how: str
    fixed_how: str
    process_bytes: int
    process_how: str


@dataclass(frozen=True, kw_only=True)
class Price:
    """Peak and seconds of one update under ``objective``."""

    objective: str
    peak_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LengthCost:
    """Peak (measured, or predicted alone) and seconds of one update of one row of ``length`` tokens."""

    length: int
    attention: str
    peak_bytes: int
    seconds: float | None
    how: str


def measured_memory(prepared: Prepared, planned: RunPlan, trained: Trained) -> Memory:
    """One more update with the run's own model and optimizer on the longest rows: live bytes, against the prediction."""
    plan = replace(planned.plan, micro_batch=min(planned.plan.micro_batch, trained.facts["micro_batch"]))
    on_gpu = planned.budget.device.startswith("cuda")
    malloc = malloc_name()
    may_keep = planned.wall_bytes is not None or (not planned.tight and malloc != "tcmalloc")
    kept = f", under {malloc}" + ("; it may keep freed blocks, as the budget leaves room for them" if may_keep else "")
    return Memory(
        peak_bytes=_peak(prepared.objective, prepared, planned.step, trained, plan),
        peak_how="max_memory_allocated"
        if on_gpu
        else "live bytes of torch's allocator, one warm update on the longest rows",
        fixed_how="resident before a weight was allocated: interpreter, libraries, data",
        process_bytes=trained.facts["process_peak_bytes"],
        process_how="highest resident set (VmHWM) up to the end of training" + kept,
    )


def savings(prepared: Prepared, planned: RunPlan, trained: Trained, measured: Memory) -> Waterfall:
    """One update in settings of growing thrift, measured on the run's own model: the waterfall of this run.

    The undivided batch comes first; what would not fit the budget has its predicted peak and is not run. The others are
    timed warm and in turn, ``ROUNDS`` times each or as often as ``LONG`` has room for.
    """
    plan, allowed, steps = planned.plan, planned.budget.memory_bytes, []
    run: dict[int, Plan] = {}
    usual = replace(planned.step, in_backward=False) if planned.step.in_backward else planned.step
    for number, (added, setting) in enumerate(_thrift(plan)):
        cost = _cost(planned, usual, setting)
        step = Step(added=added, update=planned.way.update, predicted_bytes=cost.peak_bytes)
        if allowed is not None and cost.peak_bytes + planned.fixed_bytes > allowed:
            step = replace(step, how="beyond the budget, not run")
        else:
            run[number] = setting
            own = _peak(prepared.objective, prepared, usual, trained, setting)
            step = replace(
                step, measured_bytes=measured.peak_bytes if setting == plan and usual is planned.step else own
            )
        steps.append(step)
    timings = _alternating(
        {number: partial(_update, prepared.objective, prepared, trained, setting) for number, setting in run.items()}
    )
    for number, seconds in timings.items():
        spread = (min(seconds), max(seconds))
        steps[number] = replace(steps[number], seconds=median(seconds), seconds_range=spread)
    if planned.step.in_backward:
        steps.append(_moved(planned, measured))
    return Waterfall(steps=tuple(steps), effective_batch=plan.effective_batch, positions=planned.step.length)


def _cost(planned: RunPlan, step: TrainingStep, setting: Plan) -> Cost:
    """What the setting is predicted to cost; the run's own was traced when it was chosen."""
    own = planned.plan
    if (
        step is planned.step
        and own.predicted is not None
        and (setting.micro_batch, setting.checkpointing)
        == (
            own.micro_batch,
            own.checkpointing,
        )
    ):
        return own.predicted
    return traced(
        step,
        effective_batch=setting.effective_batch,
        micro_batch=setting.micro_batch,
        checkpointing=setting.checkpointing,
    )


def _moved(planned: RunPlan, measured: Memory) -> Step:
    """The run's own update, whose weights moved in the backward pass; not timed beside the others, which only look."""
    cost, with_it = planned.plan.predicted, ", checkpointing" if planned.plan.checkpointing else ""
    added, predicted = (
        f"undivided batch, update in backward{with_it}",
        measured.peak_bytes if cost is None else cost.peak_bytes,
    )
    return Step(added=added, update=planned.way.update, predicted_bytes=predicted, measured_bytes=measured.peak_bytes)


def _thrift(plan: Plan) -> list[tuple[str, Plan]]:
    """(what is added, the plan with it): the undivided batch, micro-batches, checkpointing; what the run did without says so."""
    divided, needless = replace(plan, checkpointing=False), ""
    if plan.micro_batch == plan.effective_batch:
        divided, needless = replace(divided, micro_batch=max(1, plan.effective_batch // 4)), " (not needed)"
    return [
        ("undivided batch", replace(divided, micro_batch=plan.effective_batch)),
        (f"micro-batches of {divided.micro_batch}{needless}", divided),
        ("checkpointing" + ("" if plan.checkpointing else " (not needed)"), replace(divided, checkpointing=True)),
    ]


def prices(
    prepared: Prepared, planned: RunPlan, trained: Trained, remedies: Sequence[Callable[[Objective], Objective]]
) -> list[Price]:
    """Peak and seconds of one update on the longest rows: without remedies, and with one more of them each time."""
    objectives = {"the task's objective": prepared.plain}
    objective = prepared.plain
    for remedy in remedies:
        objective = remedy(objective)
        objectives[f"and {remedy}"] = objective
    timings = _alternating(
        {name: partial(_update, one, prepared, trained, planned.plan) for name, one in objectives.items()}
    )
    return [
        Price(
            objective=name,
            peak_bytes=_peak(one, prepared, planned.step, trained, planned.plan),
            seconds=median(timings[name]),
        )
        for name, one in objectives.items()
    ]


def against_length(
    prepared: Prepared, planned: RunPlan, attention: str, lengths: Sequence[int] = (512, 2048, 8192)
) -> list[LengthCost]:
    """One training step of one row at growing lengths, with full attention and with the pattern: peak bytes and seconds.

    Measured on fresh weights of the same model, warm, in this process; a length whose predicted peak is beyond the budget
    is predicted only. Lengths beyond the model's positions are left out.
    """
    rows, allowed = [], planned.budget.memory_bytes
    for length in lengths:
        if length > prepared.model.positions:
            continue
        for name in ("full()", attention):
            step = replace(planned.step, length=length, build_model=partial(_patterned, prepared.model.plain, name))
            cost = predict(step, effective_batch=1, micro_batch=1)
            row = LengthCost(length=length, attention=name, peak_bytes=cost.peak_bytes, seconds=None, how="predicted")
            if allowed is None or cost.peak_bytes + planned.fixed_bytes <= allowed:
                peak, seconds = _timed_step(step)
                row = replace(row, peak_bytes=peak, seconds=seconds, how="measured")
            rows.append(row)
    return rows


def _patterned(plain: Callable[[], nn.Module], attention: str) -> nn.Module:
    model = plain()
    use(model, attention=None if attention == "full()" else attention)
    return model


def _timed_step(step: TrainingStep) -> tuple[int, float]:
    model = step.build_model().train()
    optimizer = step.make_optimizer(model)
    batch = step.example_batch(1, step.length)
    seconds = []
    for _ in range(max(1, ROUNDS)):
        started = time.perf_counter()
        accumulate(step.objective, model, batch, micro_batch=1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > LONG:
            break
    return measure_step(step.objective, model, batch, optimizer, micro_batch=1), min(seconds[1:] or seconds)


def _peak(objective: Objective, prepared: Prepared, step: TrainingStep, trained: Trained, plan: Plan) -> int:
    batch = prepared.longest(plan.effective_batch)
    return measure_step(
        objective,
        trained.model,
        batch,
        trained.optimizer,
        micro_batch=prepared.micro_batch(plan),
        max_grad_norm=step.max_grad_norm,
        in_backward=step.in_backward,
    )


def _alternating(calls: dict[Key, Callable[[], None]]) -> dict[Key, list[float]]:
    """Seconds of every call: a warm one first, then all of them in turn, ``ROUNDS`` times, and no more rounds than ``LONG`` has room
    for; where the warm round takes longer than that, its own seconds."""
    rounds: list[dict[Key, float]] = []
    begun = time.perf_counter()
    while len(rounds) <= ROUNDS and (not rounds or time.perf_counter() - begun < LONG):
        took: dict[Key, float] = {}
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            took[name] = time.perf_counter() - started
        rounds.append(took)
    return {name: [took[name] for took in rounds[1:] or rounds] for name in calls}


def _update(objective: Objective, prepared: Prepared, trained: Trained, plan: Plan) -> None:
    """Forward and backward of one update on the longest rows; its gradients are dropped."""
    batch = prepared.longest(plan.effective_batch)
    accumulate(objective, trained.model.train(), batch, micro_batch=prepared.micro_batch(plan))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    trained.model.zero_grad(set_to_none=True)
