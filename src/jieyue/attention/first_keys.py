"""The first keys of a pattern while decoding, kept beside whatever the bands keep: constant memory, read by every token.

Slot s holds the key at position start + s, where a row of the batch starts at position 0 or, with ``from_kept``, at its first key
that is not hidden (left padding: each row is then as if it were alone).

Letters: B batch, H query heads, G key heads, C first keys, T tokens, D size of a query or key, V of a value.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .scoring import Scoring

__all__ = ["FirstKeys"]


class FirstKeys:
    """k [B, G, C, D], v [B, G, C, V], which of them count [B, C], and where each row starts [B]."""

    def __init__(self, count: int, from_kept: bool) -> None:
        self.count = count
        self.from_kept = from_kept
        self.held: tuple[Tensor, Tensor, Tensor] | None = None
        self.starts: Tensor | None = None
        self._span = (0, 0)  # the least and the greatest start

    @property
    def nbytes(self) -> int:
        return 0 if self.held is None else sum(x.nbytes for x in self.held)

    @property
    def floor(self) -> int:
        """The position before which no key is read through a band, in any row."""
        return self._span[0] + self.count

    def append(self, k: Tensor, v: Tensor, key_mask: Tensor | None, position: int) -> None:
        """The tokens k [B, G, T, D] and v [B, G, T, V] at ``position`` and after; those with key_mask [B, T] False are hidden."""
        num_tokens = k.shape[2]
        if self.held is not None and self._span[1] + self.count <= position:
            return
        if self.held is None:
            rows = (*k.shape[:2], self.count)
            seen = torch.zeros(k.shape[0], self.count, dtype=torch.bool, device=k.device)
            self.held = (k.new_zeros(*rows, k.shape[3]), v.new_zeros(*rows, v.shape[3]), seen)
            self.starts = torch.zeros(k.shape[0], dtype=torch.int64, device=k.device)
        assert self.starts is not None
        if self.from_kept:
            waiting = self.starts >= position
            before = 0 if key_mask is None else _hidden_before(key_mask)
            self.starts = torch.where(waiting, position + before, self.starts)
            self._span = (int(self.starts.min()), int(self.starts.max()))
        at = self.starts[:, None] + torch.arange(self.count, device=k.device) - position
        new = (at >= 0) & (at < num_tokens)
        at = at.clamp(0, num_tokens - 1)
        held_k, held_v, held_seen = self.held
        place = at[:, None, :, None]
        k, v = (
            torch.where(new[:, None, :, None], x.gather(2, place.expand(*held.shape)), held)
            for x, held in ((k, held_k), (v, held_v))
        )
        seen = new if key_mask is None else new & key_mask.gather(1, at)
        self.held = (k, v, torch.where(new, seen, held_seen))

    def crop(self, length: int) -> None:
        """Tokens from position ``length`` on are forgotten."""
        if self.starts is not None and self.from_kept:
            self.starts = self.starts.clamp(max=length)
            self._span = (min(self._span[0], length), min(self._span[1], length))

    def part(self, q: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
        """Logits [B, G, R, T, C] of the newest queries q [B, H, T, D], −∞ where they see no key, and the values [B, G, C, V]."""
        assert self.held is not None
        k, v, seen = self.held
        num_slots = min(self.count, max(1, scoring.length - self._span[0]))
        at = self.at()[:, :num_slots]
        queries = torch.arange(scoring.length - q.shape[2], scoring.length, device=q.device)
        shown = (at[:, None] <= queries[:, None]) & seen[:, None, :num_slots]
        logits = scoring.logits(q, k[:, :, :num_slots], at)
        return logits.masked_fill(~shown[:, None, None], -torch.inf), v[:, :, :num_slots]

    def behind(self, positions: range, device: torch.device) -> Tensor | None:
        """Boolean [B, len(positions)]: which of these come after the first keys of their row; None where all do."""
        if self.starts is None or positions.start >= self._span[1] + self.count:
            return None
        at = torch.arange(positions.start, positions.stop, positions.step, device=device)
        return at >= self.starts[:, None] + self.count

    def at(self) -> Tensor:
        """The position of each slot, [B, C]."""
        assert self.starts is not None
        return self.starts[:, None] + torch.arange(self.count, device=self.starts.device)

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was."""
        if self.held is not None and self.starts is not None:
            k, v, seen = (x.index_select(0, index) for x in self.held)
            self.held, self.starts = (k, v, seen), self.starts.index_select(0, index)
            self._span = (int(self.starts.min()), int(self.starts.max()))

    def tensors(self) -> dict[str, Tensor]:
        """What to save; ``load`` takes it back."""
        if self.held is None or self.starts is None:
            return {}
        names = ("first_k", "first_v", "first_seen")
        return dict(zip(names, self.held, strict=True)) | {"first_starts": self.starts}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Contents saved by ``tensors``."""
        if "first_k" in tensors:
            self.held = (tensors["first_k"], tensors["first_v"], tensors["first_seen"])
            self.starts = tensors["first_starts"]
            self._span = (int(self.starts.min()), int(self.starts.max()))


def _hidden_before(key_mask: Tensor) -> Tensor:
    """[B]: how many tokens are hidden before the first one that is not."""
    return (key_mask.cumsum(1) == 0).sum(1)
