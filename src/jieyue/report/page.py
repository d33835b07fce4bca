"""A report as one page of HTML: no outside request, good from 360 pixels up, in light and in dark, whole without script.

``page.html.jinja`` says what stands where; its environment escapes everything, so text from data can only ever become text.
The one style sheet, and the few lines of ``page.js`` that tell the values of pictures, are allowed by their hashes; everything
else is forbidden by the page's own Content-Security-Policy.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote
from xml.etree.ElementTree import tostring

from .amounts import Cell, Estimate, format_value
from .colours import DARK, LIGHT, root_rules
from .drawing import svg
from .hover import told_points
from .languages import language_of, runs
from .picture import Picture, Series
from .plaintext import explain, numeric
from .tones import tone
from .translation import words_of
from .values import Column, Example, Examples, Fact, Item, Section, Table

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["page"]

_WIDE, _NARROW = 720, 336
_EXCERPT = 700
_FEW_POINTS = 80
_SHORT_TITLE = 48
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath fill='none' "
    "stroke='%230b7a70' stroke-width='2' d='M2 13V3m0 10h12M4.500 10c3 0 3-5 9-6'/%3E%3C/svg%3E"
)
Kind = Literal["facts", "table", "picture", "examples", "note"]


def page(title: str, about: str, language: str, sections: Sequence[Section]) -> str:
    """The whole page. ``language``: that of the page's own words; text in another one says so."""
    from jinja2 import Environment, StrictUndefined  # on the first page, never before
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    said = words_of(language).said
    environment.globals |= {
        "say": said, "language_of": language_of, "runs": runs, "parts": partial(_parts, said), "explain": explain, "numeric": numeric,
        "paragraphs": _paragraphs, "grouped": _grouped, "marked": _marked, "numbers": _numbers, "csv_link": _csv_link,
        "file_name": _file_name, "short": _short, "wide": _WIDE, "narrow": _NARROW, "few_points": _FEW_POINTS,
        "drawn": _drawn, "toned": lambda text: f" tone-{role}" if (role := tone(text, said)) else "",
        "lang_attribute": lambda tag: Markup(' lang="{}"').format(tag) if tag else "",
        "scope": lambda of: Markup(' scope="{}"').format(of), "link": lambda number: Markup(f' href="#s{number:d}"'),
        "heading": lambda number: Markup(f' id="s{number:d}h"'),
    }  # fmt: skip
    style = _style()
    pictures = [item for section in sections for item in section.items if isinstance(item, Picture)]
    script = _file("page.js") if any(True for one in pictures for _ in told_points(one)) else ""
    allowed = f"style-src 'sha256-{_digest(style)}';" + (f" script-src 'sha256-{_digest(script)}';" if script else "")
    text = environment.from_string(_file("page.html.jinja")).render(
        title=title,
        about=about,
        language=language,
        sections=sections,
        tiles=[item for section in sections for item in section.items if isinstance(item, Fact) and item.key],
        style=Markup(style),  # ours, and the only text that the hash allows
        script=Markup(script),  # ours too
        policy=Markup(f"default-src 'none'; {allowed} img-src data:; base-uri 'none'; form-action 'none'"),
        icon=_ICON,
    )
    return text.strip() + "\n"


def _style() -> str:
    roles = "".join(f".f-{role}{{fill:var(--{role})}}.k-{role}{{stroke:var(--{role})}}" for role in LIGHT)
    assert LIGHT.keys() == DARK.keys()
    return root_rules() + roles + "\n" + _file("page.css")


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a Content-Security-Policy names what stands in the page itself."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _parts(said: Callable[[str], str], value: Cell, unit: str) -> tuple[str, str]:
    """The value, and its interval apart from it."""
    text = format_value(value, unit)
    if not isinstance(value, Estimate):
        return said(text) if value is None or isinstance(value, bool) else text, ""
    number, _, rest = text.partition(" [")
    low, _, suffix = rest.partition("]")
    return number + suffix, low.replace(", ", f" {said('to')} ")


def _paragraphs(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if part.strip()] or [""]


def _short(title: str) -> str:
    """A title as the list of contents has it: its first part, at a word's end where it is still long."""
    if len(title) <= _SHORT_TITLE:
        return title
    first = re.split(r"(?<=[^\d\s])[:,;，；：]\s?", title, maxsplit=1)[0]
    first = first if 12 <= len(first) <= _SHORT_TITLE else title
    return first if len(first) <= _SHORT_TITLE else first[:_SHORT_TITLE].rsplit(" ", 1)[0].rstrip(" ,;:") + "…"


