"""Where the marks along an axis stand: few, round in the unit of the axis, or at the values that were tried."""

from __future__ import annotations

import itertools
import math

__all__ = ["given_ticks", "linear_ticks", "log_ticks"]


def linear_ticks(values: list[float], unit: str, count: int, *, inside: bool = False) -> list[float]:
    """About ``count`` multiples of 1, 2, 2.5 or 5 times a power of ten (of KiB, MiB, GiB; minutes, hours).

    They span the values; ``inside`` leaves out those that lie beyond.

    >>> linear_ticks([0, 3.2 * 2**30], "bytes", 4) == [0, 2**30, 2 * 2**30, 3 * 2**30, 4 * 2**30]
    True
    >>> linear_ticks([0, 1180], "", 4, inside=True)
    [0.0, 500.0, 1000.0]
    """
    from matplotlib.ticker import MaxNLocator

    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if low == high:
        if inside:
            return [low]
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    if 0 < low < 0.5 * high:
        low = 0.0
    largest, scale = max(abs(low), abs(high)), 1.0
    if unit == "bytes" and largest >= 1024:
        scale = 1024.0 ** min(3, math.floor(math.log2(largest) / 10))
    elif unit == "seconds" and largest >= 120:
        scale = 3600.0 if largest >= 7200 else 60.0
    whole = unit == "" and largest >= 1 and all(float(v).is_integer() for v in finite)
    locator = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10], integer=whole)
    ticks = [float(tick) * scale for tick in locator.tick_values(low / scale, high / scale)]
    slack = 0.04 * (high - low)
    return [t for t in ticks if not inside or min(finite) - slack <= t <= high + slack] or ticks


def log_ticks(values: list[float], unit: str, count: int) -> list[float]:
    """Powers of ten (of two for bytes), at most about ``count``; 2 and 5 between them where there is room.

    >>> log_ticks([0.3, 400], "", 5)
    [1.0, 10.0, 100.0]
    """
    positive = [v for v in values if 0 < v < math.inf] or [1.0, 10.0]
    base, room = (2.0, 1.0) if unit == "bytes" else (10.0, 0.5)
    low = math.floor(math.log(min(positive), base) + 1e-9)
    high = math.ceil(math.log(max(positive), base) - 1e-9)
    every = max(1, math.ceil((high - low) / count))
    steps = (1, 2, 5) if base == 10 and 3 * (high - low) <= count else (1,)
    ticks = [step * base**power for power in range(low, high + 1, every) for step in steps]
    return [t for t in ticks if room * min(positive) <= t <= max(positive) / room] or ticks


def given_ticks(values: list[float], count: int) -> list[float]:
    """The values themselves (or every other) on a logarithmic axis, where they are few and stand well apart; else none.

    >>> given_ticks([128, 256, 512, 1024, 128], 5), given_ticks([100, 101, 900], 5)
    ([128, 256, 512, 1024], [])
    """
    places = sorted({v for v in values if 0 < v < math.inf})
    places = places[:: 1 + (len(places) > count)]
    if not 1 < len(places) <= count:
        return []
    nearest = min(b / a for a, b in itertools.pairwise(places))
    return places if math.log(nearest) * 1.5 * count >= math.log(places[-1] / places[0]) else []
