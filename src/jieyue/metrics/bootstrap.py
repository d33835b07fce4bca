"""How far a mean could be off by the luck of the questions drawn: percentile bootstrap. Source: Efron 1979."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from jieyue.errors import InputError

__all__ = ["bootstrap_interval"]


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """(low, high) that hold ``level`` of the means of resampled ``values``; for a gain, pass the paired differences.

    Cost: ``resamples`` · n draws, in blocks of at most 4 million. Pure: the same arguments give the same interval.

    >>> bootstrap_interval([0.0, 1.0] * 50)
    (0.4, 0.6)
    """
    sample = numpy.asarray(values, dtype=float)
    if not len(sample):
        raise InputError("bootstrap_interval(values): found no values, expected at least one")
    generator = numpy.random.default_rng(seed)
    rows = max(1, 4_000_000 // len(sample))
    means = [
        sample[generator.integers(0, len(sample), (min(rows, resamples - done), len(sample)))].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    low, high = numpy.quantile(numpy.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
