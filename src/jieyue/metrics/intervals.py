"""How far a measured number may lie from the true one: bootstrap over examples, Student's t over few seeds.

``bootstrap``: draw as many examples as there are, with replacement, again and again; the middle ``level`` of the
statistic's values is the interval (percentile method). Examples that belong together (the questions of one passage) are
drawn together where ``groups`` names them: else the interval is too narrow.

``student``: m ± t · s/√m over m independent repeats, t the quantile of Student's distribution with m − 1 degrees of
freedom, for normally distributed means; right for the handful of seeds where a bootstrap has nothing to draw from.

``proportion``: k of n independent trials, exact whatever the share (Clopper and Pearson, Biometrika 26, 1934).

``share_bound``: what share of a population lies below a value, said from draws (Clopper and Pearson, Biometrika 26, 1934).

Sources: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13; Abramowitz and Stegun 26.7.3-4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy

from jieyue.errors import InputError
from jieyue.report import Estimate

__all__ = ["bootstrap", "proportion", "share_bound", "student", "student_quantile"]

_BLOCK = 1 << 22  # drawn places held at once, so that memory does not grow with the resamples


def bootstrap(
    *arrays: Sequence[float],
    statistic: Callable[..., float] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Estimate:
    """The statistic of the arrays and its bootstrap interval, the same for the same seed.

    ``arrays``: one or more of equal length n >= 2; they are drawn together (paired: ``bootstrap(a, b, statistic=lambda a,
    b: a.mean() - b.mean())``). ``statistic`` takes as many NumPy arrays; None is the mean of one array. ``groups``: n names;
    examples of one name are drawn together. Cost: ``resamples`` calls on n values (the mean: one matrix-vector product).

    >>> bootstrap([1, 0, 1, 1, 0, 1, 1, 1], seed=1).value
    0.75
    """
    data = [numpy.asarray(array, dtype=numpy.float64) for array in arrays]
    count = _check(data, statistic, level, resamples, groups)
    random = numpy.random.default_rng(seed)
    if statistic is None:
        value = float(data[0].mean())
        found = _means(data[0], random, resamples, groups)
    else:
        value = float(statistic(*data))
        draw = _drawer(count, random, groups)
        found = numpy.array(
            [statistic(*(array[places] for array in data)) for places in (draw() for _ in range(resamples))]
        )
    low, high = numpy.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    by = f" over {len(set(groups))} groups" if groups is not None else ""
    return Estimate(value, float(low), float(high), f"{level:.0%} bootstrap{by}, {resamples} resamples, seed {seed}")


def student(values: Sequence[float], level: float = 0.95) -> Estimate:
    """The mean of a few independent repeats and its t interval; at least two are needed.

    >>> estimate = student([70.0, 72.0, 71.0])
    >>> estimate.value, round(estimate.low, 3), round(estimate.high, 3)
    (71.0, 68.516, 73.484)
    """
    data = numpy.asarray(values, dtype=numpy.float64)
    if data.ndim != 1 or data.size < 2 or not numpy.isfinite(data).all():
        raise InputError(f"student(values): found {data.tolist()}, expected two or more finite numbers")
    _check_level(level)
    scale = float(abs(data).max()) or 1.0  # else the squares of tiny differences vanish, and an interval with them
    half = (
        student_quantile((1 + level) / 2, data.size - 1)
        * float((data / scale).std(ddof=1))
        * scale
        / math.sqrt(data.size)
    )
    mean = float(data.mean())
    return Estimate(mean, mean - half, mean + half, f"{level:.0%} Student t over {data.size} repeats")


def proportion(found: int, count: int, level: float = 0.95) -> Estimate:
    """The share ``found`` of ``count`` independent trials and Clopper and Pearson's exact interval for it, by bisection.

    >>> estimate = proportion(0, 10)
    >>> estimate.value, estimate.low, round(estimate.high, 4)
    (0.0, 0.0, 0.3085)
    """
    _check_level(level)
    if not 0 <= found <= count or count < 1:
        raise InputError(f"proportion(found={found}, count={count}): expected 0 <= found <= count, and at least one")
    tail = (1 - level) / 2
    low = 0.0 if found == 0 else _root(lambda p: 1 - _below(found, count, p) - tail)
    high = 1.0 if found == count else _root(lambda p: tail - _below(found + 1, count, p))
    return Estimate(found / count, low, high, f"{level:.0%} Clopper-Pearson")


def _root(rising: Callable[[float], float]) -> float:
    """Where a function that rises on [0, 1] is 0."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def _below(k: int, count: int, share: float) -> float:
    """P(Binomial(count, share) < k), 0 < share < 1."""
    return min(sum(_chance(i, count, share) for i in range(k)), 1.0)


