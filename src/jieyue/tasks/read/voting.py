"""Windows that are read each for itself: windows give their maximum, passages vote. Section "voting" of 7148."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from jieyue.data.batch import collate
from jieyue.data.qa_files import Question
from jieyue.data.windows import specials
from jieyue.decoding.constraints import Reading
from jieyue.decoding.vote import merge_windows, vote
from jieyue.tasks.batches import Done, answers_in_batches
from jieyue.text import normalize

from .reader import Answer, Around, Window, place, windows_of
from .settings import ReadSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["answer_by_vote", "decide", "silence"]

ReadBatch = Callable[[list[Window], dict[str, Tensor]], list[Reading]]


def answer_by_vote(
    model: nn.Module,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    settings: ReadSettings,
    around: Around,
    read: ReadBatch,
    batch_size: int = 32,
    done: Done | None = None,
) -> list[Answer]:
    """An answer to every question, in order; ``read(windows, inputs)`` reads ``batch_size`` windows of like length at once.

    ``done(so many, of so many)`` is called after every batch. The model is put into evaluation mode and back.
    """
    pad = specials(tokenizer).pad
    every = windows_of(model, questions, tokenizer, settings, around)

    def collated(some: list[Window]) -> dict[str, Tensor]:
        return collate([{"input_ids": one.row} for one in some], pad)

    found = answers_in_batches(model, every, len, collated, read, batch_size=batch_size, done=done)
    readings: list[list[tuple[Window, Reading]]] = [[] for _ in questions]
    for window, reading in zip(every, found, strict=True):
        readings[window.question].append((window, reading))
    return [decide(question, own, settings.temperature) for question, own in zip(questions, readings, strict=True)]


def decide(question: Question, found: Sequence[tuple[Window, Reading]], temperature: float) -> Answer:
    """Windows give their maximum, passages vote; all abstain: the least sure abstention stands for the question."""
    scores: dict[int, list[tuple[str, float]]] = {}
    best: dict[str, Answer] = {}
    silent: list[Reading] = []
    for window, reading in found:
        text = question.passages[window.passage].text
        start, end = place(window, reading, text)
        if start == end:
            silent.append(reading)
            continue
        key = normalize(text[start:end]).casefold()
        scores.setdefault(window.passage, []).append((key, reading.score))
        if key not in best or reading.score > best[key].score:
            best[key] = Answer(
                question.id, text[start:end], window.passage, start, end, score=reading.score, reading=reading
            )
    votes = vote(merge_windows(own) for _, own in sorted(scores.items()))
    if not votes:
        return silence(question, silent, temperature)
    winner = best[str(votes[0][0])]
    assert winner.reading is not None
    return replace(
        winner,
        vote=votes[0][1],
        confidence=winner.reading.confidence(temperature),
        rivals=tuple((best[str(key)].text, value) for key, value in votes[1:6]),
    )


def silence(question: Question, silent: Sequence[Reading], temperature: float) -> Answer:
    """No answer: the least sure abstention stands for the question."""
    confidence, reading = min(((one.confidence(temperature), one) for one in silent), key=lambda pair: pair[0])
    return Answer(question.id, "", score=reading.score, confidence=confidence, reading=reading)
