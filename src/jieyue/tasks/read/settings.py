"""Lengths and choices of a reader. Every count of tokens includes its closing [SEP], as in the articles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from jieyue.errors import InputError, check_least
from jieyue.options import option
from jieyue.tasks.settings import DELIMITER, PackedSettings

__all__ = ["HEADS", "SEARCHES", "ReadSettings"]

SEARCHES = ("best", "greedy")

HEADS = {"masked": "masked-lm", "span": "span", "prefix": "prefix"}
"""The readers, and the head of ``hf.loading.HEADS`` that each has."""


@dataclass(frozen=True, kw_only=True)
class ReadSettings(PackedSettings):
    """Lengths in tokens, as in the article: every count includes its closing [SEP].

    ``reader``: "masked" (7148), "span" or "prefix" (7115), see the recipe's head. A row has at most ``longest_row`` tokens
    (354 by default). Windows share ``overlap_tokens``. ``negatives_per_positive``: windows without the answer kept for each one
    with it (an unanswerable question counts as one); ``seed`` chooses which. ``temperature``: of the confidence, fitted by
    ``calibrate``. ``search``, of the masked reader alone: "best" (None) compares all n-grams of the window, "greedy" takes one
    token after the other as the article does.
    """

    reader: str = option(
        "masked",
        "How it reads: masked (the [MASK]s spell the answer, the default), span (start and end) or prefix (writes it).",
    )
    answer_slots: int = option(32, "Longest answer in tokens, its [SEP] included.")
    question_tokens: int = 64
    window_tokens: int = option(256, "Passage tokens in one window, its [SEP] included.")
    overlap_tokens: int = 64
    negatives_per_positive: float = 1.0
    seed: int = 0
    temperature: float = 1.0
    search: str | None = option(
        None, "How a masked reader finds answers: best (all n-grams compared, the default) or greedy."
    )
    delimiter: str | None = option(None, DELIMITER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reader not in HEADS:
            raise InputError("reader", repr(self.reader), f"one of {', '.join(HEADS)}")
        check_least(
            2, answer_slots=self.answer_slots, question_tokens=self.question_tokens, window_tokens=self.window_tokens
        )
        check_least(0, overlap_tokens=self.overlap_tokens, negatives_per_positive=self.negatives_per_positive)
        if self.overlap_tokens >= self.window_tokens - 1:
            raise InputError(
                f"overlap_tokens={self.overlap_tokens}: expected less than window_tokens - 1 = {self.window_tokens - 1}"
            )
        if self.search is not None and self.search not in SEARCHES:
            raise InputError("search", repr(self.search), f"one of {', '.join(SEARCHES)}")
        if self.search is not None and self.reader != "masked":
            raise InputError(
                f"search={self.search!r}",
                f"the {self.reader} reader, which has one way to find an answer",
                "no search, or the masked reader",
            )
        if self.packed and self.reader == "prefix":
            raise InputError("packed=True", "the prefix reader, which has a mask of its own", "masked or span")
        if not self.temperature > 0:
            raise InputError(f"temperature={self.temperature}: expected a number above 0")

    def changed(self, **given: Any) -> Self:
        """A smaller window has less overlap too."""
        if "window_tokens" in given:
            given = {"overlap_tokens": min(self.overlap_tokens, given["window_tokens"] // 4), **given}
        return super().changed(**given)

    def head(self, default: str) -> str:
        return HEADS[self.reader]

    def packing(self) -> bool | None:
        return False if self.reader == "prefix" else self.packed

    @property
    def longest_row(self) -> int:
        answer = {"masked": self.answer_slots + 1, "span": 0, "prefix": self.answer_slots}[self.reader]
        return 1 + answer + self.question_tokens + self.window_tokens

    def fitted(self, positions: int) -> ReadSettings:
        """These settings with a smaller window where the model has fewer ``positions`` than the longest row needs."""
        if self.longest_row <= positions:
            return self
        window = self.window_tokens - (self.longest_row - positions)
        if window < 2 * self.answer_slots:
            raise InputError(
                f"window_tokens={self.window_tokens}",
                f"a model of {positions} positions",
                f"at least {self.longest_row - self.window_tokens + 2 * self.answer_slots}",
                "lower answer_slots or question_tokens",
            )
        return replace(self, window_tokens=window, overlap_tokens=min(self.overlap_tokens, window // 2))
