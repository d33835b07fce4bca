"""Where a budget leaves little room: freed memory goes back at once, or smaller pieces leave room for what malloc keeps.

    as planned       the largest pieces; every freed block goes back to the system, and its pages are touched anew
    roomier          the largest pieces whose peak fits twice; malloc keeps what was freed

Both are exact and keep the budget. tcmalloc hardly minds giving back, so the plan stays. Under glibc one piece of each is run a
few times on fresh weights of the run's own model, and the faster update is taken.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from jieyue.budget import Budget, Plan, format_seconds
from jieyue.errors import BudgetError
from jieyue.machine import give_back_freed_memory, keep_freed_memory, malloc_name, release_free_memory
from jieyue.planning.choice import choose
from jieyue.planning.prediction import TrainingStep
from jieyue.timer import take_turns
from jieyue.training.accumulation import backward_pieces
from jieyue.training.checkpointing import checkpointed
from jieyue.training.microbatch import MicroBatch

from .config import TrainingConfig
from .plan import RunPlan

__all__ = ["settled", "update_seconds"]

_TCMALLOC = (
    "install libtcmalloc-minimal4 (gperftools), which the command line finds by itself; in Python, start the process with "
    "LD_PRELOAD=libtcmalloc_minimal.so.4"
)
REPEATS = 2  # after a first one; the fastest counts
SLOW_SECONDS, COLD_SECONDS = 2.0, 6.0  # a piece slower than the first is timed once, than the second by its first run


def settled(
    planned: RunPlan,
    training: TrainingConfig,
    timed: Callable[[TrainingStep, Plan], float] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[RunPlan, str]:
    """The plan to obey, malloc told accordingly, and what to say of it; as it came, and "", where there is room.

    ``timed``: seconds of an update under a plan (``update_seconds``); ``say``: is told before it is asked. Of several processes each
    keeps the plan, as they would time differently. Cost under glibc: a few passes of one piece of each, within the budget; one,
    where a piece takes long.
    """
    if not planned.tight:
        return planned, ""
    if malloc_name() == "tcmalloc":
        told = "Little room is left: freed memory goes back to the system at once"
        return planned, told if give_back_freed_memory() else ""
    one = not torch.distributed.is_torchelastic_launched()
    roomy = _roomier(planned, training) if one and training.plan is None and not planned.step.in_backward else None
    if roomy is None:
        told = (
            "Little room is left: freed memory goes back to the system at once, which takes up to twice the time under this "
            f"malloc. Under tcmalloc it would not: {_TCMALLOC}"
        )
        return planned, told if give_back_freed_memory() else ""
    timed = timed or update_seconds
    say(f"Little room is left: timing pieces of {planned.plan.micro_batch} and of {roomy.plan.micro_batch} rows")
    kept = timed(planned.step, roomy.plan)
    if not give_back_freed_memory():
        return planned, ""
    back = timed(planned.step, planned.plan)
    gain = f"Under tcmalloc neither would be paid for: {_TCMALLOC}"
    between = (
        f"pieces of {planned.plan.micro_batch} rows that give freed memory back at once, {format_seconds(back)} an update, "
        f"or pieces of {roomy.plan.micro_batch} that leave room for it, {format_seconds(kept)}"
    )
    if kept < back and keep_freed_memory():
        return roomy, f"Little room is left: {between}. The smaller ones are taken. {gain}"
    return planned, f"Little room is left: {between}. The larger ones are taken. {gain}"


def _roomier(planned: RunPlan, training: TrainingConfig) -> RunPlan | None:
    """The same run in pieces whose peak fits twice into what the process leaves; None where none do."""
    cost, allowed = planned.plan.predicted, planned.budget.memory_bytes
    if cost is None or allowed is None:
        return None
    half = Budget(memory_bytes=(allowed + cost.fixed_bytes) // 2, device=planned.budget.device)
    try:
        plan = choose(
            planned.step,
            half,
            effective_batch=planned.plan.effective_batch,
            fixed_bytes=cost.fixed_bytes,
            checkpointing=training.checkpointing,
        )
    except BudgetError:
        return None
    way = replace(planned.way, micro_batch=plan.micro_batch)
    return replace(planned, plan=replace(plan, exact=planned.plan.exact, rejected=planned.plan.rejected), way=way)


def update_seconds(step: TrainingStep, plan: Plan) -> float:
    """Seconds of an update's passes, by one piece of rows as long as the longest, on fresh weights."""
    with torch.random.fork_rng():
        fastest = _passes(step, plan)
    gc.collect()
    release_free_memory()
    return fastest * plan.effective_batch / plan.micro_batch


def _passes(step: TrainingStep, plan: Plan) -> float:
    model = step.build_model().train()
    micro = MicroBatch(plan.micro_batch, mask=step.mask, columns=step.columns)
    pieces = list(micro.pieces(step.example_batch(plan.micro_batch, step.length)))
    with checkpointed(model, plan.checkpointing):
        piece = {"": partial(backward_pieces, step.objective, model, pieces)}
        return min(take_turns(piece, REPEATS, slow_seconds=SLOW_SECONDS, cold_seconds=COLD_SECONDS)[""])
