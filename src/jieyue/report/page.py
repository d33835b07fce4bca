"""A report as one page of HTML: no script, no outside request, good from 360 pixels up, in light and in dark.

The page is built as a tree of elements, so text from data can only ever become text; the one style sheet is allowed by
its hash, everything else is forbidden by the page's own Content-Security-Policy.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
from importlib.resources import files
from xml.etree.ElementTree import Element, tostring

from .amounts import Cell, Estimate, format_value
from .colours import DARK, LIGHT, root_rules
from .drawing import svg
from .languages import language_of, runs
from .picture import Picture, Series
from .plaintext import explain, numeric
from .values import Column, Example, Examples, Fact, Note, Section, Table

__all__ = ["page"]

_WIDE, _NARROW = 720, 336
_EXCERPT = 700
_FEW_POINTS = 80
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath fill='none' "
    "stroke='%230b7a70' stroke-width='2' d='M2 13V3m0 10h12M4.500 10c3 0 3-5 9-6'/%3E%3C/svg%3E"
)


def page(title: str, about: str, language: str, sections: list[Section]) -> str:
    style = Element("style")
    style.text = _style()
    digest = base64.b64encode(hashlib.sha256(style.text.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    head = _e(
        "head",
        {},
        _e("meta", {"charset": "utf-8"}),
        _e("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        _e("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        _e("meta", {"name": "color-scheme", "content": "light dark"}),
        _e("meta", {"name": "referrer", "content": "no-referrer"}),
        _e("title", {}, title),
        _e("link", {"rel": "icon", "href": _ICON}),
        style,
    )
    numbered = list(enumerate(sections, 1))
    body = _e(
        "body",
        {},
        _e(
            "header",
            {},
            _said("h1", title, language),
            *([_said("p", about, language, "about")] if about else []),
            *_tiles(
                [item for section in sections for item in section.items if isinstance(item, Fact) and item.key],
                language,
            ),
            *([_contents(numbered, language)] if len(sections) > 1 else []),
        ),
        _e("main", {}, *(_section(number, section, language) for number, section in numbered)),
        _e(
            "footer",
            {},
            _e("p", {}, "Written by jieyue. The same numbers, and the data of every picture, are in report.json."),
        ),
    )
    root = _e("html", {"lang": language}, head, body)
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def _style() -> str:
    roles = "".join(f".f-{role}{{fill:var(--{role})}}.k-{role}{{stroke:var(--{role})}}" for role in LIGHT)
    assert LIGHT.keys() == DARK.keys()
    return root_rules() + roles + "\n" + files(__package__).joinpath("page.css").read_text(encoding="utf-8")


def _e(tag: str, attributes: dict[str, str], *children: Element | str) -> Element:
    """An element; texts among the children are text nodes, whatever they hold."""
    element = Element(tag, attributes)
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            element.append(child)
            last = child
        elif last is None:
            element.text = (element.text or "") + child
        else:
            last.tail = (last.tail or "") + child
    return element


def _said(tag: str, text: str, language: str, name: str = "") -> Element:
    """Text that says its language where that differs from the page's: as a whole, or piece by piece where it is mixed."""
    own = language_of(text)
    attributes = {"class": name} if name else {}
    if own and not language.startswith(own):
        return _e(tag, {**attributes, "lang": own}, text)
    pieces = [(piece, "" if own or language.startswith(found or "-") else found) for piece, found in runs(text)]
    return _e(tag, attributes, *(_e("span", {"lang": found}, piece) if found else piece for piece, found in pieces))


def _tiles(facts: list[Fact], language: str) -> list[Element]:
    if not facts:
        return []
    tiles = []
    for fact in facts:
        value, interval = _parts(fact.value, fact.unit)
        tiles.append(
            _e(
                "div",
                {"class": "tile"},
                _said("dt", fact.what, language),
                _e(
                    "dd",
                    {},
                    _e("span", {"class": "value"}, value),
                    *([_e("span", {"class": "interval"}, interval)] if interval else []),
                ),
                *([_said("dd", fact.how, language, "how")] if fact.how else []),
            )
        )
    columns = 3 if len(tiles) in (3, 5, 6, 9) else 4
    return [_e("dl", {"class": f"tiles of{columns}"}, *tiles)]


