"""Segments by counting: (number of [SEP] before) mod 2, the turns of a dialogue; and a cache that remembers them.

Source: J. Su, nezha_gpt_dialog (kexue.fm 7718). Letters: B rows, N new tokens, M tokens seen so far.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

__all__ = ["NezhaCache", "ends_of", "segments_of"]


class NezhaCache(DynamicCache):
    """Keys and values, and for each token seen the segment of the token that would follow it, int64 [B, M]."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config=config)
        self.following: Tensor | None = None

    def remember(self, following: Tensor) -> None:
        """Adds the newest tokens' [B, N]."""
        self.following = following if self.following is None else torch.cat([self.following, following], 1)

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if self.following is not None:
            self.following = self.following[:, : self.get_seq_length()]

    def reset(self) -> None:
        super().reset()
        self.following = None

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self._take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.following is not None:
            self.following = self.following.repeat_interleave(repeats, 0)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._take(indices)

    def _take(self, indices: Tensor) -> None:
        if self.following is not None:
            self.following = self.following[indices.to(self.following.device)]


def segments_of(
    input_ids: Tensor, sep_token_id: int, *, kept: Tensor | None = None, first: Tensor | None = None
) -> Tensor:
    """(number of [SEP] before) mod 2, int64 [B, N]; a [SEP] belongs to what it ends.

    ``kept`` [B, N]: padding's [SEP]s do not count; ``first`` [B]: the segment of the first token, 0 unless given.

    >>> segments_of(torch.tensor([[1, 7, 2, 8, 9, 2, 5]]), 2).tolist()
    [[0, 0, 0, 1, 1, 1, 0]]
    """
    ends = ends_of(input_ids, sep_token_id, kept)
    before = ends.cumsum(1) - ends
    return (before if first is None else before + first[:, None]) % 2


def ends_of(input_ids: Tensor, sep_token_id: int, kept: Tensor | None) -> Tensor:
    """1 where a token ends its segment, int64 [B, N]."""
    ends = input_ids == sep_token_id
    return (ends if kept is None else ends & kept).long()
