"""What a report holds, as values: facts, tables, pictures, examples and notes in sections; and their lossless JSON.

Every value is a frozen dataclass of plain numbers, texts and tuples, so that reports compare, print and travel as JSON:
``decode(json.loads(json.dumps(encode(value)))) == value``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from jieyue.errors import InputError

from .amounts import Cell, Estimate, Given, number, plain, plain_text
from .picture import Axis, Picture, Series

__all__ = [
    "JSON",
    "Column",
    "Example",
    "Examples",
    "Fact",
    "Item",
    "Note",
    "Section",
    "Table",
    "decode",
    "encode",
]


@dataclass(frozen=True)
class Fact:
    """One thing that was found: ``what``, its ``value`` in ``unit``, and ``how`` it was found.

    ``key`` facts stand at the head of the page as well.
    """

    what: str
    value: Cell
    unit: str = ""
    how: str = ""
    key: bool = False

    def __post_init__(self) -> None:
        _plain_texts(self, "what", "unit", "how")
        object.__setattr__(self, "value", plain(self.value, f"fact {self.what!r}"))


@dataclass(frozen=True)
class Column:
    """A table's column: its name and the unit of its numbers."""

    name: str
    unit: str = ""

    def __post_init__(self) -> None:
        _plain_texts(self, "name", "unit")


