"""A question and the passages that it is asked about: the values that reading, training and judging share."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Passage", "Question"]


@dataclass(frozen=True, slots=True)
class Passage:
    """A text and where the question's answers stand in it: ``spans`` of characters, half-open, best first.

    ``unplaced``: an answer is given for this very passage, but does not stand in it letter for letter.
    """

    text: str
    spans: tuple[tuple[int, int], ...] = ()
    unplaced: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """A question and what it is asked about. ``golds``: the accepted answers; ``()`` = there is none; None = not known."""

    id: str
    text: str
    passages: tuple[Passage, ...]
    golds: tuple[str, ...] | None = None
    title: str = ""
    topic: str = ""
    language: str = ""

    @property
    def answerable(self) -> bool:
        return bool(self.golds)