def _chance(i: int, count: int, share: float) -> float:
    """P(Binomial(count, share) = i), 0 < share < 1."""
    log = math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1)
    return math.exp(log + i * math.log(share) + (count - i) * math.log1p(-share))


def share_bound(values: Sequence[float], share: float, confidence: float) -> float | None:
    """The smallest of the values below which, with this confidence, at least ``share`` of what they were drawn from lies.

    ``values``: n independent draws, of any distribution. With k draws at most x, Clopper and Pearson's one-sided interval for
    P(value <= x) starts at ``share`` or above exactly where P(Binomial(n, share) < k) >= ``confidence``; the answer is the k-th
    smallest value for the smallest such k. None where even the largest does not do: n < log(1 − confidence) / log(share).

    >>> share_bound(list(range(59)), 0.95, 0.95), share_bound(list(range(58)), 0.95, 0.95)
    (58, None)
    """
    if not (0 < share < 1 and 0 < confidence < 1):
        raise InputError(f"share_bound(share={share}, confidence={confidence}): expected both between 0 and 1")
    count, below = len(values), 0.0
    for k in range(1, count + 1):  # below = P(Binomial(count, share) < k)
        below += _chance(k - 1, count, share)
        if below >= confidence:
            return sorted(values)[k - 1]
    return None


def student_quantile(probability: float, freedom: int) -> float:
    """The t with P(T <= t) = probability at ``freedom`` degrees of freedom: bisection of the closed form, to 1e-12.

    >>> round(student_quantile(0.975, 2), 9), round(student_quantile(0.975, 30), 9)
    (4.30265273, 2.042272456)
    """
    if not (0 < probability < 1 and freedom >= 1):
        raise InputError(
            f"student_quantile({probability}, {freedom}): expected a probability in (0, 1) and freedom >= 1"
        )
    if probability < 0.5:
        return -student_quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while _within(high, freedom) < 2 * probability - 1:
        high *= 2
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| <= t): finite sums in the angle θ = arctan(t/√freedom) (Abramowitz and Stegun 26.7.3 odd, 26.7.4 even)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term, total = 1.0, 1.0 if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + sine * math.cos(angle) * total)


def _means(
    data: numpy.ndarray, random: numpy.random.Generator, resamples: int, groups: Sequence[Hashable] | None
) -> numpy.ndarray:
    """Means of all resamples: sums and counts of whole groups travel, the mean is taken once."""
    names = _numbered(groups) if groups is not None else numpy.arange(len(data))
    totals, counts = numpy.bincount(names, weights=data), numpy.bincount(names)
    found = []
    block = max(1, _BLOCK // len(totals))
    for start in range(0, resamples, block):
        places = random.integers(0, len(totals), size=(min(block, resamples - start), len(totals)))
        found.append(totals[places].sum(axis=1) / counts[places].sum(axis=1))
    return numpy.concatenate(found)


def _drawer(
    count: int, random: numpy.random.Generator, groups: Sequence[Hashable] | None
) -> Callable[[], numpy.ndarray]:
    """A function that draws the places of one resample."""
    if groups is None:
        return lambda: random.integers(0, count, size=count)
    names = _numbered(groups)
    members = numpy.split(numpy.argsort(names, kind="stable"), numpy.cumsum(numpy.bincount(names))[:-1])
    return lambda: numpy.concatenate([members[i] for i in random.integers(0, len(members), size=len(members))])


def _numbered(groups: Sequence[Hashable]) -> numpy.ndarray:
    numbers: dict[Hashable, int] = {}
    return numpy.array([numbers.setdefault(name, len(numbers)) for name in groups])


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level={level}: expected a part between 0 and 1, such as 0.95")


def _check(
    data: list[numpy.ndarray],
    statistic: Callable[..., float] | None,
    level: float,
    resamples: int,
    groups: Sequence[Hashable] | None,
) -> int:
    _check_level(level)
    if resamples < 1:
        raise InputError(f"bootstrap(resamples={resamples}): expected at least 1")
    if (
        not data
        or any(array.ndim != 1 for array in data)
        or len({array.size for array in data}) > 1
        or data[0].size < 2
    ):
        shapes = ", ".join(str(list(array.shape)) for array in data) or "none"
        raise InputError(
            f"bootstrap: found arrays of shape {shapes}, expected one or more of one equal length of at least 2"
        )
    if statistic is None and len(data) > 1:
        raise InputError(
            f"bootstrap: found {len(data)} arrays and no statistic, expected a statistic of as many arrays"
        )
    if any(not numpy.isfinite(array).all() for array in data):
        raise InputError("bootstrap: found values that are not finite, expected finite numbers")
    count = int(data[0].size)
    if groups is not None and (len(groups) != count or len(set(groups)) < 2):
        raise InputError(
            f"bootstrap(groups=...): found {len(groups)} names of {len(set(groups))} groups, expected {count} of two or more"
        )
    return count
