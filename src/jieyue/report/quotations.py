"""What of a report is taken from the data word for word, and the report without it: for cards that others read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .translation import DATA
from .values import Examples, Fact, Item, Section, Table

if TYPE_CHECKING:
    from .document import Report

__all__ = ["LEFT_OUT", "without_quotations"]

LEFT_OUT = "Examples from the data are left out here."
_NAMES = frozenset(
    {"file", "label", "taken for", "type", "variant"}
)  # names that the model's own configuration has too
_QUOTED = DATA - _NAMES
_SPEAKERS = "who is who"  # the fact that names the speakers of dialogues


def without_quotations(report: Report) -> Report:
    """A copy without examples, without tables that have a column of texts from the data, and without the speakers' names.

    A section that had any says so, once; one that had nothing else is only that sentence.
    """
    return replace(report, sections=[_without(section) for section in report.sections])


def _without(section: Section) -> Section:
    kept = [item for item in section.items if not _quotes(item)]
    found = Section(section.title, kept)
    return found.note(LEFT_OUT) if len(kept) < len(section.items) else found


def _quotes(item: Item) -> bool:
    if isinstance(item, Table):
        return any(column.name in _QUOTED for column in item.columns)
    return isinstance(item, Examples) or (isinstance(item, Fact) and item.what == _SPEAKERS)