def _parts(value: Cell, unit: str) -> tuple[str, str]:
    """The value, and its interval apart from it."""
    text = format_value(value, unit)
    if not isinstance(value, Estimate):
        return text, ""
    number, _, rest = text.partition(" [")
    low, _, suffix = rest.partition("]")
    return number + suffix, low.replace(", ", " to ")


def _contents(numbered: list[tuple[int, Section]], language: str) -> Element:
    links = []
    for number, section in numbered:
        link = _said("a", section.title, language)
        link.set("href", f"#s{number}")
        links.append(_e("li", {}, link))
    return _e("nav", {"aria-label": "Sections"}, _e("ul", {}, *links))


def _section(number: int, section: Section, language: str) -> Element:
    heading = _said("h2", section.title, language)
    heading.set("id", f"s{number}h")
    made = _e("section", {"id": f"s{number}", "aria-labelledby": f"s{number}h"}, heading)
    facts: Element | None = None
    for place, item in enumerate(section.items, 1):
        if not isinstance(item, Fact):
            facts = None
        if isinstance(item, Fact):
            if facts is None:
                facts = _e("dl", {"class": "facts"})
                made.append(facts)
            facts.append(_fact(item, language))
        elif isinstance(item, Table):
            made.append(_table(item, language))
        elif isinstance(item, Picture):
            made.append(_picture(item, f"p{number}-{place}", language))
        elif isinstance(item, Examples):
            made.append(_examples(item, language))
        else:
            made.append(_note(item, language))
    return made


def _fact(fact: Fact, language: str) -> Element:
    value, interval = _parts(fact.value, fact.unit)
    shown = _said("dd", value, language, "value" if fact.value is not None else "value none")
    if interval:
        shown.append(_e("span", {"class": "interval"}, interval))
    how = explain(fact)
    return _e("div", {}, _said("dt", fact.what, language), shown, *([_said("dd", how, language, "how")] if how else []))


def _note(note: Note, language: str) -> Element:
    paragraphs = [part for part in note.text.split("\n\n") if part.strip()] or [""]
    return _e("div", {"class": "note"}, *(_said("p", part, language) for part in paragraphs))


def _table(table: Table, language: str) -> Element:
    right = numeric(table)
    head = _e(
        "tr", {}, *(_head(column.name, number, language) for column, number in zip(table.columns, right, strict=True))
    )
    body = []
    for row in table.rows:
        cells: list[Element] = []
        for cell, column, number in zip(row, table.columns, right, strict=True):
            value, interval = _parts(cell, column.unit)
            names = cells == [] and not number and cell is not None  # the first column names its row
            made = _said("th" if names else "td", value, language, "number" if number else "")
            if names:
                made.set("scope", "row")
            if cell is None:
                made.set("class", "number none" if number else "none")
            if interval:
                made.append(_e("span", {"class": "interval"}, interval))
            cells.append(made)
        body.append(_e("tr", {}, *cells))
    grid = _e("table", {}, _e("thead", {}, head), _e("tbody", {}, *body))
    name = table.title or "Table: " + ", ".join(column.name for column in table.columns)
    box = _e("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": name}, grid)
    figure = _e("div", {"class": "table"}, *([_said("h3", table.title, language)] if table.title else []), box)
    if table.note:
        figure.append(_said("p", table.note, language, "caption"))
    return figure


def _head(name: str, number: bool, language: str) -> Element:
    cell = _said("th", name, language, "number" if number else "")
    cell.set("scope", "col")
    return cell


def _picture(picture: Picture, prefix: str, language: str) -> Element:
    figure = _e("figure", {}, _said("h3", picture.title, language))
    for name, width in (("wide", _WIDE), ("narrow", _NARROW)):
        figure.append(_e("div", {"class": name}, svg(picture, width=width, prefix=f"{prefix}{name[0]}")))
    if picture.note:
        figure.append(_said("figcaption", picture.note, language))
    if 0 < picture.num_points <= _FEW_POINTS:
        figure.append(_e("details", {}, _e("summary", {}, "The numbers"), _table(_numbers(picture), language)))
    return figure


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


