"""The words of reports and of the command line in other languages than English: one catalogue a language, ``zh.json``.

A catalogue maps an English text to its translation. ``{}`` in the English stands for anything, ``{0}``, ``{1}`` in the translation
for what was found there as it is, ``{0:t}`` for its translation. A text that no catalogue knows stays as it is. Data are never
looked up: neither examples, nor settings' values, nor the cells of columns in ``DATA``, even where they look like our words.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from jieyue.errors import InputError

from .amounts import Cell, Estimate
from .picture import Picture
from .values import Column, Examples, Fact, Item, Note, Section, Table

__all__ = ["DATA", "LANGUAGES", "Catalogue", "catalogue", "translated", "words_of"]

LANGUAGES = ("en", "zh")
SETTINGS = "Settings"  # the section whose values are what somebody gave
DATA = frozenset(
    ("answer", "file", "found", "its title", "label", "record and reason", "right", "says", "source", "taken for", "text",
     "type", "variant", "wrong", "written"),
)  # columns whose cells are data  # fmt: skip


@dataclass(frozen=True)
class Catalogue:
    """``exact``: whole texts; ``forms``: texts with gaps, as patterns, the longest first."""

    exact: dict[str, str]
    forms: tuple[tuple[re.Pattern[str], str], ...]

    @classmethod
    def of(cls, entries: dict[str, str]) -> Catalogue:
        """From what a file holds."""
        exact = {text: said for text, said in entries.items() if "{}" not in text}
        gapped = sorted((text for text in entries if "{}" in text), key=len, reverse=True)
        forms = ((_pattern(text), entries[text]) for text in gapped)
        return cls(exact, tuple(forms))

    def find(self, text: str) -> str | None:
        """The translation, None where there is none; of parts with "; " between them that all have one, part by part.

        >>> Catalogue.of({"right": "对", "{} of {}": "{1}中的{0:t}"}).find("right of right")
        'right中的对'
        """
        if text in self.exact:
            return self.exact[text]
        parts = [self.find(part) for part in text.split("; ")] if "; " in text else []
        if parts and None not in parts:
            return "；".join(part for part in parts if part)
        for pattern, said in self.forms:
            if found := pattern.fullmatch(text):
                return said.format(*(_Gap(part, self) for part in found.groups()))
        return None

    def said(self, text: str) -> str:
        """The translation, or the text as it is."""
        return self.find(text) or text


class _Gap(str):
    """What stood in a gap: as it is, or translated where the format says ``t``."""

    words: Catalogue

    def __new__(cls, text: str, words: Catalogue) -> _Gap:
        made = super().__new__(cls, text)
        made.words = words
        return made

    def __format__(self, how: str) -> str:
        return self.words.said(str(self)) if how == "t" else str(self)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile("(.+?)".join(map(re.escape, text.split("{}"))), re.DOTALL)


@cache
def catalogue(language: str) -> Catalogue:
    """The catalogue of a language of ``LANGUAGES``, read once; English needs none and has an empty one."""
    if language not in LANGUAGES:
        raise InputError("language", repr(language), f"one of {', '.join(LANGUAGES)}")
    if language == "en":
        return Catalogue({}, ())
    return Catalogue.of(json.loads(files(__package__).joinpath(f"{language}.json").read_text(encoding="utf-8")))


def words_of(language: str) -> Catalogue:
    """The catalogue of a page's language tag ("zh-Hans" is Chinese); English's for a language that has none."""
    name = language.partition("-")[0]
    return catalogue(name if name in LANGUAGES else "en")


def translated(section: Section, language: str) -> Section:
    """A section with its own words in another language; data, examples and numbers are as they were."""
    words = catalogue(language)
    items = [_item(item, words, section.title == SETTINGS) for item in section.items]
    return Section(words.said(section.title), items)


def _item(item: Item, words: Catalogue, is_given: bool) -> Item:
    said = words.said
    if isinstance(item, Fact):
        value = item.value if is_given else _cell(item.value, words)
        return replace(item, what=said(item.what), value=value, unit=_unit(item.unit, words), how=said(item.how))
    if isinstance(item, Note):
        return Note("\n\n".join(said(part) for part in item.text.split("\n\n")))
    if isinstance(item, Table):
        columns = tuple(Column(said(one.name), _unit(one.unit, words)) for one in item.columns)
        ours = [one.name not in DATA for one in item.columns]
        rows = tuple(
            tuple(_cell(cell, words) if own else cell for cell, own in zip(row, ours, strict=True)) for row in item.rows
        )
        return Table(columns, rows, said(item.title), said(item.note))
    if isinstance(item, Picture):
        x, y = (replace(one, label=said(one.label), unit=_unit(one.unit, words)) for one in (item.x, item.y))
        parts = item.y.unit == "bytes"  # the parts of a sum of bytes; other names along an axis are data
        series = tuple(
            replace(one, name=said(one.name), x=tuple(said(x) if parts and isinstance(x, str) else x for x in one.x))
            for one in item.series
        )
        return replace(item, title=said(item.title), note=said(item.note), series=series, x=x, y=y)
    assert isinstance(item, Examples)
    return replace(item, title=said(item.title), note=said(item.note))


def _unit(unit: str, words: Catalogue) -> str:
    return unit if unit in ("", "bytes", "seconds", "share", "x", "text") else words.said(unit)


def _cell(cell: Cell, words: Catalogue) -> Cell:
    if isinstance(cell, Estimate):
        return replace(cell, how=words.said(cell.how))
    return words.said(cell) if isinstance(cell, str) else cell
