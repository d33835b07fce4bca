"""A trained reader against questions with known answers: scores, baselines, calibration, examples, speed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jieyue.data.readers import Question
from jieyue.metrics.scores import exact_matches
from jieyue.recipes import read as reading
from jieyue.report import Report

from .watch import SILENT, Watch

__all__ = ["Judged", "dozen", "judge", "tell_speed"]


@dataclass(frozen=True)
class Judged:
    """Answers in the order of the questions, whether each is right (exact match), facts, and seconds of reading."""

    questions: Sequence[Question]
    answers: list[reading.Answer]
    right: list[bool]
    scores: dict[str, Any]
    baselines: dict[str, Any]
    seconds: float


def judge(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    training: Sequence[Question],
    settings: reading.ReadSettings,
    *,
    batch_size: int = 32,
    watch: Watch = SILENT,
) -> Judged:
    """Reads every question and compares; ``training`` is what the baselines may have seen."""
    started = time.perf_counter()
    with watch.progress("reading") as update:
        answers = reading.answer(
            model,
            tokenizer,
            questions,
            settings,
            batch_size=batch_size,
            progress=lambda done, total: update(done, total, {}),
        )
    seconds = time.perf_counter() - started
    exact = exact_matches([one.text for one in answers], [(question.text, question.golds) for question in questions])
    return Judged(
        questions,
        answers,
        [bool(value) for value in exact],
        reading.score(answers, questions, training),
        reading.against_baselines(answers, questions, training),
        seconds,
    )


def dozen(judged: Judged, count: int = 12) -> list[int]:
    """Numbers of ``count`` questions for show, the same for the same questions.

    In turn from each kind (language, answerable or not), the first ones in order: chosen before any answer was seen.
    """
    kinds: dict[tuple[str, bool], list[int]] = {}
    for number, question in enumerate(judged.questions):
        if question.golds is not None:
            kinds.setdefault((question.language, question.answerable), []).append(number)
    weights = {kind: (2 if kind[1] else 1) for kind in kinds}
    chosen: list[int] = []
    while len(chosen) < count and any(kinds.values()):
        for kind, numbers in kinds.items():
            for _ in range(weights[kind]):
                if numbers and len(chosen) < count:
                    step = max(1, len(numbers) // count)
                    chosen.append(numbers[0])
                    del numbers[:step]
    return sorted(chosen)


def tell_speed(report: Report, judged: Judged, batch_size: int) -> None:
    """Questions per second of one-shot masked decoding, tokenization and the choice of answers included."""
    rate = len(judged.questions) / max(judged.seconds, 1e-9)
    how = f"one-shot masked decoding, {batch_size} windows at once, tokenization included"
    report.section("Quality on held-out questions").fact("reading speed", rate, "per second", how)
