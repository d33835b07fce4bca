"""Dialogues that are no JSON: tab-separated or CSV, ``__eou__`` between turns, ``E``/``M`` lines, groups parted by blank lines.

``text_records(text)`` yields (place, record) as a JSON file of the same dialogues would give them, one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jieyue.errors import InputError

from . import textstream
from .encodings import is_damaged
from .streams import Placed, Unreadable
from .tables import Table, cells_of, is_header, read_table
from .textstream import TextStream
from .turns import KNOWN_SPEAKERS, PROMPTS, REPLIES

__all__ = ["text_records"]

TURN_END = "__eou__"
NAMES = {
    "prompt": PROMPTS,
    "reply": REPLIES,
    "input": ("input",),
    "history": ("history",),
    "system": ("system",),
}
_NAMED = re.compile(r"(\w[\w ]{0,19})\s*[:：]\s*(\S.*)")
_MOST = 0.8  # share of lines that a layout must explain
FORMATS = (
    "JSON, tab-separated turns, a CSV with a prompt and a response, __eou__ between turns, E and M lines, "
    "or a turn a line with a blank line between dialogues"
)


def text_records(text: TextStream, delimiter: str | None = None) -> Iterator[Placed]:
    """The dialogues of a file that is no JSON. ``delimiter``: it is a table whose columns this parts.

    ``InputError`` where the file's first block fits none of the layouts. Memory: one dialogue and one block.
    """
    begun = text.peek(textstream.BLOCK)
    lines = [line.strip("\ufeff\r") for line in begun.split("\n")]
    filled = [line for line in lines if line.strip()]
    if not filled:
        raise InputError(text.name, "an empty file", FORMATS)
    if delimiter is not None:
        yield from _table(text, begun, delimiter)
    elif filled[0].strip() == "E" or all(line.strip() == "E" or line[:2] in ("M ", "M\t") for line in filled[:20]):
        yield from _conv(text)
    elif sum(TURN_END in line for line in filled) >= _MOST * len(filled):
        yield from _turn_ends(text)
    elif sum("\t" in line for line in filled) >= _MOST * len(filled):
        yield from _tabs(text, filled)
    elif _is_table(text.name, begun):
        yield from _table(text, begun, None)
    elif _has_groups(lines):
        yield from _groups(text, filled)
    else:
        first = filled[0][:40]
        raise InputError(text.name, f"lines of text ({first!r})", FORMATS)


def _lines(text: TextStream) -> Iterator[tuple[int, str]]:
    number = 0
    while (line := text.take_line()) is not None:
        number += 1
        yield number, line.strip("\ufeff\r")


def _checked(text: TextStream, turns: Sequence[str]) -> list[str] | Unreadable:
    if any(map(is_damaged, turns)):
        return Unreadable(f"bytes that are not {text.encoding}")
    return list(turns)


def _conv(text: TextStream) -> Iterator[Placed]:
    """``E`` begins a dialogue, ``M`` says a turn."""
    turns, place = list[str](), 1
    for number, line in _lines(text):
        if line.strip() == "E":
            if turns:
                yield f"line {place}", _checked(text, turns)
            turns, place = [], number
        elif line[:2] in ("M ", "M\t") or line.strip() == "M":
            turns.append(line[2:].strip())
        elif line.strip():
            yield f"line {number}", Unreadable(f"{line[:30]!r}, neither an E nor an M line")
    if turns:
        yield f"line {place}", _checked(text, turns)


def _turn_ends(text: TextStream) -> Iterator[Placed]:
    for number, line in _lines(text):
        if line.strip():
            turns = [turn.strip() for turn in line.split(TURN_END)]
            yield f"line {number}", _checked(text, turns[:-1] if not turns[-1] else turns)


def _tabs(text: TextStream, filled: Sequence[str]) -> Iterator[Placed]:
    """A dialogue a line, its turns parted by tabs; a row of names comes first or not."""
    rows = [line.split("\t") for line in filled]
    same = [row for row in rows if len(row) == len(rows[0])]
    names = [name.strip().casefold() for name in rows[0]] if is_header(text.name, same, NAMES, False) else None
    is_first = True
    for number, line in _lines(text):
        if not line.strip():
            continue
        if is_first and names is not None:
            is_first = False
            continue
        is_first = False
        cells = [cell.strip() for cell in line.split("\t")]
        while len(cells) > 1 and not cells[-1]:
            cells.pop()
        turns = _checked(text, cells)
        if len(cells) < 2:
            yield f"line {number}", Unreadable("one cell, where others are parted by tabs")
        elif names is not None and _is_spoken(names) and not isinstance(turns, Unreadable):
            yield f"line {number}", dict(zip(names, turns, strict=False))
        else:
            yield f"line {number}", turns


def _is_table(name: str, begun: str) -> bool:
    """Whether commas, semicolons or bars part a prompt from a response: by its header, or by its name (``.csv``)."""
    try:
        table = _begun(name, begun, None)
    except InputError:
        return False
    return _has_names(table) or (table.width == 2 and ".csv" in Path(name.lower()).suffixes)


def _begun(name: str, begun: str, delimiter: str | None) -> Table:
    """The table in the first block, as far as its last whole line."""
    cut = begun.rfind("\n") if len(begun) >= textstream.BLOCK else len(begun)
    return read_table(name, begun[:cut], NAMES, delimiter, refuses_doubt=False)


def _has_names(table: Table) -> bool:
    names = {name.casefold() for name in table.header or ()}
    return bool(names & set(PROMPTS)) and bool(names & set(REPLIES))


def _is_spoken(names: Sequence[str] | None) -> bool:
    """Whether the columns are named after speakers, or after a prompt and a response."""
    return names is not None and (bool({*names} & {*PROMPTS, *REPLIES}) or all(map(KNOWN_SPEAKERS.knows, names)))


def _table(text: TextStream, begun: str, delimiter: str | None) -> Iterator[Placed]:
    """Rows of a table with a header that names a prompt and a response, or of two columns without one."""
    table = _begun(text.name, begun, delimiter)
    if not _has_names(table) and table.width != 2:
        shown = ", ".join(table.header or table.rows[0][1])[:80]
        raise InputError(text.name, f"the columns {shown}", "a header with 'prompt' and 'response'")
    names = [name.casefold() for name in table.header] if table.header and _has_names(table) else None
    skipped = 0 if table.header is None else 1
    for number, row in cells_of(text.name, (f"{line}\n" for _, line in _lines(text)), table.delimiter):
        if not any(cell.strip() for cell in row) or (len(row) == 1 and row[0].lower().startswith("sep=")):
            continue
        if skipped:
            skipped -= 1
            continue
        place, cells = f"line {number}", _checked(text, [cell.strip() for cell in row])
        if len(row) != table.width:
            yield place, Unreadable(f"{len(row)} cells where there are {table.width} in most rows")
        elif names is not None and not isinstance(cells, Unreadable):
            yield place, {name: cell for name, cell in zip(names, cells, strict=True) if cell}
        else:
            yield place, cells


def _has_groups(lines: Sequence[str]) -> bool:
    """Whether blank lines part groups of lines, most of more than one."""
    groups, inside = list[int](), False
    for line in lines:
        if line.strip():
            groups = [*groups[:-1], groups[-1] + 1] if inside and groups else [*groups, 1]
        inside = bool(line.strip())
    return len(groups) > 1 and sum(count > 1 for count in groups) >= 0.5 * len(groups)


def _groups(text: TextStream, filled: Sequence[str]) -> Iterator[Placed]:
    """A turn a line, a blank line between dialogues; ``name: text`` where nearly all lines of few speakers begin so."""
    found = [_NAMED.fullmatch(line.strip()) for line in filled]
    names = {one[1].casefold() for one in found if one}
    is_named = sum(one is not None for one in found) >= _MOST * len(filled) and len(names) <= max(2, len(filled) // 10)
    turns, place = list[str](), 1
    for number, line in _lines(text):
        if line.strip():
            place = place if turns else number
            turns.append(line.strip())
        elif turns:
            yield f"line {place}", _grouped(text, turns, is_named)
            turns = []
    if turns:
        yield f"line {place}", _grouped(text, turns, is_named)


def _grouped(
    text: TextStream, turns: Sequence[str], is_named: bool
) -> list[str] | dict[str, list[list[str]]] | Unreadable:
    checked = _checked(text, turns)
    if isinstance(checked, Unreadable) or not is_named:
        return checked
    pairs = [_NAMED.fullmatch(turn) for turn in turns]
    if not all(pairs):
        return Unreadable("a line without 'name: ' where others name their speakers")
    return {"turns": [[pair[1].strip(), pair[2]] for pair in pairs if pair]}
