"""Attention with NEZHA's relative positions, which enter logits and values; in blocks of queries, no table of N·M·D.

    R_ij = table[clip(j − i, −w, w) + w],   s_ij = scale·q_i·(k_j + R_ij),   out_i = Σ_j softmax_j(s_ij) (v_j + R_ij)

q_i·R_ij takes 2w + 1 values a query: q @ tableᵀ, gathered by offset. Σ_j a_ij R_ij needs the weights by offset: a band of
2w − 1 of them and two sums, @ table. The backward pass recomputes a block's weights from the log-sum-exp:

    g = grad of out,  dP_ij = g_i·(v_j + R_ij),  dS = P ∘ (dP − g·out)·scale,  dq = dS k + bins(dS) @ table,  dk = dSᵀ q,  dv = Pᵀ g

Time O(B·H·N·M·D); memory beside q, k, v, out and their gradients: a block of weights. The table is fixed: it gets no gradient.

Letters: B batch, H heads, N queries, M keys, D size of a query, key and value, w the clipping distance, n queries of a block.
Source: Wei et al. 2019, "NEZHA: neural contextualized representation for Chinese language understanding" (arXiv 1909.00204).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jieyue.attention.dropout import draw_seed, kept, row_keys

__all__ = ["attend_relative", "position_table"]

_CPU_WEIGHTS = 2**20  # elements of one block of weights
_DEVICE_WEIGHTS = 2**25


def position_table(distance: int, width: int, like: Tensor) -> Tensor:
    """[2·distance + 1, width]: row p is (sin p·f₀, cos p·f₀, sin p·f₁, …), f_t = 10000^(−2t/width).

    Computed in float32, as those that the checkpoints were trained with, and then of ``like``'s dtype.
    """
    p = torch.arange(2 * distance + 1, dtype=torch.float32, device=like.device)[:, None]
    angles = p * torch.exp(
        torch.arange(0, width, 2, dtype=torch.float32, device=like.device) * (-math.log(1e4) / width)
    )
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :width].to(like.dtype)


def attend_relative(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    *,
    causal: bool = False,
    source: Tensor | None = None,
    key_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """out [B, H, N, D] of q [B, H, N, D] and k, v [B, H, M, D]; the newest query stands at the newest key.

    ``causal``: only keys at or before the query, and ``source`` [B, M] bool: keys that all may see besides. ``key_mask`` [B, M]
    bool, True = keep. A query that sees no key gives zeros. scale = D^−½. ``dropout``: as in ``attention.attend``.
    """
    seed = draw_seed() if dropout else None
    settings = _Settings(q.shape[3] ** -0.5, causal, dropout, k.shape[2] - q.shape[2])
    out: Tensor = _Relative.apply(q, k, v, table, source, key_mask, seed, settings)
    return out


@dataclass(frozen=True, slots=True)
class _Settings:
    scale: float
    causal: bool
    dropout: float
    q_offset: int


@dataclass(frozen=True, slots=True)
class _Block:
    """Some query rows at the positions i [n] among the keys j [M]; who sees whom [B or 1, 1, n, M], what dropout keeps."""

    rows: slice
    i: Tensor
    j: Tensor
    distance: int
    shown: Tensor | None
    stays: Tensor | None

    def scores(self, q: Tensor, k: Tensor, table: Tensor, scale: float) -> Tensor:
        """s [B, H, n, M], in float32 at least, −∞ where nothing is seen."""
        scores = _wide(q @ k.transpose(2, 3) + self.by_key(q @ table.T)) * scale
        return scores if self.shown is None else scores.masked_fill(~self.shown, -torch.inf)

    def by_key(self, by_offset: Tensor) -> Tensor:
        """[B, H, n, 2w + 1] -> [B, H, n, M]: the entry of each key's offset."""
        offsets = (self.j - self.i[:, None]).clamp(-self.distance, self.distance) + self.distance
        return by_offset.gather(3, offsets.expand(*by_offset.shape[:2], -1, -1))

    def by_offset(self, by_key: Tensor) -> Tensor:
        """[B, H, n, M] -> [B, H, n, 2w + 1]: the keys of equal offset added up; the transpose of ``by_key``."""
        near = self.i[:, None] + torch.arange(1 - self.distance, self.distance, device=by_key.device)
        inside = ((near >= 0) & (near < len(self.j))).to(by_key.dtype)
        index = near.clamp(0, len(self.j) - 1).expand(*by_key.shape[:2], -1, -1)
        offsets = self.j - self.i[:, None]
        ends = [offsets <= -self.distance, offsets >= self.distance]
        low, high = ((by_key * end.to(by_key.dtype)).sum(3, keepdim=True) for end in ends)
        return torch.cat([low, by_key.gather(3, index) * inside, high], 3)

    def dropped(self, weights: Tensor) -> Tensor:
        return weights if self.stays is None else weights * self.stays


