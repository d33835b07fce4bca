"""How often each row was seen before: what a recipe that draws anew at every visit draws from, instead of a random state.

Rows are numbered 0 … n − 1; the v-th visit of row r becomes number r + v·n, known before training begins. So what is drawn
depends on (seed, row, visit) alone: not on the micro-batch, the number of processes, or where a run was interrupted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import overload

from jieyue.tasks import Row

__all__ = ["Visited", "visits"]


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
