"""The dense engine: the definition, computed with the whole score matrix. The oracle, and the engine for small sizes.

    s_ij = scale·q_i·k_j where the pattern and the key mask show (i, j), −∞ elsewhere;  lse_i = log Σ_j e^s_ij;
    out_i = Σ_j kept_ij e^(s_ij − lse_i) v_j / (1 − dropout);   a query that sees nothing gives out = 0, lse = −∞.

Memory B·H·N·M: refuses N·M > 512². Any device and any floating type.

Letters: B batch, H query heads, G key heads, R = H/G, N queries, M keys, D size of a query, V size of a value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jieyue.attention.dropout import kept, row_keys
from jieyue.attention.pattern import Band, shown

__all__ = ["DENSE", "MOST_PAIRS", "Dense"]

MOST_PAIRS = 512 * 512


class Dense:
    """The engine; ``weights`` is the part that both passes share."""

    name = "dense"

    def refuses(self, call: Any) -> str | None:
        n, m = call.q.shape[2], call.k.shape[2]
        if n * m > MOST_PAIRS:
            return f"the dense engine keeps all scores, and N·M = {n}·{m} is more than 512²"
        return None

    def forward_union(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bands: tuple[Band, ...],
        *,
        key_mask: Tensor | None,
        scale: float,
        dropout: float,
        seed: int,
        q_offset: int,
    ) -> tuple[Tensor, Tensor]:
        """out [B, H, N, V] and lse [B, H, N] of disjoint bands in one softmax."""
        scores = self.scores(q, k, bands, key_mask, scale, q_offset)
        lse = scores.logsumexp(-1)
        weights = (scores - _anchor(lse)[..., None]).exp()
        if dropout:
            weights = weights * self.keep_scale(q, k.shape[2], dropout, seed, q_offset)
        groups = k.shape[1]
        out = (_grouped(weights, groups) @ v[:, :, None]).flatten(1, 2)
        return out, lse

    def backward_union(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lse: Tensor,
        delta: Tensor,
        bands: tuple[Band, ...],
        *,
        key_mask: Tensor | None,
        scale: float,
        dropout: float,
        seed: int,
        q_offset: int,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv, given lse and delta of the whole softmax (of which these bands may be a part)."""
        groups = k.shape[1]
        weights = (self.scores(q, k, bands, key_mask, scale, q_offset) - _anchor(lse)[..., None]).exp()
        weights = weights.masked_fill(torch.isneginf(lse)[..., None], 0.0)
        grad_weights = (_grouped(grad_out, groups) @ v.transpose(-1, -2)[:, :, None]).flatten(1, 2)
        dropped = weights
        if dropout:
            keep = self.keep_scale(q, k.shape[2], dropout, seed, q_offset)
            dropped, grad_weights = weights * keep, grad_weights * keep
        grad_scores = _grouped(weights * (grad_weights - delta[..., None]) * scale, groups)
        dq = (grad_scores @ k[:, :, None]).flatten(1, 2)
        dk = (grad_scores.transpose(-1, -2) @ _grouped(q, groups)).sum(2)
        dv = (_grouped(dropped, groups).transpose(-1, -2) @ _grouped(grad_out, groups)).sum(2)
        return dq, dk, dv

    @staticmethod
    def scores(
        q: Tensor, k: Tensor, bands: tuple[Band, ...], key_mask: Tensor | None, scale: float, q_offset: int
    ) -> Tensor:
        """[B, H, N, M], −∞ where a query does not see a key."""
        n, m = q.shape[2], k.shape[2]
        i = torch.arange(q_offset, q_offset + n, device=q.device)
        sees = shown(bands, i, torch.arange(m, device=q.device))
        if key_mask is not None:
            sees = sees & key_mask[:, None, None, :]
        scores = (_grouped(q, k.shape[1]) @ k.transpose(-1, -2)[:, :, None]).flatten(1, 2)
        return (scores * scale).masked_fill(~sees, -torch.inf)

    @staticmethod
    def keep_scale(q: Tensor, m: int, dropout: float, seed: int, q_offset: int) -> Tensor:
        """What each weight is multiplied by: 0, or 1/(1 − dropout)."""
        i = torch.arange(q_offset, q_offset + q.shape[2], device=q.device)
        heads = torch.arange(q.shape[0] * q.shape[1], device=q.device).view(q.shape[:2])
        keep = kept(row_keys(seed, heads, i), torch.arange(m, device=q.device), dropout)
        return keep.to(q.dtype) / (1 - dropout)


DENSE = Dense()


def _anchor(lse: Tensor) -> Tensor:
    """lse, with 0 for rows that see nothing: −∞ − 0 stays −∞ and its exponential 0, where −∞ + ∞ would be NaN."""
    return torch.where(torch.isneginf(lse), 0.0, lse)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[B, H, ...] as [B, G, R, ...]: query head h reads key head h // R."""
    return x.unflatten(1, (groups, x.shape[1] // groups))
