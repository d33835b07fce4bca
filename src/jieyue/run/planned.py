"""The plan of a run: predicted before a weight is allocated, compared afterwards with what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jieyue.budget import Budget, Plan
from jieyue.hf.optimizers import make_optimizer
from jieyue.hf.use import use
from jieyue.planning.choice import choose
from jieyue.planning.measurement import measure_step
from jieyue.planning.prediction import TrainingStep, predict
from jieyue.planning.setting import Setting
from jieyue.training.accumulation import accumulate
from jieyue.training.microbatch import MicroBatch

from .arguments import arguments_of
from .waterfall import Step, Waterfall

if TYPE_CHECKING:
    from .training import Trained
    from .values import Course, Prepared

__all__ = ["Planned", "against_length", "measure", "plan_for", "prices", "savings"]

MASK = "attention_mask"


@dataclass(frozen=True)
class Planned:
    """The chosen plan, what was allowed, the step that was traced; ``way``: the course's optimizer and dtype, and their label."""

    plan: Plan
    budget: Budget
    step: TrainingStep
    way: Setting

    @property
    def tight(self) -> bool:
        """Whether what malloc keeps of freed blocks (up to as much again as the tensors' peak) could break the budget."""
        cost, allowed = self.plan.predicted, self.budget.memory_bytes
        return cost is not None and allowed is not None and cost.process_bytes + cost.peak_bytes > allowed


def plan_for(prepared: Prepared, budget: Budget, course: Course) -> Planned:
    """Chooses by tracing the very objective and optimizer that will run, on rows as long as the longest of the data."""
    is_preset = prepared.model.is_preset
    arguments = arguments_of(course, is_preset=is_preset, folder="unused", steps=1, device=budget.device)
    step = TrainingStep(
        build_model=prepared.model.blueprint,
        objective=prepared.objective,
        example_batch=partial(prepared.task.recipe.example, prepared.settings),
        make_optimizer=partial(make_optimizer, args=arguments),
        length=int(max(prepared.lengths)),
    )
    plan = choose(step, budget, effective_batch=course.effective_batch, checkpointing=course.checkpointing)
    way = Setting(micro_batch=plan.micro_batch, optimizer=course.optimizer, dtype=course.dtype)
    return Planned(replace(plan, exact=way.exact), budget, step, way)


def measure(prepared: Prepared, planned: Planned, trained: Trained) -> dict[str, Any]:
    """One more update with the run's own model and optimizer on the longest rows: live bytes, against the prediction."""
    plan = replace(planned.plan, micro_batch=min(planned.plan.micro_batch, trained.facts["micro_batch"]))
    peak = _peak(prepared, trained, plan)
    on_gpu = planned.budget.device != "cpu"
    return {
        "peak_bytes": peak,
        "peak_how": "max_memory_allocated"
        if on_gpu
        else "live bytes of torch's allocator, one warm update on the longest rows",
        "fixed_bytes": None,
        "fixed_how": "resident before a weight was allocated: interpreter, libraries, data",
        "process_bytes": trained.facts["process_peak_bytes"],
        "process_how": "highest resident set (VmHWM) up to the end of training"
        + ("" if planned.tight else "; malloc may keep freed blocks, as the budget leaves room for them"),
    }


def savings(prepared: Prepared, planned: Planned, trained: Trained, measured: Mapping[str, Any]) -> Waterfall:
    """One update in settings of growing thrift, measured on the run's own model: the waterfall of this run.

    The undivided batch comes first; what would not fit the budget has its predicted peak and is not run.
    """
    plan, allowed, steps = planned.plan, planned.budget.memory_bytes, []
    assert plan.predicted is not None
    for added, setting in _thrift(plan):
        cost = predict(
            planned.step,
            effective_batch=setting.effective_batch,
            micro_batch=setting.micro_batch,
            checkpointing=setting.checkpointing,
        )
        step = Step(added=added, update=planned.way.update, predicted_bytes=cost.peak_bytes)
        if allowed is not None and cost.peak_bytes + plan.predicted.fixed_bytes > allowed:
            steps.append(replace(step, how="beyond the budget, not run"))
            continue
        peak = measured["peak_bytes"] if setting == plan else _peak(prepared, trained, setting)
        steps.append(replace(step, measured_bytes=peak, seconds=_seconds(prepared, trained, setting)))
    return Waterfall(steps=tuple(steps), effective_batch=plan.effective_batch, positions=planned.step.length)


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


