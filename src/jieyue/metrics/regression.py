"""Numbers against numbers: squared and absolute error, Pearson's and Spearman's correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from jieyue.errors import InputError
from jieyue.json_values import Facts

from .intervals import bootstrap

__all__ = ["pearson", "score_numbers", "spearman"]


def pearson(one: numpy.ndarray, other: numpy.ndarray) -> float:
    """Σ(x−x̄)(y−ȳ) / √(Σ(x−x̄)²·Σ(y−ȳ)²); 0.0 where either is constant, which tells nothing of the other."""
    if (one == one[0]).all() or (other == other[0]).all():
        return 0.0
    first, second = one - one.mean(), other - other.mean()
    scale = float(numpy.sqrt((first * first).sum()) * numpy.sqrt((second * second).sum()))
    return float(numpy.clip((first * second).sum() / scale, -1.0, 1.0)) if scale else 0.0


def spearman(one: numpy.ndarray, other: numpy.ndarray) -> float:
    """Pearson's correlation of the ranks; equal values share the mean of their ranks.

    >>> round(spearman(numpy.array([1.0, 2.0, 3.0]), numpy.array([1.0, 4.0, 9.0])), 12)
    1.0
    """
    return pearson(_ranks(one), _ranks(other))


def _ranks(values: numpy.ndarray) -> numpy.ndarray:
    _, place, counts = numpy.unique(values, return_inverse=True, return_counts=True)
    last = numpy.cumsum(counts)
    ranks: numpy.ndarray = (last - (counts - 1) / 2)[place.reshape(-1)]
    return ranks


def score_numbers(predicted: Sequence[float], golds: Sequence[float]) -> Facts:
    """Facts: ``examples``, ``mse``, ``mae`` (with ``_interval``, 95 %), ``pearson``, ``spearman`` (with ``_interval``).

    >>> facts = score_numbers([1.0, 2.0], [1.0, 4.0])
    >>> facts["mse"], facts["mae"], facts["pearson"]
    (2.0, 1.0, 1.0)
    """
    if not golds or len(predicted) != len(golds):
        found = f"{len(predicted)} predictions for {len(golds)} golds"
        raise InputError("score_numbers", found, "one each, at least one")
    own, gold = numpy.asarray(predicted, dtype=float), numpy.asarray(golds, dtype=float)
    facts: Facts = {
        "examples": len(gold),
        "mse": float(((own - gold) ** 2).mean()),
        "mae": float(abs(own - gold).mean()),
        "pearson": pearson(own, gold),
        "spearman": spearman(own, gold),
    }
    if len(gold) > 1:
        absolute = bootstrap(abs(own - gold).tolist())
        ranked = bootstrap(own.tolist(), gold.tolist(), statistic=spearman)
        facts["mae_interval"] = (float(absolute.low), float(absolute.high))
        facts["spearman_interval"] = (float(ranked.low), float(ranked.high))
    return facts
