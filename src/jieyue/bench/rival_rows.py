"""Contestants side by side: a row each, and from which length on one of them is the faster."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["COLD_SECONDS", "SLOW_SECONDS", "RivalRow", "crossing"]

SLOW_SECONDS = 1.0  # a call that takes longer is measured once
COLD_SECONDS = 30.0  # and one that takes this long is measured cold


@dataclass(frozen=True)
class RivalRow:
    """A contestant at one pattern and length: median seconds, how many times ours, peak bytes; or why it did not run."""

    pattern: str
    n: int
    name: str
    forward_seconds: float | None = None
    both_seconds: float | None = None
    forward_times: float | None = None
    both_times: float | None = None
    peak_bytes: int | None = None
    note: str = ""


def crossing(dense: dict[int, float], ours: dict[int, float]) -> float | None:
    """The N from which ``ours`` is faster, straight lines between measured points on logarithmic axes; None: nowhere."""
    shared = sorted(dense.keys() & ours.keys())
    gaps = [math.log(dense[n] / ours[n]) for n in shared]
    if not shared or gaps[-1] < 0:
        return None
    for i in range(len(shared) - 1, 0, -1):
        if gaps[i - 1] < 0:
            n, m, before, after = shared[i - 1], shared[i], gaps[i - 1], gaps[i]
            return float(round(n * (m / n) ** (-before / (after - before))))
    return float(shared[0])