@dataclass(frozen=True)
class Table:
    """Rows under columns; ``rows[i][j]`` belongs to ``columns[j]``."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        _plain_texts(self, "title", "note")
        for place, row in enumerate(self.rows, 1):
            if len(row) != len(self.columns):
                raise InputError(
                    f"table {self.title!r}, row {place}: found {len(row)} cells, expected {len(self.columns)}, one for each of "
                    + ", ".join(column.name for column in self.columns)
                )
        rows = tuple(tuple(plain(cell, f"table {self.title!r}") for cell in row) for row in self.rows)
        object.__setattr__(self, "rows", rows)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One answered question. Spans are (start, end) in characters of ``passage``.

    ``answer`` "" or None says that the reader abstained; ``gold`` () says that the passage holds no answer. Where a span
    is not given, the first place of that text in the passage is marked. ``right`` None: not judged.
    ``language`` "": told from the text itself.
    """

    question: str
    passage: str
    answer: str | None = ""
    span: tuple[int, int] | None = None
    gold: tuple[str, ...] = ()
    gold_spans: tuple[tuple[int, int], ...] = ()
    confidence: float | None = None
    right: bool | None = None
    language: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "answer", self.answer or "")
        _plain_texts(self, "question", "passage", "answer", "language", "title")
        gold = (self.gold,) if isinstance(self.gold, str) else tuple(plain_text(text) for text in self.gold)
        object.__setattr__(self, "gold", gold)
        spans = tuple((int(start), int(end)) for start, end in self.gold_spans)
        object.__setattr__(self, "gold_spans", spans)
        if self.span is not None:
            object.__setattr__(self, "span", (int(self.span[0]), int(self.span[1])))
        if self.confidence is not None:
            object.__setattr__(self, "confidence", plain(self.confidence, "confidence"))
        if self.right is not None:
            object.__setattr__(self, "right", bool(self.right))
        for span in (*spans, *([self.span] if self.span else [])):
            if not 0 <= span[0] <= span[1] <= len(self.passage):
                raise InputError(
                    f"Example span {span}: expected (start, end) within the passage's {len(self.passage)} characters"
                )

    def places(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Where the answer stands, where the gold answers stand: as given, or the first place of the text."""
        answer = [self.span] if self.span else self._find(self.answer or "")
        gold = list(self.gold_spans) or [place for text in dict.fromkeys(self.gold) for place in self._find(text)]
        return answer, gold

    def _find(self, text: str) -> list[tuple[int, int]]:
        start = self.passage.find(text) if text else -1
        return [(start, start + len(text))] if start >= 0 else []


@dataclass(frozen=True)
class Examples:
    """A handful of examples under one title."""

    examples: tuple[Example, ...]
    title: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        _plain_texts(self, "title", "note")


@dataclass(frozen=True)
class Note:
    """A paragraph of plain text."""

    text: str

    def __post_init__(self) -> None:
        _plain_texts(self, "text")


JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]
Item = Fact | Table | Picture | Examples | Note


@dataclass
class Section:
    """A titled part of a report, filled from top to bottom; each call adds an item and returns the section."""

    title: str
    items: list[Item] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.title = plain_text(self.title)

    def fact(
        self,
        what: str,
        value: Given,
        unit: str = "",
        how: str = "",
        *,
        interval: tuple[float, float] | None = None,
        key: bool = False,
    ) -> Section:
        """``fact("exact match", .71, "share", how="SQuAD rule, 1000 questions", interval=(.68, .74))``.

        ``value`` may be an ``Estimate`` (from ``metrics.intervals``) instead; None says "not measured", ``how`` says why.
        """
        if interval is not None:
            value = Estimate(number(value, f"fact {what!r}"), *interval)
        self.items.append(Fact(what, plain(value, f"fact {what!r}"), unit, how, key))
        return self

    def facts(self, values: Mapping[str, Given], unit: str = "", how: str = "") -> Section:
        """One fact for each entry, in order: settings, counts."""
        for what, value in values.items():
            self.fact(what, value, unit, how)
        return self

    def table(
        self,
        columns: Sequence[str | tuple[str, str] | Column],
        rows: Sequence[Sequence[Given]],
        *,
        title: str = "",
        note: str = "",
    ) -> Section:
        """``table(["setting", ("peak", "bytes")], [["plain", 2**20], ["checkpointed", None]])``."""
        made = tuple(
            column if isinstance(column, Column) else Column(column) if isinstance(column, str) else Column(*column)
            for column in columns
        )
        cells = tuple(tuple(plain(cell, f"table {title!r}") for cell in row) for row in rows)
        self.items.append(Table(made, cells, title, note))
        return self

    def picture(self, picture: Picture) -> Section:
        self.items.append(picture)
        return self

    def examples(self, examples: Sequence[Example], *, title: str = "", note: str = "") -> Section:
        self.items.append(Examples(tuple(examples), title, note))
        return self

    def note(self, text: str) -> Section:
        self.items.append(Note(text))
        return self


_KINDS: dict[str, type] = {
    kind.__name__.lower(): kind
    for kind in (Axis, Column, Estimate, Example, Examples, Fact, Note, Picture, Section, Series, Table)
}


def encode(value: Any) -> JSON:
    """The value as JSON's types: a dataclass becomes {"kind": its name, its fields that differ from their default}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, list | tuple):
        return [encode(part) for part in value]
    if type(value).__name__.lower() in _KINDS:
        found: dict[str, JSON] = {"kind": type(value).__name__.lower()}
        for each in fields(value):
            content = getattr(value, each.name)
            if each.default is MISSING or content != each.default:
                found[each.name] = encode(content)
        return found
    return value


def decode(found: JSON) -> Any:
    """The value that ``encode`` gave; ``InputError`` names what it cannot read."""
    if isinstance(found, list):
        return tuple(decode(part) for part in found)
    if not isinstance(found, dict):
        return found
    if set(found) == {"float"} and found["float"] in ("nan", "inf", "-inf"):
        return math.nan if found["float"] == "nan" else float(found["float"])
    kind = _KINDS.get(str(found.get("kind")))
    if kind is None:
        raise InputError(f"report: found an entry of kind {found.get('kind')!r}, expected one of {', '.join(_KINDS)}")
    content = {name: decode(part) for name, part in found.items() if name != "kind"}
    if kind is Section:
        content["items"] = list(content.get("items", ()))
    try:
        return kind(**content)
    except (TypeError, AttributeError) as error:
        raise InputError(f"report: found a broken entry of kind {found['kind']!r}: {error}") from None


def _plain_texts(value: Any, *names: str) -> None:
    for name in names:
        text = getattr(value, name)
        if not isinstance(text, str):
            raise InputError(f"{type(value).__name__}({name}=...): found {type(text).__name__}, expected a text")
        object.__setattr__(value, name, plain_text(text))
