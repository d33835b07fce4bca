"""The drawing of one picture on a matplotlib figure: axes, ticks, curves, bars, rules, legend; roles for colours."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .amounts import format_tick, format_ticks, format_value, is_told
from .colours import SERIES
from .hover import told_points
from .picture import Axis, Picture, Series
from .ticks import given_ticks, linear_ticks, log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = ["Canvas"]

_NARROW = 480
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 1.5)), (0, (9, 3)))
_MARKERS = "osD^vP"


class Canvas:
    """``Canvas(picture, ...).draw()`` gives the figure; ``words`` then holds the true text behind each stand-in.

    ``width`` in units (CSS pixels at natural size); ``colours`` maps roles to what is drawn.
    """

    def __init__(self, picture: Picture, *, width: int, colours: dict[str, str], titled: bool, stand_in: bool) -> None:
        self.picture, self.width, self.colours = picture, width, colours
        self.titled, self.stand_in = titled, stand_in
        self.words: list[str] = []
        self.axes: Axes | None = None
        self.text_points = 12.0 if width > _NARROW else 11.0

    def draw(self) -> Figure:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        figure = Figure(figsize=(self.width / 72, self._height() / 72), dpi=72)
        left, bottom, width, height = self._room()
        rect = (left / self.width, bottom / self._height(), width / self.width, height / self._height())
        figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=4 / 72, h_pad=4 / 72, rect=rect))
        if self.titled:
            place, size = 1 - self._title_height() / self._height(), self.text_points + 2
            title = figure.text((left + 4) / self.width, place, "", va="bottom", size=size, weight="bold")
            self._label(title, self.picture.title, "ink")
        axes = self.axes = figure.add_subplot()
        self._frame(axes)
        if self._blank():
            text = axes.text(0.5, 0.5, "", ha="center", va="center", transform=axes.transAxes)
            self._label(text, "no finite values", "muted")
            axes.set_axis_off()
            return figure
        draw: dict[str, Callable[[Axes], None]] = {
            "line": self._curves,
            "scatter": self._curves,
            "bar": self._bars,
            "stack": self._bars,
            "waterfall": self._waterfall,
            "histogram": self._histogram,
        }
        draw[self.picture.form](axes)
        self._legend(axes)
        return figure

    def places(self) -> Iterator[tuple[float, float, str]]:
        """Once the figure was saved: every point that tells its value, in units from the left and from the top, and its words."""
        if self.axes is None or self._blank():
            return
        for x, y, words in told_points(self.picture):
            left, bottom = self.axes.transData.transform((x, y))
            yield float(left), self._height() - float(bottom), words

    def _room(self) -> tuple[float, float, float, float]:
        """Left, bottom, width, height of what title, legend and margins leave to the axes, in units."""
        side, bottom = (12.0, 8.0) if self.titled else (0.0, 0.0)
        return (
            side,
            bottom,
            self.width - 2 * side,
            self._height() - bottom - self._title_height() - self._legend_height(),
        )

    def _title_height(self) -> float:
        return 36.0 if self.titled else 0.0

    def _legend_height(self) -> float:
        rows = 0 if self._blank() else self._legend_rows()
        return rows * self.text_points * 1.55 + 8 if rows else 0.0

    def _blank(self) -> bool:
        return not any(math.isfinite(y) for series in self.picture.series for y in series.y)

    def _height(self) -> float:
        if self._blank():
            return 64 + self._title_height()
        extra = (self._title_height() + 8 if self.titled else 0) + self._legend_height()
        if self.picture.form not in ("bar", "stack", "waterfall"):
            return (330 if self.width > _NARROW else 240) + extra
        names = len(self.picture.series[0].x) if self.picture.series else 1
        beside = len(self.picture.series) if self.picture.form == "bar" else 1
        above = 0 if self.width > _NARROW else 17
        return names * (beside * 17 + 14 + above) + 40 + extra + (16 if self.picture.rules else 0)

    def _legend_rows(self) -> int:
        named = [series for series in self.picture.series if series.name]
        return -(-len(named) // self._legend_columns()) if named else 0

    def _legend_columns(self) -> int:
        longest = max((self._num_columns(series.name) for series in self.picture.series), default=1)
        fitting = int(self.width * 0.85 / (longest * self.text_points * 0.6 + 40))
        return max(1, min(fitting, len(self.picture.series)))

    @staticmethod
    def _num_columns(text: str) -> int:
        """Widths of Latin letters that the text takes."""
        return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)

    def _label(self, artist: Text, text: str, role: str) -> Text:
        """Puts the text, or its stand-in under a number, on the artist."""
        artist.set_text(self._laid_out(text))
        artist.set_color(self.colours[role])
        if self.stand_in:
            artist.set_gid(f"word-{len(self.words)}")
            self.words.append(text)
        return artist

    def _laid_out(self, text: str) -> str:
        """The text, or Latin letters that take about its room."""
        if not self.stand_in:
            return text
        return "".join("W" if ord(char) > 0x2FF else char if char.isprintable() else "x" for char in text)

    def _frame(self, axes: Axes) -> None:
        axes.set_facecolor("none")
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(self.colours["muted"])
        axes.spines["bottom"].set_linewidth(0.8)
        axes.tick_params(labelsize=self.text_points - 1, colors=self.colours["muted"], length=3, width=0.8)
        axes.tick_params(axis="y", length=0)
        axes.set_axisbelow(True)

    def _ticks(self, axes: Axes, which: str, axis: Axis, values: list[float], *, inside: bool = False) -> None:
        """Fixed, few, round ticks with our own numbers; ``inside`` keeps them within the values, or at the values."""
        few, many = (4, 5) if self.width <= _NARROW else (5, 7)
        if axis.log:
            getattr(axes, f"set_{which}scale")("log", nonpositive="mask" if self.picture.form == "line" else "clip")
            getattr(axes, f"set_{which}ticks")([], minor=True)
            ticks = (given_ticks(values, many) if inside else []) or log_ticks(values, axis.unit, many)
            labels = [format_tick(tick, axis.unit) for tick in ticks]
        else:
            ticks = linear_ticks(values, axis.unit, few, inside=inside)
            labels = format_ticks(ticks, axis.unit)
        getattr(axes, f"set_{which}ticks")(ticks, labels=labels)
        if axis.label or not is_told(axis.unit):
            label = getattr(axes, f"set_{which}label")("", fontsize=self.text_points)
            unit = "" if is_told(axis.unit) else f"({axis.unit})"
            self._label(label, f"{axis.label} {unit}".strip(), "muted")

    def _style(self, number: int) -> tuple[str, Any, str]:
        """Colour, dash and marker; where the colours begin again, the others are shifted: no style returns before 36."""
        again = number // len(SERIES)
        return (
            self.colours[SERIES[number % len(SERIES)]],
            _DASHES[(number + again) % len(_DASHES)],
            _MARKERS[(number + 2 * again) % len(_MARKERS)],
        )

    def _curves(self, axes: Axes) -> None:
        picture = self.picture
        for number, series in enumerate(picture.series):
            colour, dash, marker = self._style(number)
            few = picture.form == "scatter" or len(series.y) <= 25
            if series.low and picture.form == "line" and len(series.y) > 1:  # one point's band would not be seen
                axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.16, linewidth=0)
            elif series.low:
                gaps = [
                    [y - a for y, a in zip(series.y, series.low, strict=True)],
                    [b - y for y, b in zip(series.y, series.high, strict=True)],
                ]
                axes.errorbar(series.x, series.y, yerr=gaps, fmt="none", ecolor=colour, elinewidth=1.2, capsize=3)
            axes.plot(
                series.x,
                series.y,
                color=colour,
                linestyle="none" if picture.form == "scatter" else "-" if series.is_thin else dash,
                linewidth=0.9 if series.is_thin else 1.9,
                marker=marker if few else "",
                markersize=7 if picture.form == "scatter" else 5,
                markeredgewidth=0,
                alpha=0.8 if picture.form == "scatter" else 0.55 if series.is_thin else 1.0,
                zorder=1.9 if series.is_thin else 2,
                label=f"{number}",
                solid_capstyle="round",
            )
        ends = [v for series in picture.series for part in (series.y, series.low, series.high) for v in part]
        self._ticks(
            axes,
            "x",
            picture.x,
            [x for series in picture.series for x in series.x if not isinstance(x, str)],
            inside=True,
        )
        self._ticks(axes, "y", picture.y, ends + [value for _, value in picture.rules])
        if not picture.y.log:
            ticks = axes.get_yticks()
            axes.set_ylim(ticks[0], max(ticks[-1], axes.get_ylim()[1]))
        axes.grid(axis="y", color=self.colours["line"], linewidth=0.8)
        self._rules(axes)

    def _histogram(self, axes: Axes) -> None:
        for number, series in enumerate(self.picture.series):
            colour, dash, _ = self._style(number)
            axes.stairs(series.y, series.x, fill=True, color=colour, alpha=0.28, linewidth=0)
            axes.stairs(series.y, series.x, color=colour, linewidth=1.6, linestyle=dash, label=f"{number}")
        self._ticks(
            axes, "x", self.picture.x, [float(x) for series in self.picture.series for x in series.x], inside=True
        )
        self._ticks(axes, "y", self.picture.y, [0.0, *(float(y) for series in self.picture.series for y in series.y)])
        axes.grid(axis="y", color=self.colours["line"], linewidth=0.8)

    def _rules(self, axes: Axes) -> None:
        for name, value in self.picture.rules:
            axes.axhline(value, color=self.colours["ink"], linewidth=1, linestyle=(0, (4, 3)))
            text = axes.annotate(
                "", (1, value), xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points",
                ha="right", va="bottom", fontsize=self.text_points - 1,
            )  # fmt: skip
            self._label(text, name, "ink")

    def _bars(self, axes: Axes) -> None:
        """Horizontal bars, the first on top; names beside them where there is room, above them where there is not."""
        picture, narrow = self.picture, self.width <= _NARROW
        names = [str(x) for x in picture.series[0].x]
        stacked = picture.form == "stack"
        thick = 0.72 if stacked else 0.72 / len(picture.series)
        if narrow:
            thick *= 0.6
        ends = [0.0]
        starts = [0.0] * len(names)
        for number, series in enumerate(picture.series):
            colour, _, _ = self._style(number)
            known = [0.0 if math.isnan(y) else y for y in series.y]
            shift = 0.0 if stacked else (number - (len(picture.series) - 1) / 2) * thick
            places = [row + shift + (0.14 if narrow else 0) for row in range(len(names))]
            axes.barh(
                places, known, height=thick * 0.86, left=starts if stacked else None, label=f"{number}",
                facecolor=colour, edgecolor=self.colours["ground"], linewidth=0.9 if stacked else 0,
            )  # fmt: skip
            if stacked:
                starts = [a + b for a, b in zip(starts, known, strict=True)]
            else:
                ends += self._bar_ends(axes, series, places)
        if stacked:
            self._totals(axes, starts, 0.14 if narrow else 0.0)
            ends += starts
        self._around_bars(axes, ends)

    def _waterfall(self, axes: Axes) -> None:
        """A bar a step; pale on its end what the step took away, and beside it the value and its change in per cent."""
        narrow, before, ends = self.width <= _NARROW, math.nan, [0.0]
        thick, shift = (0.44, 0.14) if narrow else (0.62, 0.0)
        for row in range(len(self.picture.series[0].y)):
            number = next((n for n, s in enumerate(self.picture.series) if math.isfinite(s.y[row])), None)
            if number is None:
                continue
            value, place, (colour, _, _) = self.picture.series[number].y[row], row + shift, self._style(number)
            axes.barh(place, value, height=thick, facecolor=colour, linewidth=0, label=f"{number}")
            end, change = max(value, before) if before == before else value, ""
            if end > value:
                axes.barh(place, end - value, left=value, height=thick, facecolor=colour, alpha=0.25, linewidth=0)
            if before > 0:
                change = f" ({(value / before - 1) * 100:+.0f} %)".replace("-", "−")
            text = axes.annotate(
                "", (end, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=self.text_points - 1
            )
            self._label(text, format_value(value, self.picture.y.unit) + change, "ink")
            before = value
            ends.append(end)
        self._around_bars(axes, ends, room=0.3 if narrow else 0.2)

    def _around_bars(self, axes: Axes, ends: list[float], room: float = 0.16) -> None:
        """Names, ticks and rules; ``room``: for the values at the bars' ends, as a share of how far these reach."""
        picture, names = self.picture, [str(x) for x in self.picture.series[0].x]
        self._names(axes, names, self.width <= _NARROW)
        self._ticks(axes, "x", picture.y, ends + [value for _, value in picture.rules])
        axes.set_ylim(len(names) - 0.45, -0.55)
        if not picture.y.log:
            beyond = room * (max(ends) - min(ends) or 1.0)
            low, high = axes.get_xlim()
            axes.set_xlim(min(low, min(ends) - beyond) if min(ends) < 0 else 0, max(high, max(ends) + beyond))
        for name, value in picture.rules:
            axes.axvline(value, color=self.colours["ink"], linewidth=1, linestyle=(0, (4, 3)))
            text = axes.annotate(
                "", (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
                ha="center", va="bottom", fontsize=self.text_points - 1,
            )  # fmt: skip
            self._label(text, name, "ink")

    def _bar_ends(self, axes: Axes, series: Series, places: list[float]) -> list[float]:
        """Intervals and the value at each bar's end; returns how far they reach."""
        reach = []
        for index, (place, value) in enumerate(zip(places, series.y, strict=True)):
            known = math.isfinite(value)
            end = value if known else 0.0
            if series.low and known:
                low, high = series.low[index], series.high[index]
                axes.plot([low, high], [place, place], color=self.colours["ink"], linewidth=1.2, solid_capstyle="butt")
                end = low if end < 0 else max(end, high)
                reach += [low, high]
            text = axes.annotate(
                "", (end, place), xytext=(-5 if end < 0 else 5, 0), textcoords="offset points",
                ha="right" if end < 0 else "left", va="center", fontsize=self.text_points - 1,
            )  # fmt: skip
            shown = format_value(value if known or not math.isnan(value) else None, self.picture.y.unit)
            self._label(text, shown, "ink" if known else "muted")
            reach.append(end)
        return reach

    def _totals(self, axes: Axes, totals: list[float], shift: float) -> None:
        for row, total in enumerate(totals):
            text = axes.annotate(
                "",
                (total, row + shift),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=self.text_points - 1,
            )
            self._label(text, format_value(total, self.picture.y.unit), "ink")

    def _names(self, axes: Axes, names: list[str], narrow: bool) -> None:
        if not narrow:
            axes.set_yticks(range(len(names)), labels=[self._laid_out(shorten(name, 34)) for name in names])
            for tick, name in zip(axes.get_yticklabels(), names, strict=True):
                tick.set_fontsize(self.text_points)
                self._label(tick, shorten(name, 34), "ink")
            return
        axes.set_yticks([])
        for row, name in enumerate(names):
            text = axes.annotate(
                "",
                (0, row - 0.28),
                xycoords=("axes fraction", "data"),
                va="center",
                ha="left",
                fontsize=self.text_points,
            )
            self._label(text, shorten(name, 46), "ink")

    def _legend(self, axes: Axes) -> None:
        named = [(number, series.name) for number, series in enumerate(self.picture.series) if series.name]
        if not named:
            return
        handles, labels = axes.get_legend_handles_labels()
        found = dict(zip(labels, handles, strict=True))
        legend = axes.figure.legend(
            [found[f"{number}"] for number, _ in named], [self._laid_out(name) for _, name in named],
            loc="upper left", bbox_to_anchor=(self._room()[0] / self.width, 1 - self._title_height() / self._height()),
            ncols=self._legend_columns(), frameon=False, fontsize=self.text_points, borderaxespad=0.2, borderpad=0.1,
            handlelength=1.8, columnspacing=1.6, handletextpad=0.6, labelspacing=0.4,
        )  # fmt: skip
        legend.set_in_layout(False)
        for text, (_, name) in zip(legend.get_texts(), named, strict=True):
            self._label(text, name, "ink")


def shorten(text: str, columns: int) -> str:
    """At most so many Latin widths, with an ellipsis where something was cut.

    >>> shorten("checkpointing", 8), shorten("短", 8)
    ('checkpo…', '短')
    """
    widths = [2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text]
    if sum(widths) <= columns:
        return text
    taken = 0
    for index, width in enumerate(widths):
        if taken + width > columns - 1:
            return text[:index] + "…"
        taken += width
    return text
