"""Chooses the largest micro-batch whose predicted peak fits the budget; the effective batch is never touched.

Exact and cheap comes first: the undivided batch, then pieces as large as fit, then activation checkpointing (exact, a
third more time). Every number in a Plan is a trace of its own (``search``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from jieyue.budget import Budget, Cost, Plan, format_bytes
from jieyue.errors import BudgetError, InputError

from .prediction import TrainingStep
from .search import fixed_cost, largest_fitting, refusal, step_costs, whole_or_nothing

__all__ = ["choose"]


def choose(
    step: TrainingStep,
    budget: Budget,
    *,
    effective_batch: int,
    fixed_bytes: int | None = None,
    checkpointing: bool | None = None,
) -> Plan:
    """The Plan that fits ``budget.memory_bytes``, the whole process included, with what was rejected and why.

    ``fixed_bytes``: what the process holds without the model; None measures it now (``fixed_cost``), so call it after
    the data is read, and once more when all is traced, as tracing leaves code and tables in memory. ``checkpointing``: None tries
    without, then with; True or False allow only that. Without a memory limit the whole batch is one piece; so it is where weights
    move in the backward pass. Raises ``BudgetError``, which says by how much nothing fits and what would.
    """
    if effective_batch < 1:
        raise InputError(f"effective_batch={effective_batch}: expected at least 1 row")
    fixed = fixed_cost(step.device) if fixed_bytes is None else fixed_bytes
    allowed = float("inf") if budget.memory_bytes is None else budget.memory_bytes - fixed
    rejected: list[tuple[str, str]] = []
    floors: list[tuple[str, TrainingStep, Cost]] = []
    for checkpointed in (False, True) if checkpointing is None else (checkpointing,):
        suffix = ", checkpointing" if checkpointed else ""
        cost = _told(step_costs(step, effective_batch, checkpointed, fixed), suffix, budget, allowed, rejected)
        try:
            search = whole_or_nothing if step.in_backward else largest_fitting
            found = search(cost, effective_batch, allowed)
        except InputError as error:  # a model without layers cannot be checkpointed
            if not checkpointed or checkpointing:
                raise
            rejected.append(("checkpointing", str(error)))
            continue
        if isinstance(found, Cost):
            floors.append(
                ("update in backward" + suffix if step.in_backward else f"micro-batches{suffix}", step, found)
            )
            continue
        micro_batch, predicted = found
        held = fixed if fixed_bytes is not None else max(fixed, fixed_cost(step.device))
        if predicted.peak_bytes + held > (budget.memory_bytes or float("inf")):
            return choose(step, budget, effective_batch=effective_batch, fixed_bytes=held, checkpointing=checkpointing)
        predicted = replace(predicted, fixed_bytes=held)
        return Plan(
            effective_batch=effective_batch,
            micro_batch=micro_batch,
            checkpointing=checkpointed,
            predicted=predicted,
            rejected=tuple(rejected),
        )
    assert budget.memory_bytes is not None
    refused = BudgetError(refusal(budget.memory_bytes, floors, could_checkpoint=checkpointing is False))
    refused.fixed_bytes = fixed
    raise refused


def _told(
    cost: Callable[[int], Cost], suffix: str, budget: Budget, allowed: float, rejected: list[tuple[str, str]]
) -> Callable[[int], Cost]:
    """The same, what does not fit noted in ``rejected``."""

    def told(rows: int) -> Cost:
        found = cost(rows)
        if budget.memory_bytes is not None and found.peak_bytes > allowed:
            over = format_bytes(found.process_bytes - budget.memory_bytes)
            rejected.append(
                (f"micro-batch {rows}{suffix}", f"needs {format_bytes(found.process_bytes)}, {over} too much")
            )
        return found

    return told