def _examples(item: Examples, language: str) -> Element:
    made = _e("div", {"class": "examples"})
    if item.title:
        made.append(_said("h3", item.title, language))
    if any(example.passage for example in item.examples):
        made.append(
            _e(
                "p",
                {"class": "legend"},
                "In each passage: ",
                _e("mark", {"class": "answer"}, "the answer given"),
                ", ",
                _e("span", {"class": "gold"}, "the gold answer"),
                ".",
            )
        )
    if item.note:
        made.append(_said("p", item.note, language, "caption"))
    made.extend(_example(example, language, "h4" if item.title else "h3") for example in item.examples)
    return made


def _example(example: Example, language: str, heading: str) -> Element:
    own = example.language or language_of(example.passage + example.question) or language
    lang = {} if language.startswith(own) else {"lang": own}
    badges = []
    if example.right is not None:
        badges.append(
            _e("span", {"class": "badge right"}, "✓ right")
            if example.right
            else _e("span", {"class": "badge wrong"}, "✗ wrong")
        )
    if lang:
        badges.append(_e("span", {"class": "badge"}, own))
    if example.confidence is not None:
        badges.append(_sure(example.confidence))
    rows = [("Answer", example.answer or ""), ("Gold", " / ".join(example.gold))]
    said = [
        _e(
            "div",
            {},
            _e("dt", {}, name),
            _e("dd", dict(lang), text) if text else _e("dd", {"class": "none"}, "no answer"),
        )
        for name, text in rows
    ]
    return _e(
        "article",
        {"class": "example" + (" missed" if example.right is False else "")},
        _e("div", {"class": "badges"}, *badges),
        _e(heading, {"class": "question", **lang}, example.question),
        *([_e("p", {"class": "from", **lang}, example.title)] if example.title else []),
        *([_e("p", {"class": "passage", **lang}, *_marked(example))] if example.passage else []),
        _e("dl", {}, *said),
    )


def _sure(confidence: float) -> Element:
    bar = _e(
        "svg",
        {"viewBox": "0 0 48 6", "class": "meter", "aria-hidden": "true"},
        _e("rect", {"width": "48", "height": "6", "rx": "3", "class": "f-line"}),
        _e("rect", {"width": f"{48 * min(max(confidence, 0.0), 1.0):.1f}", "height": "6", "rx": "3", "class": "f-s1"}),
    )
    return _e("span", {"class": "sure"}, bar, f"{format_value(confidence, 'share')} sure")


def _marked(example: Example) -> list[Element | str]:
    """The passage cut at every border of a span; a long one is shown around its marks, and says what it leaves out."""
    answers, golds = example.places()
    spans = [span for span in (*answers, *golds) if span[0] < span[1]]
    start, end = _window(len(example.passage), spans)
    cuts = sorted({start, end, *(min(max(place, start), end) for span in spans for place in span)})
    parts: list[Element | str] = [_left_out(start)] if start else []
    for low, high in itertools.pairwise(cuts):
        text = example.passage[low:high]
        given = any(a <= low and high <= b for a, b in answers)
        gold = any(a <= low and high <= b for a, b in golds)
        names = " ".join(name for name, holds in (("answer", given), ("gold", gold)) if holds)
        parts.append(_e("mark" if given else "span", {"class": names}, text) if names else text)
    if end < len(example.passage):
        parts.append(_left_out(len(example.passage) - end))
    return parts


def _left_out(count: int) -> Element:
    return _e("span", {"class": "cut"}, f" … {count:,} more characters … ")


def _window(num_characters: int, spans: list[tuple[int, int]]) -> tuple[int, int]:
    """What of a passage is shown: all, or about ``_EXCERPT`` characters around the first marks."""
    if num_characters <= _EXCERPT * 3 // 2:
        return 0, num_characters
    first = min((span[0] for span in spans), default=0)
    last = max([span[1] for span in spans if span[1] <= first + _EXCERPT] or [first])
    start = max(0, min(first - (_EXCERPT - (last - first)) // 2, num_characters - _EXCERPT))
    return start, min(num_characters, start + _EXCERPT)
