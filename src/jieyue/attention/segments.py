"""Packed rows: from segment ids to the run of rows that each row may look at.

Letters: B batch, N rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jieyue.errors import InputError

__all__ = ["runs_of"]


def runs_of(segments: Tensor) -> Tensor:
    """[2, B, N] int32: the first and one past the last row of the run that a row belongs to; 0 and 0 for an id of −1.

    ``segments`` [B, N], whole numbers from −1 on. Refuses, with ``InputError``, an id below −1 and one that returns after another.

    >>> runs_of(torch.tensor([[5, 5, -1, 2]])).tolist()
    [[[0, 0, 0, 3]], [[2, 2, 0, 4]]]
    """
    found: Tensor = _runs(segments)
    return found


@torch.library.custom_op("jieyue::runs", mutates_args=())
def _runs(segments: Tensor) -> Tensor:
    batch, n = segments.shape
    ids = segments.long()
    least = int(ids.min())
    if least < -1:
        raise InputError(f"segments holds {least}, expected ids from 0 on, and −1 for rows of no segment")
    at = torch.arange(n, device=ids.device).expand(batch, n)
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    _refuse_returns(ids.masked_fill(~starts, -1))
    first = at.masked_fill(~starts, 0).cummax(1).values
    ends = torch.ones_like(starts)
    ends[:, :-1] = starts[:, 1:]
    stop = (at + 1).masked_fill(~ends, n).flip(1).cummin(1).values.flip(1)
    return torch.stack([first, stop]).masked_fill_(ids == -1, 0).int()


@_runs.register_fake
def _(segments: Tensor) -> Tensor:
    return segments.new_empty(2, *segments.shape, dtype=torch.int32)


def _refuse_returns(begun: Tensor) -> None:
    """``begun`` [B, N]: the id where a run begins, else −1."""
    ordered = begun.sort(1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        row, place = (int(x) for x in twice.nonzero()[0])
        raise InputError(
            f"segments: in row {row} the id {int(ordered[row, place])} fills more than one run, expected each id in one "
            "run of neighbouring positions"
        )
