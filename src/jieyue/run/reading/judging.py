"""A trained reader against questions with known answers: scores, baselines, calibration, examples, speed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jieyue.data.qa_files import Question
from jieyue.metrics.scores import exact_matches
from jieyue.recipes import read as reading
from jieyue.run.values import Sources
from jieyue.run.watch import SILENT, Watch

__all__ = ["Judged", "dozen", "judge"]


@dataclass(frozen=True)
class Judged:
    """Answers in the order of the questions, whether each is right (exact match), facts, and seconds of reading.

    ``greedy``: the facts of the article's greedy search on the same probabilities, where the reader has another beside it.
    ``way``: how the reader answers, in words.
    """

    questions: Sequence[Question]
    answers: list[reading.Answer]
    right: list[bool]
    scores: dict[str, Any]
    greedy: dict[str, Any] | None
    baselines: dict[str, Any]
    seconds: float
    batch_size: int
    way: str


def judge(
    model: Any,
    tokenizer: Any,
    sources: Sources,
    settings: reading.ReadSettings,
    *,
    batch_size: int = 32,
    watch: Watch = SILENT,
) -> Judged:
    """Reads every held-out question and compares; the training questions are what the baselines may have seen."""
    questions, training = sources.held_out, sources.train
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
    greedy = None
    if settings.reader == "masked":
        path = reading.answer(model, tokenizer, questions, replace(settings, search="greedy"), batch_size=batch_size)
        greedy = reading.score(path, questions, training)
    exact = exact_matches([one.text for one in answers], [(question.text, question.golds) for question in questions])
    return Judged(
        questions,
        answers,
        [bool(value) for value in exact],
        reading.score(answers, questions, training),
        greedy,
        reading.against_baselines(answers, questions, training),
        seconds,
        batch_size,
        reading.READERS[settings.reader].way,
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
