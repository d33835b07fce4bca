"""How far attention over a pattern can be from attention over all keys: a bound for one query and head, and the deviation.

Let m be the softmax mass, under attention over all keys, of those that the pattern drops. Then o_full = (1 − m)·o_kept + m·o_dropped,
both convex means of values, so

    ‖o_kept − o_full‖ = m·‖o_kept − o_dropped‖ ≤ m·max ‖v_i − v_j‖ ≤ m·(max_kept ‖v‖ + max_dropped ‖v‖) ≤ 2·m·max ‖v‖

over keys i that are kept and j that are dropped, of those that the query sees at all. One kept key u and one dropped −u show that
it is tight. A sink is a kept key of value 0, and a query of which no key is kept gives 0, as a sink alone would. The bound is of
one layer's attention on the same q, k, v, before the output projection: what happens end to end is another question.

Letters: B batch, H query heads, G key heads, R rows that are looked at, N queries, M keys, D size of a query, V size of a value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Deviation", "deviation"]


class Deviation(NamedTuple):
    """Each float64 [H, R]. ``mass`` is m; ``tight``, ``by_norms`` and ``by_largest`` the three bounds, tightest first;
    ``distance`` the measured ‖o_kept − o_full‖; ``rounding`` what the float64 computation itself may be off by."""

    mass: Tensor
    tight: Tensor
    by_norms: Tensor
    by_largest: Tensor
    distance: Tensor
    rounding: Tensor

    @property
    def violated(self) -> Tensor:
        """True where the measured distance is above the tightest bound by more than rounding: never, if this file is right; and where
        one of them is no number."""
        return ~(self.distance <= self.tight + self.rounding)


def deviation(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sees: Tensor,
    kept: Tensor,
    *,
    scale: float,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> Deviation:
    """The bound and the deviation of R queries of one row of a batch, by their definition, in float64.

    q [H, R, D]; k [G, M, D], v [G, M, V]; ``sees`` and ``kept`` bool [R, M]: what attention over all keys shows to each query,
    and what the pattern leaves of it. ``sinks`` [H]: logits in both denominators. Cost: H·R·M·(D + V), and G·R·M·|kept| for the
    tightest form; memory H·R·M and G·M² numbers.
    """
    q, k, v = q.double(), k.double(), v.double()
    kept = kept & sees
    groups = q.shape[0] // k.shape[0]
    values = v.repeat_interleave(groups, 0)
    scores = q @ k.repeat_interleave(groups, 0).mT * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias.double()
    scores = scores.masked_fill(~sees, -torch.inf)
    lse = scores.logsumexp(-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.double()[:, None].expand_as(lse))
    weights = (scores - _finite(lse)[..., None]).exp()
    mass = (weights * (sees & ~kept)).sum(-1)
    near = scores.masked_fill(~kept, -torch.inf)
    near_lse = near.logsumexp(-1)
    if sinks is not None:
        near_lse = torch.logaddexp(near_lse, sinks.double()[:, None].expand_as(near_lse))
    near_weights = (near - _finite(near_lse)[..., None]).exp()
    distance = (near_weights @ values - weights @ values).norm(dim=-1)
    has_zero = ~kept.any(-1) if sinks is None else torch.ones_like(kept[:, 0])
    norms = v.norm(dim=-1)
    of_kept, of_dropped = _largest(norms, kept), _largest(norms, sees & ~kept)
    apart = _farthest(v, norms, sees, kept, has_zero)
    largest = 0.0 if bias is None else float(bias.abs().max())
    steps = k.shape[1] + q.shape[-1] * float(scale * q.norm(dim=-1).max() * k.norm(dim=-1).max()) + largest + 8
    rounding = 4 * torch.finfo(torch.float64).eps * steps * float(norms.max())
    return Deviation(
        mass,
        mass * apart.repeat_interleave(groups, 0),
        mass * (of_kept + of_dropped).repeat_interleave(groups, 0),
        mass * 2 * _largest(norms, sees).repeat_interleave(groups, 0),
        distance,
        torch.full_like(mass, rounding),
    )


def _farthest(v: Tensor, norms: Tensor, sees: Tensor, kept: Tensor, has_zero: Tensor) -> Tensor:
    """[G, R]: the largest ‖v_i − v_j‖ of a kept i and a dropped j, 0 where nothing is dropped; ``has_zero``: 0 is a kept value."""
    own = v - v.mean(
        1, keepdim=True
    )  # cdist by products loses the difference of values that are far from 0 and near one another
    apart = torch.cdist(own, own)  # [G, M, M]
    found = v.new_zeros(v.shape[0], len(kept))
    for row, (near, shown) in enumerate(zip(kept, sees, strict=True)):
        dropped = shown & ~near
        if not bool(dropped.any()):
            continue
        if bool(near.any()):
            found[:, row] = apart[:, near].amax(1)[:, dropped].amax(1)
        if bool(has_zero[row]):
            found[:, row] = torch.maximum(found[:, row], norms[:, dropped].amax(1))
    return found


def _largest(norms: Tensor, among: Tensor) -> Tensor:
    """[G, R]: the largest of norms [G, M] among the keys of each row [R, M]; 0 where there is none."""
    return norms[:, None].masked_fill(~among, 0.0).amax(-1)


def _finite(lse: Tensor) -> Tensor:
    return torch.where(torch.isneginf(lse), 0.0, lse)
