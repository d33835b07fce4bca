"""A question and the passages that it is asked about: the values that reading, training and judging share.

``overlap`` counts what two sets share, such as training and held-out questions (contamination).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jieyue.text import folded

from .findings import Findings

__all__ = ["Passage", "Question", "note_duplicates", "overlap"]


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


def note_duplicates(questions: Sequence[Question], findings: Findings) -> None:
    """Counts ids that stand more than once, and questions that repeat another's text, passages and golds."""
    seen_ids: set[str] = set()
    seen: set[tuple[str, tuple[str, ...], tuple[str, ...] | None]] = set()
    for question in questions:
        findings.counts["ids_duplicate"] += question.id in seen_ids
        seen_ids.add(question.id)
        key = (question.text, tuple(passage.text for passage in question.passages), question.golds)
        findings.counts["questions_repeated"] += key in seen
        seen.add(key)


def overlap(training: Iterable[Question], held_out: Iterable[Question]) -> dict[str, int]:
    """How many held-out questions stand in training too, compared after NFKC, case folding and removing spaces.

    ``examples``: same question and a shared passage; ``questions``: same question text; ``passages``: a shared passage;
    ``ids``: same id. Cost: one pass over each, a set of normal forms in memory.
    """
    ids: set[str] = set()
    texts: set[str] = set()
    passages: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    normal: dict[str, str] = {}

    def keys(question: Question) -> tuple[str, list[str]]:
        for passage in question.passages:
            if passage.text not in normal:
                normal[passage.text] = folded(passage.text)
        return folded(question.text), [normal[passage.text] for passage in question.passages]

    for question in training:
        text, own = keys(question)
        ids.add(question.id)
        texts.add(text)
        passages.update(own)
        pairs.update((text, passage) for passage in own)
    shared = {"examples": 0, "questions": 0, "passages": 0, "ids": 0}
    for question in held_out:
        text, own = keys(question)
        shared["examples"] += any((text, passage) in pairs for passage in own)
        shared["questions"] += text in texts
        shared["passages"] += any(passage in passages for passage in own)
        shared["ids"] += question.id in ids
    return shared
