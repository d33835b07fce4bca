"""How answers are judged: exact match and F1, calibration of the confidence, and what needs no reading at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from jieyue.data.qa_files import Question
from jieyue.errors import InputError
from jieyue.metrics.baselines import compare_baselines
from jieyue.metrics.calibration import Calibration, calibration_error, cross_fit
from jieyue.metrics.scores import TrainingAnswers, exact_matches, score_answers
from jieyue.tasks import Facts

from .reader import Answer

__all__ = ["against_baselines", "calibrate", "score_readings"]


def _known(answers: Sequence[Answer], questions: Sequence[Question]) -> tuple[list[Answer], list[bool]]:
    """The answers to questions whose golds are known, and whether each matches one exactly."""
    pairs = [(one, question) for one, question in zip(answers, questions, strict=True) if question.golds is not None]
    right = exact_matches([one.text for one, _ in pairs], [(question.text, question.golds) for _, question in pairs])
    return [one for one, _ in pairs], [bool(value) for value in right]


def score_readings(
    answers: Sequence[Answer], questions: Sequence[Question], training: TrainingAnswers | None = None
) -> Facts:
    """Facts of ``metrics.scores.score_answers``; ``training`` tells which golds were never an answer there.

    ``calibration_error`` and ``calibration_bins`` say whether the confidences hold on these questions.
    """
    asked = [(question.text, question.golds) for question in questions]
    groups = [question.passages[0].text for question in questions]
    facts = score_answers([one.text for one in answers], asked, training, groups)
    known, right = _known(answers, questions)
    if known:
        facts["calibration_error"], bins = calibration_error([one.confidence for one in known], right)
        facts["calibration_bins"] = [asdict(one) for one in bins]
    return facts


def calibrate(answers: Sequence[Answer], questions: Sequence[Question]) -> Calibration:
    """The temperature for ``ReadSettings``, fitted on held-out answers, and the calibration error before and after.

    The error after is measured on halves that the temperature was not fitted on.
    """
    known, right = _known(answers, questions)
    if not known:
        raise InputError("calibrate(answers, questions): found no question whose answers are known, expected some")
    readings = [one.reading for one in known if one.reading is not None]
    return cross_fit(lambda own, heat: [readings[at].confidence(heat) for at in own], right)


def against_baselines(
    answers: Sequence[Answer], questions: Sequence[Question], training: TrainingAnswers | None
) -> Facts:
    """Facts of the three baselines on these questions, and the gain over the best: ``metrics.baselines``."""
    return compare_baselines(
        [one.text for one in answers],
        [(question.text, question.golds, [passage.text for passage in question.passages]) for question in questions],
        training,
    )
