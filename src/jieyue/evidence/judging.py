"""From numbers to words: a claim holds where every difference's interval lies on the claimed side, and only there.

It fails where one of the intervals lies wholly on the other side. Where an interval reaches the border nothing was shown,
either way, whatever its mean is: "not decided". The intervals are Student's t over seeds, of differences (or logarithms of
ratios) paired by seed; see ``metrics.intervals``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from jieyue.errors import InputError
from jieyue.metrics.intervals import student
from jieyue.report import Estimate, Picture, format_value
from jieyue.report.amounts import Given

from .claims import FAILS, HOLDS, UNDECIDED, UNTESTED, Claim, Pairs, Result, Verdict, Word

__all__ = ["by_seed", "decide", "difference", "factor", "mean", "side", "together", "verdict_of"]


def verdict_of(claim: Claim, results: Sequence[Result], missing: Sequence[str] = ()) -> Verdict:
    """The claim's own judge, asked only where it may answer: every cell measured, and two seeds at least.

    ``missing``: the reasons of the cells that could not be measured. A claim that is ``certain`` needs no second seed.
    """
    if missing:
        return Verdict(UNTESTED, "; ".join(dict.fromkeys(missing)))
    if not results:
        return Verdict(UNTESTED, "no cell is declared at this scale")
    seeds = {result.cell.seed for result in results}
    if len(seeds) < 2 and not claim.certain:
        return Verdict(UNTESTED, "a single seed gives no interval")
    return claim.judge([(result.cell, result.numbers) for result in results])


def decide(
    gains: Mapping[str, Estimate],
    border: float | Mapping[str, float] = 0.0,
    *,
    unit: str = "",
    columns: Sequence[str | tuple[str, str]] = (),
    rows: Sequence[Sequence[Given]] = (),
    lines: Picture | None = None,
) -> Verdict:
    """Holds where every gain's interval lies above ``border`` (0 for differences, 1 for factors), fails where one lies below.

    ``border``: one for all, or one for each gain by its name. Otherwise it is not decided; a gain that is not finite decides
    nothing. The sentence says of each what was needed, and its own word.

    >>> decide({"F1 over the baseline": Estimate(0.02, 0.01, 0.03)}, unit="share").why
    'F1 over the baseline 2.0% [1.0%, 3.0%], needs more than 0: holds'
    >>> decide({"times as fast": Estimate(4.8, 3.7, 6.3)}, {"times as fast": 4}, unit="x").why
    'times as fast 4.8× [3.7, 6.3], needs more than 4×: not decided'
    >>> decide({"F1 over the baseline": Estimate(-0.02, -0.03, -0.01)}, unit="share").word
    'fails'
    """
    if not gains:
        raise InputError("decide(gains)", "no gain", "at least one interval")
    told, words = [], []
    for name, gain in gains.items():
        needed = border[name] if isinstance(border, Mapping) else border
        words.append(side(gain, needed))
        least = format_value(float(needed), unit) if needed else "0"
        finite = all(map(math.isfinite, (gain.value, gain.low, gain.high)))
        told.append(
            f"{name} {format_value(gain, unit)}, needs more than {least}: {words[-1] if finite else 'not finite'}"
        )
    return Verdict(together(words), "; ".join(told), columns, rows, lines)


def side(gain: Estimate, border: float) -> Word:
    """Where the interval lies: above the border it holds, below it fails, on it or not finite it is not decided."""
    if not all(map(math.isfinite, (gain.value, gain.low, gain.high))):
        return UNDECIDED
    return HOLDS if gain.low > border else FAILS if gain.high < border else UNDECIDED


def together(words: Sequence[Word]) -> Word:
    """The word of a claim that has several parts: one part that fails decides, else one that is not decided."""
    return FAILS if FAILS in words else UNDECIDED if UNDECIDED in words else HOLDS


def by_seed(results: Pairs, number: str, **settings: str | float | None) -> dict[int, float]:
    """Seed -> ``number`` of the cells that have these settings; the mean where a seed has several.

    >>> from jieyue.evidence.claims import Cell
    >>> by_seed([(Cell("k", {"arm": "a"}, 0), {"f1": 0.5}), (Cell("k", {"arm": "b"}, 0), {"f1": 0.6})], "f1", arm="a")
    {0: 0.5}
    """
    found: dict[int, list[float]] = {}
    for cell, numbers in results:
        if all(cell.settings.get(name) == value for name, value in settings.items()):
            found.setdefault(cell.seed, []).append(float(numbers[number]))
    return {seed: fmean(values) for seed, values in sorted(found.items())}


def mean(values: Mapping[int, float]) -> Estimate:
    """Mean and 95 % t interval over the seeds."""
    return student(list(values.values()))


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
    """Mean of one − other, paired by seed, with its 95 % t interval."""
    return _paired(one, other, lambda a, b: a - b)


def factor(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
    """Geometric mean of one ÷ other, paired by seed: the t interval of the logarithms."""
    logs = _paired(one, other, lambda a, b: math.log(a / b))
    return Estimate(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high), logs.how + " of logarithms")


def _paired(one: Mapping[int, float], other: Mapping[int, float], of: Callable[[float, float], float]) -> Estimate:
    if one.keys() != other.keys():
        raise InputError("a paired difference", f"seeds {sorted(one)} and {sorted(other)}", "the same seeds")
    return student([of(one[seed], other[seed]) for seed in sorted(one)])
