"""One normaliser over disjoint parts of the keys: a softmax over some, inner products of features over others.

    o_i = [e^(lse_i − m_i) a_i + Σ_p e^(−m_i) W_ip b_ip] / [e^(lse_i − m_i) + Σ_p e^(−m_i) W_ip]

(a, lse) is the softmax part, (b_p, W_p) a linear part's output and its sum of weights; m_i = max(lse_i, log W_ip) only keeps the
exponentials small, so it takes no gradient. No part is formed by subtracting another. A query without weight gives zeros.

Letters: B batch, H query heads, N queries, V size of a value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["LinearPart", "rows_from", "rows_until", "unite"]

LinearPart = tuple[Tensor, Tensor]  # out [B, H, N, V] and the sum of weights [B, H, N] that it was divided by


def unite(softmax_part: tuple[Tensor, Tensor] | None, linear_parts: Sequence[LinearPart]) -> Tensor:
    """o [B, H, N, V] in the type of the sums (float32, float64), differentiable to any order."""
    levels = [mass.detach().log() for _, mass in linear_parts]
    if softmax_part is not None:
        levels.append(softmax_part[1].detach())
    level = torch.stack(levels).amax(0)
    level = torch.where(level.isneginf(), 0.0, level)
    shares = [(out, mass * (-level).exp()) for out, mass in linear_parts]
    if softmax_part is not None:
        shares.append((softmax_part[0], (softmax_part[1] - level).exp()))
    total = sum(share for _, share in shares[1:]) + shares[0][1]
    total = torch.where(total > 0, total, torch.inf)
    terms = [out * (share / total)[..., None] for out, share in shares]
    return sum(terms[1:], terms[0])


def rows_from(part: LinearPart, first: int) -> LinearPart:
    """A part that only the queries from ``first`` on have, as one of all queries: no weight before."""
    out, mass = part
    return pad(out, (0, 0, first, 0)), pad(mass, (first, 0))


def rows_until(part: LinearPart, missing: int) -> LinearPart:
    """A part that the last ``missing`` queries do not have, as one of all queries."""
    out, mass = part
    return pad(out, (0, 0, 0, missing)), pad(mass, (0, missing))
