"""A picture as data: what is drawn stays a value, is kept in report.json, and is drawn anew wherever it is shown.

Forms: ``line`` (curves; low and high give a band), ``scatter``, ``bar`` (horizontal, one or more series over the same
names), ``stack`` (bars laid end to end: parts of a whole), ``waterfall`` (bars, each with what it is below the one before),
``histogram``. Any axis may be logarithmic; a log-log picture has both. Nothing here draws: see ``drawing``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from jieyue.errors import InputError

from .amounts import Estimate, Given, format_value, number, plain_text

__all__ = ["Axis", "Picture", "Series"]

FORMS = ("line", "scatter", "bar", "stack", "waterfall", "histogram")
Numbers = Sequence[Given]
Values = (
    tuple[Sequence[float], Numbers]
    | tuple[Sequence[str], Numbers]
    | Mapping[str, Given]
    | Mapping[float, Given]
    | Mapping[int, Given]
)


@dataclass(frozen=True)
class Axis:
    """What an axis measures: label, unit (``amounts`` lists them), logarithmic or not."""

    label: str = ""
    unit: str = ""
    log: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", plain_text(self.label))
        object.__setattr__(self, "unit", plain_text(self.unit))


@dataclass(frozen=True)
class Series:
    """Named values: ``y[i]`` at ``x[i]`` (numbers; names for bars), between ``low[i]`` and ``high[i]`` where these are given.

    A histogram's x holds the n + 1 borders of its n bins, its y the counts. ``is_thin``: a curve that stands behind the others,
    such as raw values behind their running mean.
    """

    name: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    is_thin: bool = False

    def __post_init__(self) -> None:
        where = f"series {self.name!r}"
        object.__setattr__(self, "name", plain_text(self.name))
        for part in ("x", "y", "low", "high"):
            values = tuple(
                plain_text(v) if isinstance(v, str) and part == "x" else number(v, where) for v in getattr(self, part)
            )
            object.__setattr__(self, part, values)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Series on two axes. ``rules`` are labelled straight lines across the values: a budget, a baseline.

    Make one with ``Picture.lines``, ``.points``, ``.bars``, ``.waterfall`` or ``.histogram``; ``report.save_picture(picture,
    path)`` draws it into a file.
    """

    title: str
    form: str
    series: tuple[Series, ...]
    x: Axis = Axis()
    y: Axis = Axis()
    rules: tuple[tuple[str, float], ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InputError(f"Picture(form={self.form!r}): expected one of {', '.join(FORMS)}")
        for series in self.series:
            expected = len(series.y) + (self.form == "histogram")
            if len(series.x) != expected:
                raise InputError(
                    f"picture {self.title!r}, series {series.name!r}: found {len(series.x)} x for {len(series.y)} y, "
                    f"expected {expected}"
                )
            if {len(series.low), len(series.high)} - {0, len(series.y)} or len(series.low) != len(series.high):
                raise InputError(
                    f"picture {self.title!r}, series {series.name!r}: found {len(series.low)} low and {len(series.high)} high, "
                    f"expected none or {len(series.y)} of each"
                )
        rules = tuple((plain_text(name), number(value, f"rule {name!r}")) for name, value in self.rules)
        object.__setattr__(self, "rules", rules)
        object.__setattr__(self, "title", plain_text(self.title))
        object.__setattr__(self, "note", plain_text(self.note))

    @classmethod
    def lines(
        cls,
        title: str,
        curves: Mapping[str, Values],
        *,
        x: str | tuple[str, str] | Axis = "",
        y: str | tuple[str, str] | Axis = "",
        log: str = "",
        rules: Mapping[str, float] | None = None,
        note: str = "",
        thin: Sequence[str] = (),
    ) -> Picture:
        """Curves by name, each ``(xs, ys)`` or ``{x: y}``; a y may be an ``Estimate``, which draws a band.

        ``x="update"``, ``y=("memory", "bytes")``; ``log`` is "", "x", "y" or "xy"; ``thin``: names of curves behind the others.
        """
        series = tuple(replace(_series(name, values, title), is_thin=name in thin) for name, values in curves.items())
        return cls(title=title, form="line", series=series, **_noted(_frame(x, y, log, rules, note), series))

    @classmethod
    def points(
        cls,
        title: str,
        clouds: Mapping[str, Values],
        *,
        x: str | tuple[str, str] | Axis = "",
        y: str | tuple[str, str] | Axis = "",
        log: str = "",
        rules: Mapping[str, float] | None = None,
        note: str = "",
    ) -> Picture:
        """Like ``lines``, as unconnected points; an ``Estimate`` draws an error bar."""
        series = tuple(_series(name, values, title) for name, values in clouds.items())
        return cls(title=title, form="scatter", series=series, **_noted(_frame(x, y, log, rules, note), series))

    @classmethod
    def bars(
        cls,
        title: str,
        bars: Mapping[str, Any],
        *,
        value: str | tuple[str, str] | Axis = "",
        stacked: bool = False,
        log: str = "",
        rules: Mapping[str, float] | None = None,
        note: str = "",
    ) -> Picture:
        """``{name: number or Estimate}``, or ``{series: {name: number or Estimate}}``; ``stacked`` lays series end to end.

        ``log`` "y" makes the value axis logarithmic. A name that a series lacks has no bar there (not a bar of zero).
        """
        groups = bars if all(isinstance(group, Mapping) for group in bars.values()) else {"": bars}
        names = list(dict.fromkeys(str(name) for group in groups.values() for name in group))
        series = tuple(
            _series(name, {each: found.get(each, math.nan) for each in names}, title)
            for name, found in ((key, {str(k): v for k, v in group.items()}) for key, group in groups.items())
        )
        if stacked and any(s.low for s in series):
            raise InputError(f"picture {title!r}: found intervals, expected plain numbers in a stacked picture")
        return cls(
            title=title, form="stack" if stacked else "bar", series=series, **_frame("", value, log, rules, note)
        )

    @classmethod
    def waterfall(
        cls,
        title: str,
        steps: Mapping[str, tuple[str, float]],
        *,
        value: str | tuple[str, str] | Axis = "",
        rules: Mapping[str, float] | None = None,
        note: str = "",
    ) -> Picture:
        """``{step: (kind, number)}``, one step after another: a bar a step, coloured by its kind, pale where the step took away.

        Kinds are what the legend tells apart, such as "measured" and "predicted".
        """
        kinds = sorted({kind for kind, _ in steps.values()})  # one kind, one colour, whichever comes first
        found = {kind: {step: y for step, (own, y) in steps.items() if own == kind} for kind in kinds}
        ordered = {kind: {step: values.get(step, math.nan) for step in steps} for kind, values in found.items()}
        made = cls.bars(title, ordered, value=value, rules=rules, note=note)
        return replace(made, form="waterfall")

    @classmethod
    def histogram(
        cls,
        title: str,
        values: Numbers | Mapping[str, Numbers],
        *,
        bins: int | Sequence[float] = 20,
        x: str | tuple[str, str] | Axis = "",
        y: str | tuple[str, str] | Axis = "count",
        log: str = "",
        note: str = "",
    ) -> Picture:
        """Counts of the values in bins of equal width (or between the given borders), the same for every series.

        Values outside given borders, and not finite ones, are counted in the note, never dropped in silence.
        """
        groups = values if isinstance(values, Mapping) else {"": values}
        found = {str(name): [float(number(v, f"picture {title!r}")) for v in group] for name, group in groups.items()}
        finite = [v for group in found.values() for v in group if math.isfinite(v)]
        edges = _edges(finite, bins, title)
        series, outside = [], 0
        for name, group in found.items():
            counts = [0] * (len(edges) - 1)
            for v in group:
                if math.isfinite(v) and edges[0] <= v <= edges[-1]:
                    counts[_bin(v, edges)] += 1
                else:
                    outside += 1
            series.append(Series(name, tuple(edges), tuple(counts)))
        if outside:
            note = f"{note} {outside:,} values lie outside the bins.".strip()
        return cls(title=title, form="histogram", series=tuple(series), **_frame(x, y, log, None, note))

    @property
    def num_points(self) -> int:
        return sum(len(series.y) for series in self.series)

    def summary(self) -> str:
        """The picture in one sentence, for text, for the model card and for those who cannot see it.

        >>> Picture.lines("Loss", {"training": ([0, 100], [4.5, 0.25])}, x="update").summary()
        'training: 4.5 at 0 to 0.25 at 100 (lowest 0.25, highest 4.5, 2 points)'
        """
        return "; ".join(self._sentence(series) for series in self.series) or "no data"

    def _sentence(self, series: Series) -> str:
        name = f"{series.name}: " if series.name else ""
        unit = self.y.unit
        if self.form in ("bar", "stack", "waterfall"):
            shown = [
                f"{x} {format_value(y, unit)}" for x, y in zip(series.x, series.y, strict=True) if not math.isnan(y)
            ]
            return name + ", ".join(shown)
        known = [(x, y) for x, y in zip(series.x, series.y, strict=False) if math.isfinite(y)]
        if not known:
            return f"{name}no finite values"
        if self.form == "histogram":
            total = sum(series.y)
            top = max(range(len(series.y)), key=lambda i: series.y[i])
            span = " to ".join(format_value(edge, self.x.unit) for edge in series.x[top : top + 2])
            return f"{name}{format_value(total)} values, most of them ({format_value(series.y[top])}) from {span}"
        (x0, y0), (x1, y1) = known[0], known[-1]
        low, high = min(y for _, y in known), max(y for _, y in known)
        say = [
            format_value(v, u)
            for v, u in ((y0, unit), (x0, self.x.unit), (y1, unit), (x1, self.x.unit), (low, unit), (high, unit))
        ]
        return f"{name}{say[0]} at {say[1]} to {say[2]} at {say[3]} (lowest {say[4]}, highest {say[5]}, {len(known):,} points)"


def _axis(axis: str | tuple[str, str] | Axis, log: bool) -> Axis:
    made = axis if isinstance(axis, Axis) else Axis(axis) if isinstance(axis, str) else Axis(*axis)
    return Axis(made.label, made.unit, made.log or log)


class _Frame(TypedDict):
    """What every form's picture has beside its series."""

    x: Axis
    y: Axis
    rules: tuple[tuple[str, float], ...]
    note: str


Label = str | tuple[str, str] | Axis


def _frame(x: Label, y: Label, log: str, rules: Mapping[str, float] | None, note: str) -> _Frame:
    if log not in ("", "x", "y", "xy"):
        raise InputError(f"log={log!r}: expected '', 'x', 'y' or 'xy'")
    return {"x": _axis(x, "x" in log), "y": _axis(y, "y" in log), "rules": tuple((rules or {}).items()), "note": note}


def _noted(frame: _Frame, series: tuple[Series, ...]) -> _Frame:
    """The frame, its note saying how many points have no place on its axes: none is left out in silence."""

    def placeless(value: float | str, axis: Axis) -> bool:
        return not isinstance(value, str) and (not math.isfinite(value) or (axis.log and value <= 0))

    points = [point for each in series for point in zip(each.x, each.y, strict=False)]
    missing = sum(placeless(x, frame["x"]) or placeless(y, frame["y"]) for x, y in points)
    if missing:
        reason = (
            "not finite, or not positive on a logarithmic axis" if frame["x"].log or frame["y"].log else "not finite"
        )
        frame["note"] = f"{frame['note']} {missing:,} of {len(points):,} points cannot be drawn: {reason}.".strip()
    return frame


def _series(name: str, values: Values, title: str) -> Series:
    where = f"picture {title!r}, series {name!r}"
    if not isinstance(values, Mapping) and len(values) != 2:
        raise InputError(f"{where}: found {len(values)} sequences, expected (xs, ys) or a mapping from x to y")
    xs: list[float | str] = list(values) if isinstance(values, Mapping) else [*values[0]]
    ys = list(values.values()) if isinstance(values, Mapping) else list(values[1])
    ends: list[tuple[float, float, float]] = [
        (y.value, y.low, y.high) if isinstance(y, Estimate) else (number(y, where),) * 3 for y in ys
    ]
    low, high = (tuple(end[i] for end in ends) for i in (1, 2))
    bare = not any(isinstance(y, Estimate) for y in ys)
    return Series(name, tuple(xs), tuple(end[0] for end in ends), () if bare else low, () if bare else high)


def _edges(finite: list[float], bins: int | Sequence[float], title: str) -> list[float]:
    if not isinstance(bins, int):
        edges = [float(edge) for edge in bins]
        if len(edges) < 2 or any(a >= b for a, b in itertools.pairwise(edges)):
            raise InputError(f"picture {title!r}: found bins {edges}, expected at least two rising borders")
        return edges
    if bins < 1:
        raise InputError(f"picture {title!r}: found bins={bins}, expected at least 1")
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return [low + (high - low) * i / bins for i in range(bins)] + [high]


def _bin(value: float, edges: list[float]) -> int:
    from bisect import bisect_right

    return min(bisect_right(edges, value), len(edges) - 1) - 1
