"""Tables of text: tab-separated, CSV, and parted by ``;`` or ``|``, with a header or without.

What parts the columns is decided from the whole sample, not from the first line: the delimiter under which the rows are
equally wide. A file in which none does so, or several do, is refused. In tab-separated files quotes are letters like others;
elsewhere they quote. A first line ``sep=;`` (Excel's) decides. A first row of names is a header, known names or not.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jieyue.errors import InputError

from .encodings import is_damaged
from .findings import BadRecord

__all__ = [
    "Names",
    "Row",
    "Table",
    "cells_of",
    "columns_by_name",
    "is_header",
    "numbered",
    "read_table",
    "typical_length",
]

Names = Mapping[str, Sequence[str]]
"""What a column may be called, for each role that columns play; the first name that occurs is taken."""
Row = tuple[int, list[str]]
"""The number of the line that a row ends in, and its cells."""

_DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
_WORDS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "bar": "|", "pipe": "|", "space": " "}
_SAMPLE = 5000  # rows that are looked at before anything is decided
_EVEN = 0.75  # share of rows that must be equally wide
_NAME = re.compile(r"[^\W\d][\w .:/()#-]{0,30}")


@dataclass(frozen=True, slots=True)
class Table:
    """``header``: the names of the columns, None without one; ``rows`` may differ from ``width``: those are broken."""

    header: tuple[str, ...] | None
    rows: list[Row]
    width: int
    delimiter: str

    def whole(self) -> Iterator[tuple[str, list[str] | BadRecord]]:
        """(place, cells) of each row, or in their place what is wrong with it."""
        for line, cells in self.rows:
            if len(cells) != self.width:
                yield f"line {line}", BadRecord(f"{len(cells)} cells", f"{self.width}, as in most rows")
            elif any(map(is_damaged, cells)):
                yield f"line {line}", BadRecord("bytes that do not decode", "text")
            else:
                yield f"line {line}", cells


def read_table(
    name: str, text: str, known: Names, delimiter: str | None = None, *, refuses_doubt: bool = True
) -> Table:
    """The table in a text. ``known``: usual names of columns, which help to tell a header. ``delimiter`` decides where given.
    ``refuses_doubt`` False: a first row that may be names or not is not.

    ``InputError`` where the text is empty, rows are not equally wide, several delimiters would do, a quote does not end, or
    it cannot be told whether the first row is a header.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise InputError(name, "an empty file", "rows of text")
    said = re.fullmatch(r"sep=(.)", lines[first].strip("\ufeff \n")) if delimiter is None else None
    if said or (delimiter is not None and lines[first].lower().startswith("sep=")):
        first += 1
    lines[:first] = [""] * first  # line numbers stay
    if delimiter is not None or said is not None:
        parted = _given(delimiter) if delimiter is not None else said[1] if said else ","
        rows = list(_rows(name, lines, parted))
    else:
        parted = _delimiter(name, lines, known)
        rows = list(_rows(name, lines, parted))
    if not rows:
        raise InputError(name, "an empty file", "rows of text")
    width = Counter(len(cells) for _, cells in rows[:_SAMPLE]).most_common(1)[0][0]
    header = rows[0][1] if len(rows[0][1]) == width else None
    if header is not None and is_header(
        name, [cells for _, cells in rows if len(cells) == width], known, refuses_doubt
    ):
        return Table(tuple(cell.strip() for cell in header), rows[1:], width, parted)
    return Table(None, rows, width, parted)


def _given(delimiter: str) -> str:
    found = _WORDS.get(delimiter.lower(), delimiter)
    if len(found) != 1 or found in '\r\n"':
        raise InputError("delimiter", repr(delimiter), "one character, or tab, comma, semicolon, bar")
    return found


def cells_of(name: str, lines: Iterable[str], delimiter: str, *, trims: bool = True) -> Iterator[Row]:
    """(number of its last line, cells) of every row but empty lines; ``lines`` with their ends.

    Parted by tabs, quotes are letters like others; elsewhere they quote, and blanks before a cell are left out where ``trims``.
    ``InputError`` names the line of what is no row.

    >>> list(cells_of("a", ['"a;b"; "c"'], ";")), list(cells_of("a", ['"a\\tb"'], "\\t"))
    ([(1, ['a;b', 'c'])], [(1, ['"a', 'b"'])])
    """
    csv.field_size_limit(2**30)
    tabs = delimiter == "\t"
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        skipinitialspace=trims and not tabs,
    )
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}", str(error), "a whole row") from error


def _rows(name: str, lines: Sequence[str], delimiter: str) -> Iterator[Row]:
    found = cells_of(name, (f"{line}\n" for line in lines), delimiter)
    return ((number, row) for number, row in found if any(cell.strip() for cell in row))


