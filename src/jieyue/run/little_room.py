"""Where a budget leaves little room: freed memory is kept below a wall, goes back at once, or smaller pieces leave room for it.

    below a wall     tcmalloc keeps what was freed while pieces run, and gives back what would pass the budget
    as planned       the largest pieces; every freed block goes back to the system, and its pages are touched anew
    roomier          the largest pieces whose peak fits twice; malloc keeps what was freed

All are exact and keep the budget. The first costs least and needs tcmalloc, and a little room: where the planned pieces do not leave
it, those that do are taken. Under glibc one piece of each of the others is run a few times on fresh weights of the run's own model,
and the faster update is taken.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from jieyue.budget import Budget, Plan, format_seconds
from jieyue.errors import BudgetError
from jieyue.malloc import give_back_freed_memory, keep_freed_memory, malloc_name, release_free_memory
from jieyue.planning.choice import choose
from jieyue.planning.prediction import TrainingStep
from jieyue.timer import take_turns
from jieyue.training.accumulation import backward_pieces
from jieyue.training.checkpointing import checkpointed
from jieyue.training.microbatch import MicroBatch

from .config import TrainingConfig
from .plan import RunPlan

__all__ = ["HEADROOM", "settled", "update_seconds"]

_TCMALLOC = (
    "install libtcmalloc-minimal4 (gperftools), which the command line finds by itself; in Python, start the process with "
    "LD_PRELOAD=libtcmalloc_minimal.so.4"
)
HEADROOM = 0.03  # of the tensors' peak: predictions are within 1 %, and what is free in pieces too small serves nobody
LIBRARIES_BYTES = 48 * 2**20  # oneDNN's kernels of every length that it meets, threads' own memory
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
    if not planned.tight or planned.budget.device != "cpu":  # malloc serves the processor's tensors
        return planned, ""
    one = not torch.distributed.is_torchelastic_launched()
    free = one and training.plan is None and not planned.step.in_backward  # to take smaller pieces
    if malloc_name() == "tcmalloc":
        return _below_a_wall(planned, training, one, free)
    roomy = _smaller(planned, training, 1.0) if free else None
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


def _below_a_wall(planned: RunPlan, training: TrainingConfig, one: bool, free: bool) -> tuple[RunPlan, str]:
    """tcmalloc is held below the budget while pieces run, where live tensors leave room for an error of the prediction."""
    cost, allowed = planned.plan.predicted, planned.budget.memory_bytes
    assert cost is not None and allowed is not None  # it is tight
    given = give_back_freed_memory()
    walled = planned if cost.process_bytes + HEADROOM * cost.peak_bytes + LIBRARIES_BYTES <= allowed else None
    if walled is None and free:
        walled = _smaller(planned, training, HEADROOM, LIBRARIES_BYTES)
    if given and walled is not None and one and not planned.step.in_backward:
        told = "Little room is left: freed memory is kept while it stays within the budget"
        return replace(walled, wall_bytes=allowed), told
    return planned, "Little room is left: freed memory goes back to the system at once" if given else ""


def _smaller(planned: RunPlan, training: TrainingConfig, room: float, aside_bytes: int = 0) -> RunPlan | None:
    """The same run in pieces whose peak leaves ``room`` times itself and ``aside_bytes`` of what is allowed; None where none do."""
    cost, allowed = planned.plan.predicted, planned.budget.memory_bytes
    if cost is None or allowed is None:
        return None
    left = cost.fixed_bytes + int((allowed - cost.fixed_bytes - aside_bytes) / (1 + room))
    try:
        plan = choose(
            planned.step,
            Budget(memory_bytes=left, device=planned.budget.device),
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