def against_length(
    prepared: Prepared, planned: Planned, attention: str, lengths: Sequence[int] = (512, 2048, 8192)
) -> list[dict[str, Any]]:
    """One training step of one row at growing lengths, with full attention and with the pattern: peak bytes and seconds.

    Measured on fresh weights of the same model, warm, in this process; a length whose predicted peak is beyond the budget
    is predicted only. Lengths beyond the model's positions are left out.
    """
    rows = []
    allowed, fixed = planned.budget.memory_bytes, planned.plan.predicted.fixed_bytes if planned.plan.predicted else 0
    for length in lengths:
        if length > prepared.model.positions:
            continue
        for name in ("full()", attention):
            build = partial(_patterned, prepared.model.plain, name)
            step = replace(planned.step, length=length, build_model=build)
            cost = predict(step, effective_batch=1, micro_batch=1)
            row: dict[str, Any] = {"length": length, "attention": name, "seconds": None, "how": "predicted"}
            row["peak_bytes"] = cost.peak_bytes
            if allowed is None or cost.peak_bytes + fixed <= allowed:
                row |= _timed_step(step)
            rows.append(row)
    return rows


def _patterned(plain: Callable[[], Any], attention: str) -> Any:
    model = plain()
    use(model, attention=None if attention == "full()" else attention)
    return model


def _timed_step(step: TrainingStep) -> dict[str, Any]:
    model = step.build_model().train()
    optimizer = step.make_optimizer(model)
    batch = step.example_batch(1, step.length)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        accumulate(step.objective, model, batch, micro_batch=1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    peak = measure_step(step.objective, model, batch, optimizer, micro_batch=1)
    return {"peak_bytes": peak, "seconds": min(seconds[1:]), "how": "measured"}


def _peak(prepared: Prepared, trained: Trained, plan: Plan) -> int:
    model, optimizer = _parts(trained)
    batch = prepared.longest(plan.effective_batch)
    return measure_step(prepared.objective, model, batch, optimizer, micro_batch=MicroBatch(plan, mask=MASK))


def _seconds(prepared: Prepared, trained: Trained, plan: Plan) -> float:
    """Seconds of forward and backward of one update on the longest rows, warm; its gradients are dropped."""
    model, _ = _parts(trained)
    batch = prepared.longest(plan.effective_batch)
    started = time.perf_counter()
    accumulate(prepared.objective, model.train(), batch, micro_batch=MicroBatch(plan, mask=MASK))
    seconds = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    return seconds


def prices(prepared: Prepared, planned: Planned, trained: Trained, remedies: Sequence[Any]) -> list[dict[str, Any]]:
    """Peak and seconds of one update on the longest rows: without remedies, and with one more of them each time."""
    plan, rows = planned.plan, []
    for count in range(len(remedies) + 1):
        objective = prepared.task.recipe.objective
        for remedy in remedies[:count]:
            objective = remedy(objective)
        one = replace(prepared, objective=objective)
        _seconds(one, trained, plan)  # warm
        seconds = min(_seconds(one, trained, plan) for _ in range(2))
        name = f"and {remedies[count - 1]}" if count else "the recipe's objective"
        rows.append({"objective": name, "peak_bytes": _peak(one, trained, plan), "seconds": seconds})
    return rows


def _parts(trained: Trained) -> tuple[Any, Any]:
    optimizer = trained.trainer.optimizer
    inner: Callable[..., Any] | None = getattr(optimizer, "optimizer", None)
    return trained.trainer.model, inner or optimizer
