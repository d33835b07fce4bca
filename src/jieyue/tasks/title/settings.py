"""What can be chosen of a writer of titles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

from jieyue.errors import InputError, check_least
from jieyue.options import option
from jieyue.tasks.settings import DELIMITER, Settings

__all__ = ["KINDS", "Kind", "TitleSettings"]

Kind = Literal["prefix", "causal", "encoder-decoder"]
KINDS: dict[str, str] = {"prefix": "prefix", "causal": "causal-lm", "encoder-decoder": "sequence-to-sequence"}
"""The kinds of writers, and the head of ``hf.loading.HEADS`` that each has."""
OVER_LONG = ("cut", "skip", "refuse")


@dataclass(frozen=True, kw_only=True)
class TitleSettings(Settings):
    """Lengths in tokens, each with its closing token; the article's.

    ``over_long``: what becomes of a title longer than ``title_tokens``: "cut" (its end is not learned), "skip" or "refuse".
    ``beams`` 1 = greedy; ``length_penalty`` 0 = the most probable title. ``source_column`` and ``title_column``: names or numbers.
    """

    kind: Kind = option(
        "prefix", "prefix, causal or encoder-decoder. Default: what the model is (a masked LM: prefix)."
    )
    source_tokens: int = option(224, "Longest source in tokens, its [SEP] included (default 224).")
    title_tokens: int = option(32, "Longest title in tokens, its [SEP] included (default 32).")
    over_long: Literal["cut", "skip", "refuse"] = option(
        "cut", "A title that is longer: cut (default), skip or refuse."
    )
    beams: int = option(3, "Hypotheses of the search (default 3); 1 = greedy.")
    length_penalty: float = 0.0
    source_column: str | None = option(None, "The source's column: a name, or a number from 1.")
    title_column: str | None = option(None, "The title's column: a name, or a number from 1.")
    delimiter: str | None = option(None, DELIMITER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise InputError("kind", repr(self.kind), f"one of {', '.join(KINDS)}")
        if self.over_long not in OVER_LONG:
            raise InputError("over_long", repr(self.over_long), f"one of {', '.join(OVER_LONG)}")
        check_least(2, source_tokens=self.source_tokens, title_tokens=self.title_tokens)
        check_least(1, beams=self.beams)

    def head(self, default: str) -> str:
        return KINDS[self.kind]

    def fitted(self, positions: int) -> Self:
        """A shorter source where the model has fewer positions."""
        needed = 1 + (self.source_tokens if self.kind == "encoder-decoder" else self.source_tokens + self.title_tokens)
        if needed <= positions:
            return self
        source = self.source_tokens - (needed - positions)
        if source < self.title_tokens:
            found = f"a model of {positions} positions"
            raise InputError(f"source_tokens={self.source_tokens}", found, f"at least {needed}", "lower title_tokens")
        return replace(self, source_tokens=source)
