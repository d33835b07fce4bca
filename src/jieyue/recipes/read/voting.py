"""Windows that are read each for itself: windows give their maximum, passages vote. Section "voting" of 7148."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jieyue.data.batch import collate
from jieyue.data.qa_files import Question
from jieyue.data.windows import specials
from jieyue.decoding.constraints import Reading
from jieyue.decoding.vote import merge_windows, vote
from jieyue.text import normalize

from .reader import Answer, Around, Window, place, windows_of
from .settings import ReadSettings

__all__ = ["answer_by_vote", "decide", "silence"]

Progress = Callable[[int, int], None]
ReadBatch = Callable[[Sequence[Window], dict[str, Tensor]], list[Reading]]


def answer_by_vote(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    settings: ReadSettings,
    around: Around,
    read: ReadBatch,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[Answer]:
    """An answer to every question, in order; ``read(windows, inputs)`` reads ``batch_size`` windows of like length at once.

    ``progress(done, windows)`` is called after every batch. The model is put into evaluation mode and back.
    """
    pad = specials(tokenizer).pad
    every = windows_of(model, questions, tokenizer, settings, around)
    by_length = sorted(range(len(every)), key=lambda at: -len(every[at]))
    found: dict[int, Reading] = {}
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.inference_mode():
            for at in range(0, len(by_length), batch_size):
                chosen = by_length[at : at + batch_size]
                batch = [every[index] for index in chosen]
                inputs = collate([{"input_ids": one.row} for one in batch], pad)
                inputs = {name: value.to(device) for name, value in inputs.items()}
                found.update(zip(chosen, read(batch, inputs), strict=True))
                if progress is not None:
                    progress(at + len(batch), len(every))
    finally:
        model.train(was_training)
    readings: list[list[tuple[Window, Reading]]] = [[] for _ in questions]
    for index, window in enumerate(every):
        readings[window.question].append((window, found[index]))
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
