"""The points of a picture that tell their values: where they stand in the drawing, and in which words.

Without script a pointer that rests on one is told by its ``<title>``; the page's script tells the nearest one, by keyboard and
touch as well. Bars have their values beside them and need no points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.etree import ElementTree

from .amounts import Estimate, format_value
from .picture import Axis, Picture, Series

__all__ = ["Told", "add_points", "told_points"]

_MOST = 60  # points of a curve: closer ones cannot be told apart with a finger; the CSV file has all
Told = tuple[float, float, str]
"""x and y in the picture's own values, and what stands there."""


def told_points(picture: Picture) -> Iterator[Told]:
    """The points of curves, clouds and bins that have a place on the axes; at most ``_MOST`` of a curve, evenly, with its ends."""
    if picture.form not in ("line", "scatter", "histogram"):
        return
    for series in picture.series:
        count = len(series.y)
        shown = min(count, _MOST)
        for number in dict.fromkeys(round(i * (count - 1) / max(1, shown - 1)) for i in range(shown)):
            x, y = _place(picture, series, number)
            if _has_place(x, picture.x) and _has_place(y, picture.y):
                yield x, y, _words(picture, series, number)


def _place(picture: Picture, series: Series, number: int) -> tuple[float, float]:
    if picture.form == "histogram":
        return (float(series.x[number]) + float(series.x[number + 1])) / 2, float(series.y[number])
    x = series.x[number]
    return (math.nan if isinstance(x, str) else float(x)), float(series.y[number])


def _has_place(value: float, axis: Axis) -> bool:
    return math.isfinite(value) and (value > 0 or not axis.log)


def _words(picture: Picture, series: Series, number: int) -> str:
    """``training · update 120 · 2.314``."""
    y: float | Estimate = series.y[number]
    if series.low and series.low[number] < series.high[number]:
        y = Estimate(series.y[number], series.low[number], series.high[number])
    ends = series.x[number : number + 2] if picture.form == "histogram" else series.x[number : number + 1]
    where = " … ".join(format_value(end, picture.x.unit) for end in ends)
    return " · ".join(
        filter(None, (series.name, f"{picture.x.label} {where}".strip(), format_value(y, picture.y.unit)))
    )


def add_points(root: ElementTree.Element, places: Iterator[tuple[float, float, str]]) -> None:
    """Adds a circle, unseen, for each (x, y, words) in the units of the drawing."""
    group = ElementTree.Element("g", {"class": "points"})
    for x, y, words in places:
        circle = ElementTree.SubElement(
            group, "circle", {"class": "point", "cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "5"}
        )
        ElementTree.SubElement(circle, "title").text = words
    if len(group):
        root.append(group)
