"""The plan of a run: predicted before a weight is allocated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from jieyue.budget import Budget, Plan, format_bytes
from jieyue.errors import BudgetError
from jieyue.hf.optimizers import make_optimizer
from jieyue.planning.choice import choose
from jieyue.planning.prediction import TrainingStep
from jieyue.planning.search import fixed_cost
from jieyue.planning.setting import Setting

from .arguments import arguments_of, pace_of
from .config import TrainingConfig
from .prepare import MASK, Prepared

__all__ = ["RunPlan", "check_budget", "plan_for"]


@dataclass(frozen=True)
class RunPlan:
    """The chosen plan, what was allowed, the step that was traced.

    ``way``: the run's optimizer and dtype, and their label. ``wall_bytes``: what the resident set does not pass while pieces run
    (``jieyue.malloc.walled``); None = no wall.
    """

    plan: Plan
    budget: Budget
    step: TrainingStep
    way: Setting
    wall_bytes: int | None = None

    @property
    def tight(self) -> bool:
        """Whether what malloc keeps of freed blocks (up to as much again as the tensors' peak) could break the budget."""
        cost, allowed = self.plan.predicted, self.budget.memory_bytes
        return cost is not None and allowed is not None and cost.process_bytes + cost.peak_bytes > allowed

    @property
    def fixed_bytes(self) -> int:
        """Of the process before a weight was allocated."""
        return 0 if self.plan.predicted is None else self.plan.predicted.fixed_bytes


def check_budget(budget: Budget) -> None:
    """Refuses, before any data are read, a budget that the process itself is beyond: interpreter and libraries alone."""
    held, allowed = fixed_cost(budget.device), budget.memory_bytes
    if allowed is not None and held > allowed:
        raise BudgetError(
            f"budget={format_bytes(allowed)}: the interpreter and its libraries alone hold {format_bytes(held)}, "
            f"{format_bytes(held - allowed)} too much. What would fit: more than {format_bytes(held)}"
        )


def plan_for(prepared: Prepared, budget: Budget, training: TrainingConfig, fixed_bytes: int | None = None) -> RunPlan:
    """Chooses by tracing the very objective and optimizer that will run, on the longest rows of the data.

    ``fixed_bytes``: what the process holds without the model, None measures it.
    """
    arguments = arguments_of(training, pace=pace_of(prepared.model), folder="unused", steps=1, device=budget.device)
    step = TrainingStep(
        build_model=prepared.model.blueprint,
        objective=prepared.objective,
        example_batch=partial(_example, prepared),
        make_optimizer=partial(make_optimizer, args=arguments),
        length=int(max(prepared.lengths)),
        mask=MASK,
        columns=prepared.task.columns(prepared.settings),
        max_grad_norm=training.max_grad_norm,
        in_backward=training.in_backward,
    )
    if training.plan is not None:
        return RunPlan(training.plan, budget, step, _way(training.plan, training, prepared))
    plan = choose(
        step,
        budget,
        effective_batch=training.effective_batch,
        fixed_bytes=fixed_bytes,
        checkpointing=training.checkpointing,
    )
    way = _way(plan, training, prepared)
    return RunPlan(replace(plan, exact=way.exact), budget, step, way)


def _way(plan: Plan, training: TrainingConfig, prepared: Prepared) -> Setting:
    return Setting(
        micro_batch=plan.micro_batch,
        optimizer=training.optimizer,
        dtype=training.dtype,
        adapter=prepared.adapter,
        base=prepared.base,
        moving=training.in_backward,
    )


def _example(prepared: Prepared, rows: int, length: int) -> dict[str, Tensor]:
    """Rows of the data as training cuts them; of another length than the longest, rows of that length without meaning."""
    if length == int(max(prepared.lengths)):
        return prepared.longest(rows)
    return prepared.task.example_batch(prepared.settings, rows, length)