class _Relative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        q, k, v, table, source, key_mask, seed, settings = inputs
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[:3], dtype=_wide(q[:0]).dtype)
        for block in _blocks(q, k, table, source, key_mask, seed, settings):
            scores = block.scores(q[:, :, block.rows], k, table, settings.scale)
            lse[:, :, block.rows] = scores.logsumexp(3)
            out[:, :, block.rows] = _read(block, _normalised(scores, lse[:, :, block.rows]).to(v.dtype), v, table)
        ctx.save_for_backward(q, k, v, table, source, key_mask, seed, out, lse)
        ctx.settings = settings
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, table, source, key_mask, seed, out, lse = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            again = _plain(q, k, v, table, source, key_mask, seed, ctx.settings)
            return (*torch.autograd.grad(again, (q, k, v), grads[0], create_graph=True), *(None,) * 5)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block in _blocks(q, k, table, source, key_mask, seed, ctx.settings):
            rows, g = q[:, :, block.rows], grads[0][:, :, block.rows]
            weights = _normalised(block.scores(rows, k, table, ctx.settings.scale), lse[:, :, block.rows])
            dv += block.dropped(weights).to(g.dtype).transpose(2, 3) @ g
            dweights = block.dropped(_wide(g @ v.transpose(2, 3) + block.by_key(g @ table.T)))
            delta = _wide(g * out[:, :, block.rows]).sum(3, keepdim=True)
            dscores = (weights * (dweights - delta) * ctx.settings.scale).to(q.dtype)
            dq[:, :, block.rows] = dscores @ k + block.by_offset(dscores) @ table
            dk += dscores.transpose(2, 3) @ rows
        return (dq, dk, dv, *(None,) * 5)


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    source: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    settings: _Settings,
) -> Tensor:
    """The same by operations that autograd knows to any order; keeps every block of weights."""
    parts = []
    for block in _blocks(q, k, table, source, key_mask, seed, settings):
        scores = block.scores(q[:, :, block.rows], k, table, settings.scale)
        parts.append(_read(block, _normalised(scores, scores.logsumexp(3)).to(v.dtype), v, table))
    return torch.cat(parts, 2)


def _read(block: _Block, weights: Tensor, v: Tensor, table: Tensor) -> Tensor:
    weights = block.dropped(weights)
    return weights @ v + block.by_offset(weights) @ table


def _normalised(scores: Tensor, lse: Tensor) -> Tensor:
    """e^(s − lse), zero in rows that see no key."""
    return (scores - lse.masked_fill(lse.isneginf(), 0.0)[..., None]).exp()


def _blocks(
    q: Tensor,
    k: Tensor,
    table: Tensor,
    source: Tensor | None,
    key_mask: Tensor | None,
    seed: Tensor | None,
    settings: _Settings,
) -> Iterator[_Block]:
    batch, heads, n = q.shape[:3]
    m = k.shape[2]
    most = _CPU_WEIGHTS if q.device.type == "cpu" else _DEVICE_WEIGHTS
    height = max(1, most // (batch * heads * m))
    j = torch.arange(m, device=q.device)
    for start in range(0, n, height):
        rows = slice(start, min(n, start + height))
        i = torch.arange(rows.start, rows.stop, device=q.device) + settings.q_offset
        shown = None
        if settings.causal:
            shown = (j <= i[:, None])[None, None]
            if source is not None:
                shown = shown | source[:, None, None, :]
        if key_mask is not None:
            shown = key_mask[:, None, None, :] if shown is None else shown & key_mask[:, None, None, :]
        stays = None
        if seed is not None:
            every = torch.arange(batch * heads, device=q.device).view(batch, heads)
            drawn: Any = seed  # a tensor, not a number, so that fake tensors see through
            stays = kept(row_keys(drawn, every, i), j, settings.dropout).to(q.dtype) / (1 - settings.dropout)
        yield _Block(rows, i, j, table.shape[0] // 2, shown, stays)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
