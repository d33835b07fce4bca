"""How a product of query and key becomes a logit, for the few keys that a decoding state reads as they lie.

    logit_ij = softcap(scale·q_i·k_j) + offset_bias[h, i − j + length − 1]

Letters: B batch, H query heads, G key heads, R = H/G, T newest queries, C keys, D size of a query or key, V of a value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .partial import Partial

__all__ = ["Scoring"]


@dataclass(frozen=True, slots=True)
class Scoring:
    """The settings of ``attend`` that make logits; ``length`` keys have been seen, the queries are the newest of them."""

    scale: float
    length: int
    sinks: Tensor | None = None
    softcap: float | None = None
    offset_bias: Tensor | None = None

    def logits(self, q: Tensor, k: Tensor, positions: Tensor | range) -> Tensor:
        """[B, G, R, T, C] in float32 at least, of q [B, H, T, D] and k [B, G, C, D] at these positions, [B or 1, C] or a range."""
        batch, _, count, depth = q.shape
        found = (q.reshape(batch, k.shape[1], -1, depth) @ k.mT).to(torch.promote_types(q.dtype, torch.float32))
        found = found.unflatten(2, (-1, count)) * self.scale
        if self.softcap is not None:
            found = torch.tanh(found / self.softcap) * self.softcap
        if self.offset_bias is not None:
            if isinstance(positions, range):
                positions = torch.tensor(positions, device=q.device)[None]
            at = torch.arange(count, device=q.device)[:, None] - positions[:, None] + self.length - 1
            bias = self.offset_bias[:, at].transpose(0, 1).to(found)  # [B or 1, H or 1, T, C]
            found += bias.expand(-1, q.shape[1], -1, -1).unflatten(1, (k.shape[1], -1))
        return found

    def attend(self, parts: list[tuple[Tensor, Tensor]], dtype: torch.dtype, with_sinks: bool) -> Partial:
        """One softmax over parts (logits [B, G, R, T, C], values [B, G, C, V]) side by side: out [B, H, T, V], lse [B, H, T]."""
        logits = torch.cat([logit for logit, _ in parts], -1)
        lse = logits.logsumexp(-1)
        if with_sinks and self.sinks is not None:
            lse = torch.logaddexp(lse, self.sinks.to(lse).view(1, *lse.shape[1:3], 1).expand_as(lse))
        weights = (logits - lse.masked_fill(torch.isneginf(lse), 0.0)[..., None]).exp().to(dtype)
        out = 0
        for (logit, value), weight in zip(
            parts, weights.split([logit.shape[-1] for logit, _ in parts], -1), strict=True
        ):
            out = out + (weight.flatten(2, 3) @ value).unflatten(2, logit.shape[2:4])
        assert isinstance(out, Tensor)
        return Partial(out.flatten(1, 2), lse.flatten(1, 2))
