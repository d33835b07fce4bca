"""How long a run trains: a number of updates, of epochs, or of seconds turned into updates by a short measurement."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from jieyue.data.batch import effective_batches
from jieyue.errors import InputError
from jieyue.training.accumulation import accumulate

__all__ = ["course_for_seconds", "num_positions", "seconds_per_position"]


def num_positions(lengths: numpy.ndarray, batches: Sequence[Any], micro_batch: int) -> int:
    """Positions that pass through the model, padding of each piece included: what time is proportional to."""
    total = 0
    for batch in batches:
        own = lengths[batch]
        total += sum(int(own[at : at + micro_batch].max()) * len(own[at : at + micro_batch]) for at in range(0, len(own), micro_batch))
    return total


def seconds_per_position(
    model: Any,
    make_optimizer: Callable[[Any], Any],
    objective: Any,
    batches: Sequence[dict[str, Any]],
    micro_batch: Any,
) -> float:
    """Seconds of one position of one update, optimizer included; measured on a copy of the model, which is then dropped.

    The first batch warms up, the others are timed; the median of their rates counts.
    """
    twin = copy.deepcopy(model).train()
    optimizer = make_optimizer(twin)
    rates = []
    for number, batch in enumerate(batches):
        started = time.perf_counter()
        accumulate(objective, twin, batch, micro_batch=micro_batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number:
            rates.append((time.perf_counter() - started) / batch["input_ids"].numel())
    return float(numpy.median(rates))


def course_for_seconds(
    seconds: float,
    rate: float,
    lengths: numpy.ndarray,
    effective_batch: int,
    micro_batch: int,
    **options: Any,
) -> list[Any]:
    """The longest course of batches (``effective_batches`` with ``options``) that ``rate`` seconds a position allow."""

    def lasts(steps: int) -> float:
        return rate * num_positions(lengths, effective_batches(lengths, effective_batch, steps=steps, **options), micro_batch)

    if lasts(1) > seconds:
        raise InputError(f"time={seconds:.0f} s: one update takes {lasts(1):.1f} s; expected time for at least one")
    fewest, most = 1, 2
    while lasts(most) <= seconds:
        fewest, most = most, most * 2
    while most - fewest > max(1, fewest // 200):
        middle = (fewest + most) // 2
        fewest, most = (middle, most) if lasts(middle) <= seconds else (fewest, middle)
    return effective_batches(lengths, effective_batch, steps=fewest, **options)
