"""Texts of a row that a task is asked about: fields found by their usual names, or by the names given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jieyue.errors import InputError

__all__ = ["field_of", "text_of"]


def field_of(row: Mapping[str, object], names: Sequence[str], named: str | None = None) -> str | None:
    """The field ``named``, else the first of ``names`` that the row has (letter case aside); None where it has none."""
    if named is not None:
        return named if named in row else None
    folded = {str(name).casefold(): str(name) for name in reversed(list(row))}
    return next((folded[name.casefold()] for name in names if name.casefold() in folded), None)


def text_of(row: Mapping[str, object], names: Sequence[str], what: str, named: str | None = None) -> str:
    """The text of that field; ``InputError`` where there is none, or where it is blank or no text.

    >>> text_of({"Text": "a", "id": 3}, ("sentence", "text"), "a text")
    'a'
    """
    found = field_of(row, names, named)
    if found is None:
        known = ", ".join(map(repr, [named] if named else names[:6]))
        raise InputError("row", f"the fields {', '.join(map(repr, row)) or 'none'}", f"{what}: {known}")
    value = row[found]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"row, field {found!r}", f"{value!r:.40}", f"{what} that is not empty")
    return value