def _delimiter(name: str, lines: Sequence[str], known: Names) -> str:
    """The one delimiter under which the sample's rows are equally wide."""
    sample = lines[: _SAMPLE + 1]
    widths = {mark: Counter(len(cells) for _, cells in _rows(name, sample, mark)) for mark in _DELIMITERS}
    even: list[str] = []
    for mark, counts in widths.items():
        width, count = counts.most_common(1)[0] if counts else (1, 0)
        if width > 1 and count >= _EVEN * sum(counts.values()):
            even.append(mark)
    if "\t" in even or len(even) == 1:
        return "\t" if "\t" in even else even[0]
    joined = "\n".join(sample)
    bare = [mark for mark in even if joined.count(f"{mark} ") < 0.8 * joined.count(mark)]  # else punctuation of prose
    if len(bare) == 1:
        return bare[0]
    titled = [mark for mark in even if _names_in(next(_rows(name, sample, mark))[1], known)]
    if len(titled) == 1:
        return titled[0]
    raise _undecided(name, lines, widths, even)


def _undecided(name: str, lines: Sequence[str], widths: Mapping[str, Counter[int]], even: Sequence[str]) -> InputError:
    first = next(line for line in lines if line.strip())
    if even:
        found = f"rows equally wide under {' and '.join(_DELIMITERS[mark] for mark in even)}"
        return InputError(name, found, "one way to part columns", "name it: --delimiter")
    if first.startswith("__label__"):
        return InputError(name, "fastText's lines", "columns", "write them as label, tab, text")
    shown = [
        f"{_DELIMITERS[mark]} give {min(counts)} to {max(counts)} cells a row"
        for mark, counts in widths.items()
        if counts and max(counts) > 1
    ]
    found = "; ".join(shown) or f"one column ({first[:40]!r})"
    return InputError(
        name,
        found,
        "columns parted by tabs or commas, as many in every row, or JSON records",
        "name what parts them: --delimiter" if shown else "",
    )


def _folded(cell: str) -> str:
    return cell.strip().strip("\ufeff").casefold()


def _names_in(cells: Sequence[str], known: Names) -> int:
    names = {_folded(name) for names in known.values() for name in names}
    return sum(_folded(cell) in names for cell in cells)


def _is_name(cell: str) -> bool:
    """Whether a cell may be the name of a column: a few words, or a few Chinese characters, without punctuation."""
    cell = cell.strip()
    if not cell:
        return True
    wide = sum(char > "\u2e7f" for char in cell)
    return _NAME.fullmatch(cell) is not None and len(cell.split()) <= 3 and wide <= 6


def is_header(name: str, rows: Sequence[Sequence[str]], known: Names, refuses_doubt: bool = True) -> bool:
    """Whether the first row holds names. One that is known is enough; unknown ones must look unlike most other rows.

    ``InputError`` where it may hold names or an example, unless doubt is not to be refused: then it is an example.
    """
    first, others = rows[0], rows[1:]
    if not all(map(_is_name, first)) or not any(cell.strip() for cell in first):
        return False
    num_known = _names_in(first, known)
    if num_known >= 2 or num_known == len(first):
        return True
    columns = [[row[at] for row in others] for at in range(len(first))]
    if any(cell.strip() and cell in column for cell, column in zip(first, columns, strict=True)):
        return False
    if num_known:
        return True
    if not others:
        return False
    if sum(all(map(_is_name, row)) for row in others) <= 0.2 * len(others):
        return True
    is_listed = any(len(set(column)) <= len(column) / 2 for column in columns)
    is_counted = any(all(cell.strip().lstrip("-").isdigit() for cell in column) for column in columns)
    if refuses_doubt and (is_listed or is_counted):
        raise InputError(
            f"{name}, first row",
            f"{', '.join(first)[:60]!r}, which may be names of columns or an example",
            "usual names (text, label, title, content, …), or a row like the others",
            "write a first line with the columns' names",
        )
    return False


def numbered(named: Mapping[str, str | None], width: int, name: str) -> dict[str, int] | None:
    """Role -> column, where columns are given by numbers from 1; None where they are given by name or not at all."""
    given = {role: value for role, value in named.items() if value is not None}
    if not given or not all(value.isdigit() for value in given.values()):
        return None
    places = {role: int(value) - 1 for role, value in given.items()}
    if not all(0 <= at < width for at in places.values()) or len(set(places.values())) < len(places):
        shown = ", ".join(f"{role} {value}" for role, value in given.items())
        raise InputError(f"{name}: columns", shown, f"different numbers from 1 to {width}")
    return places


def columns_by_name(
    name: str, header: Sequence[str], known: Names, named: Mapping[str, str | None], advice: str
) -> dict[str, int]:
    """Role -> column: as named, else by the first known name in the header; roles without either are left out.

    ``InputError`` for a given name that the header lacks.
    """
    folded, places = [_folded(cell) for cell in header], dict[str, int]()
    for role, wanted in named.items():
        if wanted is not None:
            if wanted.strip() not in header:
                raise InputError(f"{name}: column {wanted!r}", ", ".join(header)[:80], "a name of the header", advice)
            places[role] = list(header).index(wanted.strip())
    for role, names in known.items():
        if role not in places:
            found = [folded.index(_folded(one)) for one in names if _folded(one) in folded]
            free = [at for at in found if at not in places.values()]
            if free:
                places[role] = free[0]
    return places


def typical_length(cells: Sequence[str]) -> float:
    """The median number of characters in a column."""
    return statistics.median(map(len, cells)) if cells else 0.0
