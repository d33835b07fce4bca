"""Which rows each update of a run sees, in stages, for a number of updates, epochs or seconds, and how often each was seen before.

A task that draws anew at every visit draws from that number instead of a random state: rows are numbered 0 … n − 1, and the v-th
visit of row r becomes number r + v·n, known before training begins. So what is drawn depends on (seed, row, visit) alone: not on
the micro-batch, the number of processes, or where a run was interrupted.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy
import torch
from torch import Tensor, nn

from jieyue.data.batch import effective_batches
from jieyue.errors import InputError
from jieyue.tasks import Row
from jieyue.training.accumulation import accumulate
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import Objective

__all__ = [
    "Stage",
    "Visited",
    "num_positions",
    "seconds_per_position",
    "staged_batches",
    "updates_within",
    "visits",
]


@dataclass(frozen=True)
class Stage:
    """Rows ``first`` … ``stop`` − 1 are drawn from until the share ``until`` of all updates is done."""

    until: float
    first: int
    stop: int


def staged_batches(
    lengths: Sequence[int], stages: Sequence[Stage], effective_batch: int, *, steps: int, seed: int
) -> list[numpy.ndarray]:
    """The rows of every update: stage after stage, each ``effective_batches`` of its own rows."""
    batches: list[numpy.ndarray] = []
    for number, stage in enumerate(stages):
        count = round(stage.until * steps) - len(batches)
        if count > 0:
            own = effective_batches(
                lengths[stage.first : stage.stop], effective_batch, steps=count, seed=seed * 1009 + number
            )
            batches += [batch + stage.first for batch in own]
    return batches


def visits(batches: Sequence[Sequence[int]], num_rows: int) -> list[list[int]]:
    """The same batches, each row's number moved on by ``num_rows`` for every time that it was seen before.

    >>> visits([[0, 1], [1, 2], [1, 0]], 3)
    [[0, 1], [4, 2], [7, 3]]
    """
    seen: Counter[int] = Counter()
    found = []
    for batch in batches:
        own = []
        for number in batch:
            own.append(number + seen[number] * num_rows)
            seen[number] += 1
        found.append(own)
    return found


class Visited(Sequence[Row]):
    """Rows by those numbers: row r with ``visit`` = v. Nothing is copied but the small dictionary of a row."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def digest(self) -> str | None:
        """What the rows were made from, where they know it."""
        return getattr(self.rows, "digest", None)

    @overload
    def __getitem__(self, number: int) -> Row: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Row]: ...

    def __getitem__(self, number: int | slice) -> Row | Sequence[Row]:
        if isinstance(number, slice):
            return [self[at] for at in range(*number.indices(len(self)))]
        visit, row = divmod(number, len(self.rows))
        return {**self.rows[row], "visit": visit}


def num_positions(lengths: Sequence[int], batches: Sequence[numpy.ndarray], micro_batch: int) -> int:
    """Positions that pass through the model, padding of each piece included: what time is proportional to."""
    total, every = 0, numpy.asarray(lengths)
    for batch in batches:
        own = every[batch]
        for at in range(0, len(own), micro_batch):
            piece = own[at : at + micro_batch]
            total += int(piece.max()) * len(piece)
    return total


def seconds_per_position(
    model: nn.Module,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    objective: Objective,
    batches: Sequence[dict[str, Tensor]],
    micro_batch: MicroBatch,
) -> float:
    """Seconds of one position of one update, optimizer included; measured on a copy of the model, which is then dropped.

    The first two batches warm up, the others are timed together.
    """
    twin = copy.deepcopy(model).train()
    optimizer = make_optimizer(twin)
    positions, started = 0, 0.0
    for number, batch in enumerate(batches):
        if number == 2:
            started = time.perf_counter()
        accumulate(objective, twin, batch, micro_batch=micro_batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        positions += batch["input_ids"].numel() if number >= 2 else 0
    return (time.perf_counter() - started) / positions


def updates_within(seconds: float, lasts: Callable[[int], float]) -> int:
    """The largest number of updates that ``lasts(updates)`` predicts to take at most ``seconds`` (to half a per cent)."""
    if lasts(1) > seconds:
        raise InputError(f"time={seconds:.0f} s: one update takes {lasts(1):.1f} s; expected time for at least one")
    fewest, most = 1, 2
    while lasts(most) <= seconds:
        fewest, most = most, most * 2
    while most - fewest > max(1, fewest // 200):
        middle = (fewest + most) // 2
        fewest, most = (middle, most) if lasts(middle) <= seconds else (fewest, middle)
    return fewest
