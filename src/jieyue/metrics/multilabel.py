"""Sets of labels against sets of labels: micro- and macro-F1, exact matches, each label apart.

micro-F1 = 2·ΣTP / (2·ΣTP + ΣFP + ΣFN) over all (text, label) pairs;   macro-F1 = mean of F1_c over the labels that golds have
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import TypeVar

import numpy

from jieyue.errors import InputError
from jieyue.json_values import Facts

from .intervals import bootstrap

__all__ = ["best_threshold", "compared", "interval", "micro_f1", "score_sets"]

T = TypeVar("T", bound=Hashable)


def micro_f1(right: numpy.ndarray, told: numpy.ndarray, asked: numpy.ndarray) -> float:
    """Of the numbers of right, told and gold labels of each text; 1.0 where there is neither gold nor told label."""
    both = float(told.sum() + asked.sum())
    return 2 * float(right.sum()) / both if both else 1.0


def compared(
    asker: str, predicted: Sequence[Collection[T]], golds: Sequence[Collection[T]]
) -> tuple[list[tuple[set[T], set[T]]], tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]]:
    """Told and gold sets of each text, and how many in each are right, told, gold; ``InputError`` where they do not pair up."""
    if not golds or len(predicted) != len(golds):
        found = f"{len(predicted)} predictions for {len(golds)} golds"
        raise InputError(asker, found, "one each, at least one")
    pairs = [(set(own), set(gold)) for own, gold in zip(predicted, golds, strict=True)]
    counts = [(len(own & gold), len(own), len(gold)) for own, gold in pairs]
    right, told, asked = numpy.array(counts, dtype=float).T
    return pairs, (right, told, asked)


def interval(right: numpy.ndarray, told: numpy.ndarray, asked: numpy.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of ``micro_f1``, texts drawn."""
    drawn = bootstrap(right.tolist(), told.tolist(), asked.tolist(), statistic=micro_f1)
    return float(drawn.low), float(drawn.high)


def score_sets(predicted: Sequence[Collection[str]], golds: Sequence[Collection[str]]) -> Facts:
    """Facts: ``examples``, ``micro_f1`` (with ``_interval``, 95 %), ``macro_f1``, ``exact_match``, ``by_label``.

    >>> facts = score_sets([{"a"}, {"a", "b"}], [{"a", "b"}, {"b"}])
    >>> round(facts["micro_f1"], 4), round(facts["macro_f1"], 4), facts["exact_match"]
    (0.6667, 0.6667, 0.0)
    """
    pairs, (right, told, asked) = compared("score_sets", predicted, golds)
    facts: Facts = {
        "examples": len(pairs),
        "micro_f1": micro_f1(right, told, asked),
        "exact_match": sum(own == gold for own, gold in pairs) / len(pairs),
    }
    if len(pairs) > 1:
        facts["micro_f1_interval"] = interval(right, told, asked)
    by_label: dict[str, dict[str, float]] = {}
    for name in sorted({name for _, gold in pairs for name in gold}):
        true = sum(name in own and name in gold for own, gold in pairs)
        taken, wanted = sum(name in own for own, _ in pairs), sum(name in gold for _, gold in pairs)
        by_label[name] = {
            "examples": wanted,
            "precision": true / max(1, taken),
            "recall": true / wanted,
            "f1": 2 * true / (taken + wanted),
        }
    facts["macro_f1"] = sum(own["f1"] for own in by_label.values()) / len(by_label) if by_label else 1.0
    facts["by_label"] = by_label
    return facts


def best_threshold(shares: numpy.ndarray, right: numpy.ndarray) -> float:
    """The threshold t in (0, 1) with the highest F1 of "share >= t" against ``right``; 0.5 where it is among the best ones.

    ``shares``: n probabilities; ``right``: n of 0 and 1. Between two neighbouring shares every t tells the same: their middle is
    taken, of equally good ones the nearest to 0.5. 0.5 where nothing is right. Cost: a sort.

    >>> best_threshold(numpy.array([0.4, 0.3, 0.1]), numpy.array([1, 1, 0]))
    0.2
    """
    if not right.any():
        return 0.5
    order = numpy.argsort(-shares, kind="stable")
    ranked, total = shares[order], float(right.sum())
    f1 = 2 * numpy.cumsum(right[order]) / (numpy.arange(1, len(ranked) + 1) + total)  # of telling the first 1, 2, … n
    lower = numpy.append(ranked[1:], 0.0)
    f1[ranked <= lower] = -1.0  # equal shares are told together
    best = numpy.flatnonzero(f1 >= f1.max() - 1e-12)
    middles = [0.5 if lower[at] < 0.5 <= ranked[at] else float(ranked[at] + lower[at]) / 2 for at in best]
    return min(middles, key=lambda t: abs(t - 0.5))
