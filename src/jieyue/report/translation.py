"""The words of reports and of the command line in other languages than English: one catalogue a language, ``zh.json``.

A catalogue maps an English text to its translation. ``{}`` in the English stands for anything, ``{0}``, ``{1}`` in the translation
for what was found there, itself translated where the catalogue has it. A text that no catalogue knows stays as it is: data,
names and numbers are nobody's to translate.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from jieyue.errors import InputError, message

from .amounts import Cell, Estimate
from .picture import Picture
from .values import Column, Examples, Fact, Item, Note, Section, Table

__all__ = ["LANGUAGES", "Catalogue", "catalogue", "translated"]

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Catalogue:
    """``exact``: whole texts; ``forms``: texts with gaps, as patterns, in the catalogue's order."""

    exact: dict[str, str]
    forms: tuple[tuple[re.Pattern[str], str], ...]

    @classmethod
    def of(cls, entries: dict[str, str]) -> Catalogue:
        """From what a file holds."""
        exact = {text: said for text, said in entries.items() if "{}" not in text}
        forms = ((_pattern(text), said) for text, said in entries.items() if "{}" in text)
        return cls(exact, tuple(forms))

    def find(self, text: str) -> str | None:
        """The translation, None where there is none.

        >>> Catalogue.of({"right": "对", "{} of {}": "{1}中的{0}"}).find("right of 9")
        '9中的对'
        """
        if text in self.exact:
            return self.exact[text]
        for pattern, said in self.forms:
            if found := pattern.fullmatch(text):
                return said.format(*(self.said(part) for part in found.groups()))
        return None

    def said(self, text: str) -> str:
        """The translation, or the text as it is."""
        return self.find(text) or text


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile("(.+?)".join(map(re.escape, text.split("{}"))), re.DOTALL)


@cache
def catalogue(language: str) -> Catalogue:
    """The catalogue of a language of ``LANGUAGES``; English needs none and has an empty one."""
    if language not in LANGUAGES:
        raise InputError(message("language", repr(language), f"one of {', '.join(LANGUAGES)}"))
    if language == "en":
        return Catalogue({}, ())
    return Catalogue.of(json.loads(files(__package__).joinpath(f"{language}.json").read_text(encoding="utf-8")))


def translated(section: Section, language: str) -> Section:
    """A section with its own words in another language; data, examples and numbers are as they were."""
    words = catalogue(language)
    return Section(words.said(section.title), [_item(item, words) for item in section.items])


def _item(item: Item, words: Catalogue) -> Item:
    said = words.said
    if isinstance(item, Fact):
        return replace(
            item, what=said(item.what), value=_cell(item.value, words), unit=_unit(item.unit, words), how=said(item.how)
        )
    if isinstance(item, Note):
        return Note("\n\n".join(said(part) for part in item.text.split("\n\n")))
    if isinstance(item, Table):
        columns = tuple(Column(said(one.name), _unit(one.unit, words)) for one in item.columns)
        rows = tuple(tuple(_cell(cell, words) for cell in row) for row in item.rows)
        return Table(columns, rows, said(item.title), said(item.note))
    if isinstance(item, Picture):
        x, y = (replace(one, label=said(one.label), unit=_unit(one.unit, words)) for one in (item.x, item.y))
        series = tuple(
            replace(one, name=said(one.name), x=tuple(said(x) if isinstance(x, str) else x for x in one.x))
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
