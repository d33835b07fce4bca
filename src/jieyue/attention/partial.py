"""The result of one softmax over some of the keys, and the sum of two such results.

    (out, lse) ⊕ (out', lse') = (w·out + w'·out', log(e^lse + e^lse')),   w = e^(lse − lse_sum), w' = e^(lse' − lse_sum)

⊕ is associative and commutative; its identity is (0, −∞), a query that saw no key. So the keys may be cut into any
disjoint parts, each computed by whoever does it best, and the merge is exact: that is the law of tests/laws/test_attend.py.

Letters: B batch, H heads, N queries, V size of a value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Partial"]


@dataclass(frozen=True, slots=True)
class Partial:
    """``out`` [B, H, N, V], normalised over the keys it saw; ``lse`` [B, H, N], natural log of the sum of e^score."""

    out: Tensor
    lse: Tensor

    @classmethod
    def empty(cls, q: Tensor, v: Tensor) -> Partial:
        """The identity of ``merge``: no key seen, out = 0, lse = −∞, out in [B, N, H, V] memory."""
        batch, heads, n, _ = q.shape
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        out = q.new_zeros(batch, n, heads, v.shape[3]).transpose(1, 2)
        return cls(out, q.new_full((batch, heads, n), -torch.inf, dtype=wide))

    def merge(self, other: Partial) -> Partial:
        """The softmax over both sets of keys, which must be disjoint. No NaN where both are empty.

        >>> one, none = Partial(torch.ones(1), torch.zeros(())), Partial(torch.zeros(1), torch.tensor(-torch.inf))
        >>> one.merge(none), none.merge(none).lse
        (Partial(out=tensor([1.]), lse=tensor(0.)), tensor(-inf))
        """
        no_own, no_other = torch.isneginf(self.lse), torch.isneginf(other.lse)
        own, added = (
            self.lse.masked_fill(no_own, 0.0),
            other.lse.masked_fill(no_other, 0.0),
        )  # finite: any derivative is
        both = torch.logaddexp(own, added)
        lse = torch.where(no_other, self.lse, torch.where(no_own, other.lse, both))
        weight = torch.sigmoid(added - own).masked_fill(no_own, 1.0).masked_fill(no_other, 0.0)[..., None]
        return Partial(self.out + weight.to(self.out.dtype) * (other.out - self.out), lse)
