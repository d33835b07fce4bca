"""Many short dialogues in one row, none seeing another: positions start again at each, and so does what may be attended to.

transformers reads restarting ``position_ids`` (without an attention mask) as separate documents; a row of n dialogues then
costs what its tokens cost and no padding. Dialogues are cut nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from jieyue.errors import InputError

from .batch import IGNORED
from .mapped import ANY_TURN, LAST_TURN, REPLY, MappedTokens

__all__ = ["LOSS_ON", "DialogueRows", "next_labels", "pack"]

LOSS_ON = {"all": ANY_TURN, "replies": REPLY, "last": LAST_TURN}
_OPEN = 64  # rows that are being filled at once


def next_labels(ids: numpy.ndarray, marks: numpy.ndarray, loss_on: str) -> numpy.ndarray:
    """What each position is to say next: the token after it where that is marked, else -100; nothing after the last."""
    labels = numpy.full(len(ids), IGNORED, dtype=numpy.int32)
    wanted = (marks[1:] & LOSS_ON[loss_on]) > 0
    labels[:-1][wanted] = ids[1:][wanted]
    return labels


def pack(lengths: Sequence[int] | numpy.ndarray, row_tokens: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Which dialogues share a row: (numbers of the dialogues in order of rows, where each row begins, and the end).

    Each goes into the fullest of the open rows that has room (best fit), rows close when they are full or when too many are
    open; a dialogue longer than ``row_tokens`` has a row alone. Deterministic; n·64 steps.

    >>> order, starts = pack([5, 3, 2, 4], 8)
    >>> [order[a:b].tolist() for a, b in zip(starts, starts[1:])]
    [[0, 1], [2, 3]]
    """
    if row_tokens < 1:
        raise InputError(f"row_tokens={row_tokens}: expected at least 1")
    rooms: list[int] = []
    rows: list[list[int]] = []
    done: list[list[int]] = []
    for number, length in enumerate(lengths):
        fitting = [(room, place) for place, room in enumerate(rooms) if room >= length]
        if fitting:
            _, place = min(fitting)
            rooms[place] -= int(length)
            rows[place].append(number)
        else:
            if len(rows) == _OPEN:  # the fullest has the least hope
                place = rooms.index(min(rooms))
                done.append(rows.pop(place))
                del rooms[place]
            rooms.append(row_tokens - int(length))
            rows.append([number])
    done += rows
    starts = numpy.cumsum([0, *map(len, done)])
    order = numpy.fromiter((number for row in done for number in row), dtype=numpy.int64, count=int(starts[-1]))
    return order, starts


class DialogueRows(Sequence[dict[str, numpy.ndarray]]):
    """Training rows over mapped tokens: ``input_ids``, ``labels`` (shifted) and ``position_ids`` of one dialogue or several.

    ``row_tokens``: None = a row for each dialogue; else rows are packed to at most so many tokens. ``lengths``: of the rows.
    """

    def __init__(self, tokens: MappedTokens, loss_on: str = "all", row_tokens: int | None = None) -> None:
        if loss_on not in LOSS_ON:
            raise InputError(f"loss_on={loss_on!r}: expected one of {', '.join(LOSS_ON)}")
        self.tokens, self.loss_on = tokens, loss_on
        self.is_packed = row_tokens is not None
        if row_tokens is None:
            self.order, self.starts = numpy.arange(len(tokens)), numpy.arange(len(tokens) + 1)
        else:
            self.order, self.starts = pack(tokens.lengths, row_tokens)
        own = tokens.lengths[self.order]
        self.lengths = numpy.add.reduceat(own, self.starts[:-1]) if len(own) else own

    @property
    def digest(self) -> str | None:
        """Identifies what the tokens were made from, where they are kept (``keep_tokens``)."""
        return self.tokens.counts.get("digest")

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        parts = [self.tokens[one] for one in self.order[self.starts[number] : self.starts[number + 1]]]
        row = {
            "input_ids": numpy.concatenate([ids for ids, _ in parts]),
            "labels": numpy.concatenate([next_labels(ids, marks, self.loss_on) for ids, marks in parts]),
        }
        if self.is_packed:
            row["position_ids"] = numpy.concatenate([numpy.arange(len(ids), dtype=numpy.int32) for ids, _ in parts])
        return row
