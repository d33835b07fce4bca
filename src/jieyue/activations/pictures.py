"""A fit as pictures and as a report: the function, the error with its equal extremes, the criterion over a constant.

The pictures are data (``report.Picture``); ``save("name.svg")`` draws them for light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from jieyue.report import Axis, Picture, Report, Series

from .fitting import Fit
from .forms import TARGETS, Approximation, Form

__all__ = ["criterion_picture", "error_picture", "fit_report", "function_picture"]

_POINTS = 401


def function_picture(
    fits: Mapping[str, Fit | Approximation],
    title: str,
    span: tuple[float, float] = (-4.0, 4.0),
    target: str | None = None,
) -> Picture:
    """The target and its approximations over ``span``; ``target`` names another than the fits' own."""
    x = torch.linspace(*span, _POINTS, dtype=torch.float64)
    approximations = {name: found.approximation if isinstance(found, Fit) else found for name, found in fits.items()}
    aim = TARGETS[target] if target else next(iter(approximations.values())).target
    series = [_series(aim.formula or aim.name, x.tolist(), aim.function(x).tolist())]
    series += [_series(name, x.tolist(), found(x).tolist()) for name, found in approximations.items()]
    return Picture(title=title, form="line", series=tuple(series), x=Axis("x"), y=Axis("value"))


def error_picture(fits: Mapping[str, Fit], title: str, span: tuple[float, float] | None = None) -> Picture:
    """approximation − target for each fit, over ``span`` (by default the fits' domain, the right half where errors are
    even or odd), with the largest extremes of the first fit as points.
    """
    first = next(iter(fits.values()))
    if span is None:
        low, high = first.domain
        span = (min([0.0, *(x for x, _ in first.peaks)]) if low == -high else low, high)
    x = torch.linspace(*span, _POINTS, dtype=torch.float64)
    series = []
    for name, fit in fits.items():
        error = fit(x) - fit.approximation.target.function(x)
        series.append(_series(name, x.tolist(), error.tolist()))
        if fit is first:
            equal = [
                peak for peak in fit.peaks if abs(peak[1]) >= fit.error * (1 - 1e-3) and span[0] <= peak[0] <= span[1]
            ]
            series.append(_dots("its largest extremes" if len(equal) > 1 else "its largest", equal))
    return Picture(title=title, form="line", series=tuple(series), x=Axis("x"), y=Axis("approximation − target"))


def criterion_picture(
    form: Form,
    values: Sequence[Sequence[float]],
    over: Sequence[float],
    label: str,
    marks: Mapping[str, float],
    title: str,
) -> Picture:
    """max |error| on erf(x/√2) for each of ``values`` (constants), drawn over ``over``; ``marks`` are named places on that axis."""
    x = torch.linspace(0, 8, 8001, dtype=torch.float64)
    aim = TARGETS["erf"].function(x)
    largest = [float((form.function(x, *constants) - aim).abs().max()) for constants in values]
    series = [_series("largest error", list(over), largest)]
    for name, place in marks.items():
        nearest = min(range(len(over)), key=lambda i: abs(over[i] - place))
        series.append(_dots(name, [(place, largest[nearest])]))
    return Picture(title=title, form="line", series=tuple(series), x=Axis(label), y=Axis("max |error|"))


def fit_report(fit: Fit, title: str = "") -> Report:
    """What ``jieyue fit`` shows: the facts and both pictures (``code`` gives the constants as source)."""
    target = fit.approximation.target
    report = Report(title or f"{fit.approximation.form.name} for {target.name}, {fit.criterion}")
    facts = report.section("Fit")
    for what, value in fit.rows():
        facts.fact(what, value, key=what == "largest error")
    shown = report.section("Pictures")
    shown.picture(function_picture({"approximation": fit}, "Function", _visible(fit)))
    shown.picture(error_picture({"error": fit}, "Error"))
    return report


def _visible(fit: Fit) -> tuple[float, float]:
    low, high = fit.domain
    return max(low, -4.0) if low < 4 else low, min(high, 4.0) if high > -4 else high


def _series(name: str, x: list[float], y: list[float]) -> Series:
    return Series(name, tuple(x), tuple(y))


def _dots(name: str, points: Sequence[tuple[float, float]]) -> Series:
    """Points without a line between them: a gap after each."""
    x = [place for place, _ in points for _ in (0, 1)]
    y = [value for _, error in points for value in (error, math.nan)]
    return Series(name, tuple(x), tuple(y))
