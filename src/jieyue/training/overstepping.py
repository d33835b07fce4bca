"""Who holds an optimizer, and learning-rate schedulers that are stepped more often than it updates."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["Watch", "holders"]


def holders(optimizer: Optimizer) -> list[object]:
    """The objects that keep the optimizer as an attribute."""
    found: list[object] = []
    for one in gc.get_referrers(optimizer):
        found += gc.get_referrers(one) if isinstance(one, dict) and "optimizer" in one else [one]
    return found


@dataclass
class _Seen:
    """A scheduler, its ``last_epoch`` when last looked at, and its moves since it was first seen."""

    schedule: weakref.ref[LRScheduler]
    last_epoch: int
    moves: int = 0


class Watch:
    """Notices schedulers that are stepped more often than updates happen, and warns once.

    A scheduler knows its optimizer but not the other way round; torch marks the ``step`` of an optimizer that has one. When
    the mark is first seen the schedulers are looked up among what refers to the optimizer, once.
    """

    def __init__(self) -> None:
        self.seen: list[_Seen] = []
        self.marks = 0
        self.updates = 0
        self.warned = False

    def look(self, both: Sequence[Optimizer], updates: int) -> None:
        """``both``: an optimizer and the one inside it; ``updates``: how many it has done."""
        marks = sum(hasattr(one.step, "_wrapped_by_lr_sched") for one in both)
        if marks != self.marks:
            found = [one for inner in both for one in holders(inner) if isinstance(one, LRScheduler)]
            unique = {id(one): one for one in found}
            self.seen = [_Seen(weakref.ref(one), one.last_epoch) for one in unique.values()]
            self.marks, self.updates = marks, updates
        for entry in self.seen:
            schedule = entry.schedule()
            if schedule is not None and schedule.last_epoch != entry.last_epoch:
                entry.last_epoch, entry.moves = schedule.last_epoch, entry.moves + 1
            if entry.moves > updates - self.updates and not self.warned:
                self.warned = True
                warnings.warn(
                    f"{type(schedule).__name__} was stepped {entry.moves} times in {updates - self.updates} updates;"
                    " hand it over (schedule=) or step it `if optimizer.updated:`",
                    stacklevel=4,
                )
