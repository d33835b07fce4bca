"""Packed rows: a linear map, or a hybrid, over each run of a segment by itself, so that its sums start anew there.

Runs of one length are computed together, as rows of a batch. Rows of no segment give zeros and take no part.

Letters: B batch, H query heads, G key heads, N positions, D size of a query or key, V size of a value.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from jieyue.attention.checks import check_segments
from jieyue.attention.segments import runs_of

__all__ = ["run_by_run"]

_Place = tuple[int, int, int]  # row of the batch, first position, one past the last


def run_by_run(
    call: str,
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
    segments: Tensor,
) -> Tensor:
    """``attend(q, k, v, key_mask)`` of each run: out [B, H, N, V]; ``segments`` [B, N] as in ``jieyue.attend``.

    Cost: that of the runs, and a copy of q, k and v. Refuses what ``jieyue.attend`` refuses of segments.
    """
    q, k, v, key_mask = tensors
    check_segments(call, q, k, 0, segments)
    runs = runs_of(segments)
    if isinstance(runs, FakeTensor):  # a trace for its shapes has no ids: as if each row were one run
        return attend(q, k, v, key_mask)
    by_length: dict[int, list[_Place]] = {}
    for row, ends in enumerate(runs.transpose(0, 1).tolist()):
        for first, end in sorted({pair for pair in zip(*ends, strict=True) if pair[1]}):
            by_length.setdefault(end - first, []).append((row, first, end))
    found: dict[_Place, Tensor] = {}
    for places in by_length.values():
        parts = (torch.cat([x[b : b + 1, :, first:end] for b, first, end in places]) for x in (q, k, v))
        mask = None if key_mask is None else torch.cat([key_mask[b : b + 1, first:end] for b, first, end in places])
        own_q, own_k, own_v = parts
        out = attend(own_q, own_k, own_v, mask)
        found |= {place: out[number : number + 1] for number, place in enumerate(places)}
    return _joined(found, q, v)


def _joined(found: dict[_Place, Tensor], q: Tensor, v: Tensor) -> Tensor:
    """The runs' results where they belong, zeros between them; [B, N, H, V] in memory."""
    batch, heads, num_rows, _ = q.shape
    rows = []
    for b in range(batch):
        pieces, at = [], 0
        for (_, first, end), out in sorted(
            (item for item in found.items() if item[0][0] == b), key=lambda item: item[0]
        ):
            pieces += [q.new_zeros(1, heads, first - at, v.shape[3])] * (first > at) + [out]
            at = end
        pieces += [q.new_zeros(1, heads, num_rows - at, v.shape[3])] * (num_rows > at)
        rows.append(torch.cat([piece.transpose(1, 2) for piece in pieces], 1))
    return torch.cat(rows).transpose(1, 2)