def _grouped(section: Section) -> Iterator[tuple[Kind, int, Item | list[Fact]]]:
    """The section's items with their places, neighbouring facts in one list."""
    places = enumerate(section.items, 1)
    for is_fact, group in itertools.groupby(places, key=lambda placed: isinstance(placed[1], Fact)):
        if is_fact:
            yield "facts", 0, [item for _, item in group if isinstance(item, Fact)]
            continue
        for place, item in group:
            if isinstance(item, Table):
                yield "table", place, item
            elif isinstance(item, Picture):
                yield "picture", place, item
            elif isinstance(item, Examples):
                yield "examples", place, item
            else:
                yield "note", place, item


def _drawn(picture: Picture, width: int, prefix: str) -> Markup:
    from markupsafe import Markup

    return Markup(tostring(svg(picture, width=width, prefix=prefix, told=True), encoding="unicode", method="html"))


def _numbers(picture: Picture) -> Table:
    """The picture's data as a table: a column a series where these stand at the same places, else a row a point."""

    def place(series: Series, i: int) -> Cell:
        if picture.form != "histogram":
            return series.x[i]
        return " to ".join(format_value(edge, picture.x.unit) for edge in series.x[i : i + 2])

    def value(series: Series, i: int) -> Cell:
        y = series.y[i]
        if series.low and series.low[i] < series.high[i]:
            return Estimate(y, series.low[i], series.high[i])
        return None if math.isnan(y) else y

    across, along = Column(picture.x.label or "name", picture.x.unit), picture.y.unit
    first, *others = picture.series
    name = picture.y.label or "value"
    if all(series.x == first.x for series in others):
        columns = tuple(Column(series.name or name, along) for series in picture.series)
        places = range(len(first.y))
        return Table(
            (across, *columns), tuple((place(first, i), *(value(s, i) for s in picture.series)) for i in places)
        )
    points = tuple((s.name, place(s, i), value(s, i)) for s in picture.series for i in range(len(s.y)))
    return Table((Column("series"), across, Column(name, along)), points)


def _csv_link(picture: Picture) -> str:
    """The picture's data as an address that holds a CSV file: a row a point, every digit, no script needed."""
    out = io.StringIO()
    writer = csv.writer(out)
    ends = any(series.low for series in picture.series)
    writer.writerow(["series", picture.x.label or "x", picture.y.label or "y", *(["low", "high"] if ends else [])])
    for series in picture.series:
        for i, y in enumerate(series.y):
            between = [series.low[i], series.high[i]] if series.low else [""] * 2 * ends
            writer.writerow([series.name, series.x[i], y, *between])
    return "data:text/csv;charset=utf-8," + quote(out.getvalue(), safe="")


def _file_name(title: str) -> str:
    return re.sub(r"[^\w-]+", "-", title).strip("-")[:60] or "picture"


def _marked(example: Example) -> list[tuple[str, str]]:
    """(kind, text): the passage cut at every border of a span; a long one around its marks, saying what it leaves out."""
    answers, golds = example.places()
    spans = [span for span in (*answers, *golds) if span[0] < span[1]]
    start, end = _excerpt(len(example.passage), spans)
    cuts = sorted({start, end, *(min(max(place, start), end) for span in spans for place in span)})
    parts = [("cut", f"{start:,}")] if start else []
    for low, high in itertools.pairwise(cuts):
        given = any(a <= low and high <= b for a, b in answers)
        gold = any(a <= low and high <= b for a, b in golds)
        names = " ".join(name for name, holds in (("answer", given), ("gold", gold)) if holds)
        parts.append((names, example.passage[low:high]))
    if end < len(example.passage):
        parts.append(("cut", f"{len(example.passage) - end:,}"))
    return parts


def _excerpt(num_characters: int, spans: list[tuple[int, int]]) -> tuple[int, int]:
    """What of a passage is shown: all, or about ``_EXCERPT`` characters around the first marks."""
    if num_characters <= _EXCERPT * 3 // 2:
        return 0, num_characters
    first = min((span[0] for span in spans), default=0)
    last = max([span[1] for span in spans if span[1] <= first + _EXCERPT] or [first])
    start = max(0, min(first - (_EXCERPT - (last - first)) // 2, num_characters - _EXCERPT))
    return start, min(num_characters, start + _EXCERPT)
