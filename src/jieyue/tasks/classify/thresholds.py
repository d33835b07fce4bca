"""From which probability a label of several is told: fitted on the examples set aside, which trained nothing and judge nothing.

One threshold for all labels, with the highest micro-F1; a label that ``LEAST`` of the examples have, and ``LEAST`` have not, has
one with its own highest F1. Rare labels share the common one: a threshold of their own would fit chance.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy

from jieyue.json_values import Facts
from jieyue.metrics.multilabel import best_threshold, score_sets
from jieyue.report import Section

from .kinds import Choices
from .settings import ClassifySettings

__all__ = ["LEAST", "fit_thresholds", "told_thresholds"]

LEAST = 20


def fit_thresholds(
    settings: ClassifySettings, answers: Sequence[Choices], golds: Sequence[Collection[str]]
) -> tuple[ClassifySettings, Facts]:
    """The settings with a threshold for each label, and facts: how many examples, micro-F1 on them before and after.

    ``answers``: with the probabilities of all labels; ``golds``: the right labels of each.
    """
    shares = numpy.array([[dict(own.shares)[label] for label in settings.labels] for own in answers])
    right = numpy.array([[label in gold for label in settings.labels] for gold in golds])
    common = best_threshold(shares.ravel(), right.ravel())
    counts = right.sum(axis=0)
    own = [
        best_threshold(shares[:, at], right[:, at]) if LEAST <= count <= len(answers) - LEAST else common
        for at, count in enumerate(counts)
    ]
    thresholds = [min(max(round(one, 6), 1e-6), 1 - 1e-6) for one in own]
    again = [Choices.of(list(row), settings.labels, thresholds).labels for row in shares]
    facts: Facts = {
        "examples": len(answers),
        "labels_of_their_own": int(((counts >= LEAST) & (counts <= len(answers) - LEAST)).sum()),
        "micro_f1_before": score_sets([one.labels for one in answers], golds)["micro_f1"],
        "micro_f1": score_sets(again, golds)["micro_f1"],
    }
    told = dict(zip(settings.labels, thresholds, strict=True))
    return replace(settings, thresholds=json.dumps(told, ensure_ascii=False)), facts


def told_thresholds(section: Section, settings: ClassifySettings, fitted: Facts) -> None:
    """What the report says of them; ``fitted``: as ``fit_thresholds`` gave it, empty where they were given or the run is another."""
    how = "given, or fitted by the training run"
    if fitted:
        before, after = (f"{fitted[name]:.1%}" for name in ("micro_f1_before", "micro_f1"))
        how = (
            f"fitted on {fitted['examples']} examples set aside, where micro-F1 went from {before} at 0.5 to {after}; "
            f"{fitted['labels_of_their_own']} labels have one of their own"
        )
    values = settings.threshold_of_each()
    found = f"{min(values):.3g}" if min(values) == max(values) else f"{min(values):.3g} to {max(values):.3g}"
    section.fact("thresholds", found, how=how)
