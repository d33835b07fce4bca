"""Which optimizer and dtype a run takes where that is left open ("auto"), and what else would fit a budget.

The exact comes first: AdamW in float32 with pieces and checkpointing; then Adafactor (exact, of another optimizer); then bfloat16
(approximate), under either. Losses over a vocabulary are chunked, or made at the labelled positions alone, wherever the model
allows it, so there is no other loss to try. Each way is traced, as the one that runs is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jieyue.budget import Budget, format_bytes
from jieyue.errors import BudgetError
from jieyue.planning.setting import AUTO
from jieyue.report import Report
from jieyue.report.amounts import Given

from .config import TrainingConfig
from .plan import RunPlan, plan_for
from .prepare import Prepared, at_dtype

__all__ = ["Decided", "decide", "other_ways", "ways_section"]

_OPTIMIZERS, _DTYPES = ("adamw", "adafactor"), ("float32", "bfloat16")


@dataclass(frozen=True)
class Decided:
    """What a run does: ``training`` without anything left open, ``prepared`` in its dtype, and the plan."""

    prepared: Prepared
    training: TrainingConfig
    planned: RunPlan


def decide(prepared: Prepared, budget: Budget, training: TrainingConfig, *, advise: bool = True) -> Decided:
    """The first way that fits, of those that ``training`` leaves open. ``BudgetError`` names what else would fit, unless ``advise`` is
    False: to find that out costs some dozens of traces."""
    refused: BudgetError | None = None
    fixed: int | None = None
    for way in _open(training, prepared):
        own = at_dtype(prepared, way, budget.device) if way.dtype != "float32" and training.dtype == AUTO else prepared
        try:
            return Decided(own, way, plan_for(own, budget, way))
        except BudgetError as error:
            refused = refused or error
            fixed = error.fixed_bytes
    assert refused is not None
    if not advise:
        raise refused
    fitting = [_flags(way, found) for way, found in other_ways(prepared, budget, training, fixed) if found is not None]
    if not fitting:
        raise refused
    raise BudgetError(f"{refused}; or, within this budget, {', or '.join(fitting)}") from refused


def _open(training: TrainingConfig, prepared: Prepared) -> Iterator[TrainingConfig]:
    """The ways that "auto" stands for, best first; the one that was named where nothing was left open."""
    optimizers = _OPTIMIZERS if training.optimizer == AUTO else (training.optimizer,)
    dtypes = _DTYPES if training.dtype == AUTO and prepared.base is None else (training.dtype,)
    if training.plan is not None:  # was made for one way
        optimizers, dtypes = optimizers[:1], dtypes[:1]
    for dtype in dtypes:
        for optimizer in optimizers:
            yield replace(training, optimizer=optimizer, dtype="float32" if dtype == AUTO else dtype)


def other_ways(
    prepared: Prepared, budget: Budget, training: TrainingConfig, fixed_bytes: int | None
) -> Iterator[tuple[TrainingConfig, RunPlan | None]]:
    """Every other optimizer and dtype there is to try, and updates in backward, each with its plan; None where it does not fit.

    Cost: up to eight traces a way, about a second each.
    """
    tried = {(one.optimizer, one.dtype, one.in_backward) for one in _open(training, prepared)}
    for dtype in _DTYPES if prepared.base is None else _DTYPES[:1]:
        for optimizer in _OPTIMIZERS:
            for in_backward in (False, True):
                if (optimizer, dtype, in_backward) in tried:
                    continue
                way = replace(training, optimizer=optimizer, dtype=dtype, in_backward=in_backward, plan=None)
                try:
                    yield way, plan_for(at_dtype(prepared, way, budget.device), budget, way, fixed_bytes)
                except BudgetError:
                    yield way, None


def _flags(way: TrainingConfig, found: RunPlan) -> str:
    cost, flags = found.plan.predicted, [f"--optimizer {way.optimizer}"]
    flags += [f"--dtype {way.dtype}"] if way.dtype != "float32" else []
    flags += ["--in-backward"] if way.in_backward else []
    needs = "" if cost is None else f", {format_bytes(cost.process_bytes)}"
    return f"{' '.join(flags)} ({found.way.update}; micro-batch {found.plan.micro_batch}{needs})"


def ways_section(report: Report, decided: Decided, budget: Budget) -> None:
    """The other ways and what each would take, where the chosen one divides or recomputes; nothing where it does neither."""
    chosen = decided.planned
    section = report.section("Memory")
    if chosen.plan.pieces == 1 and not chosen.plan.checkpointing:
        section.fact("other ways", "not needed", how="the whole batch fits at once")
        return
    rows: list[list[Given]] = [_row(decided.training, chosen)]
    others = other_ways(decided.prepared, budget, decided.training, chosen.fixed_bytes)
    rows += [_row(way, found) for way, found in others]
    columns: list[str | tuple[str, str]] = [
        "optimizer", "dtype", "update in backward", "micro-batch", "pieces", "checkpointing", ("process", "bytes"), "update",
    ]  # fmt: skip
    note = "Chosen: the first row. None changes how the loss over a vocabulary is made, which is chunked wherever the model allows it."
    section.table(columns, rows, title="Other ways to fit the budget", note=note)


def _row(way: TrainingConfig, found: RunPlan | None) -> list[Given]:
    start: list[Given] = [way.optimizer, way.dtype, "yes" if way.in_backward else "no"]
    if found is None or found.plan.predicted is None:
        return [*start, None, None, None, None, "does not fit"]
    plan = found.plan
    checkpointed = "yes" if plan.checkpointing else "no"
    return [*start, plan.micro_batch, plan.pieces, checkpointed, found.plan.predicted.process_bytes, found.way.update]
