"""Whether a confidence of 0.8 is right eight times in ten, and one temperature that makes it so.

Expected calibration error = Σ over bins (n_bin / n) · abs(share right − mean confidence). Source: Guo et al. 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy

from jieyue.errors import InputError

__all__ = ["Bin", "Calibration", "calibration_error", "cross_fit", "fit_temperature"]


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers whose confidence lies in ``low`` (excluded, but for 0) .. ``high``: how many, how sure, how often right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def calibration_error(
    confidence: Sequence[float], correct: Sequence[bool], num_bins: int = 10
) -> tuple[float, list[Bin]]:
    """(expected calibration error, the bins that hold answers), over equal widths of confidence.

    >>> calibration_error([0.9, 0.9, 0.9, 0.9, 0.3], [1, 1, 1, 0, 0])[0]  # .8 · |.75 − .9| + .2 · .3
    0.18...
    """
    sure, right = numpy.asarray(confidence, dtype=float), numpy.asarray(correct, dtype=float)
    if len(sure) != len(right) or not len(sure):
        raise InputError(
            f"calibration_error(): found {len(sure)} confidences and {len(right)} outcomes, expected as many"
        )
    places = numpy.clip(numpy.ceil(sure * num_bins).astype(int) - 1, 0, num_bins - 1)
    bins = []
    for place in numpy.unique(places):
        own = places == place
        bins.append(
            Bin(
                place / num_bins,
                (place + 1) / num_bins,
                int(own.sum()),
                float(sure[own].mean()),
                float(right[own].mean()),
            )
        )
    return sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / len(sure), bins


def fit_temperature(
    confidence_at: Callable[[float], Sequence[float]],
    correct: Sequence[bool],
    lowest: float = 0.2,
    highest: float = 5.0,
) -> float:
    """The temperature in ``lowest..highest`` whose confidences make the outcomes likeliest (least log loss).

    Golden-section search over log T after a coarse scan, to 0.5 %. ``confidence_at(T)``: a confidence for each outcome.
    """
    right = numpy.asarray(correct, dtype=float)

    def loss(log_temperature: float) -> float:
        sure = numpy.clip(numpy.asarray(confidence_at(math.exp(log_temperature)), dtype=float), 1e-6, 1 - 1e-6)
        return float(-(right * numpy.log(sure) + (1 - right) * numpy.log1p(-sure)).mean())

    scan = numpy.linspace(math.log(lowest), math.log(highest), 13)
    best = int(numpy.argmin([loss(point) for point in scan]))
    low, high = scan[max(best - 1, 0)], scan[min(best + 1, len(scan) - 1)]
    golden = (math.sqrt(5) - 1) / 2
    inner, outer = high - golden * (high - low), low + golden * (high - low)
    loss_inner, loss_outer = loss(inner), loss(outer)
    while high - low > 0.005:
        if loss_inner <= loss_outer:
            high, outer, loss_outer = outer, inner, loss_inner
            inner = high - golden * (high - low)
            loss_inner = loss(inner)
        else:
            low, inner, loss_inner = inner, outer, loss_outer
            outer = low + golden * (high - low)
            loss_outer = loss(outer)
    return math.exp((low + high) / 2)


@dataclass(frozen=True, slots=True)
class Calibration:
    """One temperature fitted on all; the error at T = 1, and at temperatures fitted on the other half of the outcomes."""

    temperature: float
    error_before: float
    error_after: float
    count: int


def cross_fit(confidence_at: Callable[[Sequence[int], float], Sequence[float]], correct: Sequence[bool]) -> Calibration:
    """``confidence_at(which, T)``: confidences of the outcomes with these numbers. Halves: even and odd numbers."""
    every = range(len(correct))
    halves = [every[::2], every[1::2]] if len(correct) > 1 else [every, every]
    after: list[float] = [0.0] * len(correct)
    for fitted, held in (halves, halves[::-1]):
        own = _fit(confidence_at, fitted, correct)
        for at, value in zip(held, confidence_at(held, own), strict=True):
            after[at] = value
    return Calibration(
        temperature=_fit(confidence_at, every, correct),
        error_before=calibration_error(confidence_at(every, 1.0), correct)[0],
        error_after=calibration_error(after, correct)[0],
        count=len(correct),
    )


def _fit(
    confidence_at: Callable[[Sequence[int], float], Sequence[float]], which: Sequence[int], correct: Sequence[bool]
) -> float:
    return fit_temperature(lambda heat: confidence_at(which, heat), [correct[at] for at in which])
