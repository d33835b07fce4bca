"""The newest keys and values, kept as they are while a decoding state sums the older ones (or forgets them).

Letters: B batch, G key heads, N positions, D size of a key, V size of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jieyue.errors import InputError

__all__ = ["Recent"]


class Recent:
    """k [B, G, n, D], v [B, G, n, V] and which of them count [B, n]: the last ``window`` before the newest, and the newest.

    ``push`` brings the newest and hands back what left; ``count`` of those held are the newest.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.held: tuple[Tensor, Tensor, Tensor] | None = None
        self.count = 0

    @property
    def nbytes(self) -> int:
        return 0 if self.held is None else sum(x.nbytes for x in self.held)

    def push(self, k: Tensor, v: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
        """Adds keys and values; returns those that no query sees as recent any more, None where there are none."""
        seen = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device) if key_mask is None else key_mask
        left = self.settle()
        fresh = (k, v, seen)
        if self.held is not None:
            kept = self.held
            if kept[0].shape[:2] != k.shape[:2] or kept[0].shape[3] != k.shape[3] or kept[1].shape[3] != v.shape[3]:
                raise InputError(
                    f"append: k has shape {list(k.shape)} and v {list(v.shape)}, expected the heads and sizes of those held, "
                    f"{list(kept[0].shape)} and {list(kept[1].shape)}"
                )
            fresh = (torch.cat([kept[0], k], 2), torch.cat([kept[1], v], 2), torch.cat([kept[2], seen], 1))
        self.held, self.count = fresh, k.shape[2]
        return left

    def settle(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Keeps the last ``window`` only, after the newest were read; returns the others, None where there are none."""
        self.count = 0
        extra = 0 if self.held is None else self.held[2].shape[1] - self.window
        if self.held is None or extra <= 0:
            return None
        k, v, seen = self.held
        self.held = (k[:, :, extra:].clone(), v[:, :, extra:].clone(), seen[:, extra:].clone())
        return k[:, :, :extra], v[:, :, :extra], seen[:, :extra]

    def read(self, num_queries: int) -> tuple[Tensor, Tensor, Tensor]:
        """What is held, for the queries of the newest push."""
        if self.held is None or num_queries != self.count:
            raise InputError(f"read: found {num_queries} queries, expected the {self.count} tokens of the last append")
        return self.held

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was."""
        if self.held is not None:
            k, v, seen = (x.index_select(0, index) for x in self.held)
            self.held = (k, v, seen)

    def tensors(self) -> dict[str, Tensor]:
        """What to save; ``load`` takes it back."""
        return {} if self.held is None else dict(zip(("k", "v", "seen"), self.held, strict=True))

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Contents saved by ``tensors``; the newest of them are to be read before they were saved."""
        missing = [name for name in ("k", "v", "seen") if name not in tensors]
        if missing and len(missing) < 3:
            raise InputError(f"load: found {sorted(tensors)}, expected k, v and seen")
        self.held = None if missing else (tensors["k"], tensors["v"], tensors["seen"])
        self.count = 0
