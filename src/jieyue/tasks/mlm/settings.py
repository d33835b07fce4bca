"""What can be chosen of masked-LM training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from jieyue.errors import InputError, check_least
from jieyue.options import option
from jieyue.tasks.settings import PackedSettings

__all__ = ["MaskSettings"]


@dataclass(frozen=True, kw_only=True)
class MaskSettings(PackedSettings):
    """``max_tokens``: of a row, [CLS] and [SEP] included. ``share``: of a row's tokens, hidden at each visit.

    ``whole_words``: all pieces of a chosen word are hidden together. ``pseudo_rows``: held-out rows whose pseudo-perplexity
    is computed (as many forward passes as they have tokens).
    """

    max_tokens: int = option(128, "Tokens of a row, special ones included.")
    share: float = option(0.15, "Share of a row's tokens that is hidden.")
    whole_words: bool = option(False, "Hide all pieces of a word together.")
    pseudo_rows: int = option(16, "Held-out rows whose pseudo-perplexity is computed.")
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(8, max_tokens=self.max_tokens)
        check_least(0, pseudo_rows=self.pseudo_rows)
        if not 0 < self.share < 0.9:
            raise InputError(f"share={self.share}: expected a share between 0 and 0.9")

    def fitted(self, positions: int) -> Self:
        """These settings with shorter rows where the model has fewer ``positions``."""
        return replace(self, max_tokens=min(self.max_tokens, positions))
