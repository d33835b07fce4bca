"""Sources with their titles, read from the files that are in use: TSV, CSV, JSON and JSON lines, plain, ``.gz`` or ``.xz``.

Columns are found by their usual names, in a header or in the records' fields (CSL: ``title``, ``abstract``; LCSTS: ``summary``,
``short_text``, or ``title``, ``content``); or they are named; or, in a table without header, numbered from 1. Two columns without
a header and without numbers are title and source, in the order of CSL. In tab-separated files quotes are letters like others;
in CSV they quote.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jieyue.errors import InputError, message
from jieyue.text import normalize

from .files import decode, read_bytes
from .findings import Findings
from .streams import Unreadable, records

__all__ = ["Pair", "read_titles", "shared_pairs"]

SOURCES = ("source", "abstract", "content", "text", "short_text", "article", "document", "src", "body")
TITLES = ("title", "summary", "headline", "target", "tgt")
ADVICE = "name them (--source-column, --title-column), or number them from 1 in a table without header"


@dataclass(frozen=True, slots=True)
class Pair:
    """A source and its title."""

    source: str
    title: str


class _Broken(Exception):
    """One record that cannot be read: what was found, what was expected."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"found {found}, expected {expected}")


def read_titles(
    paths: str | Path | Sequence[str | Path],
    *,
    source_column: str | None = None,
    title_column: str | None = None,
    skip_bad: bool = False,
) -> tuple[list[Pair], Findings]:
    """All pairs of the files, in order, and what was found on the way.

    A record without source or title, with an empty one, or with another number of cells raises ``InputError`` with file, place,
    what is wrong and what was expected; with ``skip_bad`` it is left out, counted and listed.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    findings = Findings()
    for name in ("files", "pairs", "records_skipped"):
        findings.counts[name] = 0
    named = {"source": source_column, "title": title_column}
    pairs: list[Pair] = []
    for path in files:
        findings.counts["files"] += 1
        for place, made in _records(path, named, findings):
            if isinstance(made, Pair):
                pairs.append(made)
                continue
            line = f"{path}, {place}: {made}"
            if not skip_bad:
                raise InputError(f"{line}; correct it, or pass --skip-bad to leave such records out")
            findings.counts["records_skipped"] += 1
            findings.skipped.append(line)
    if not pairs:
        names = ", ".join(map(str, files)) or "no file"
        raise InputError(message(names, f"no pairs ({len(findings.skipped)} records skipped)", "at least one"))
    findings.counts["pairs"] = len(pairs)
    findings.counts["sources_repeated"] = len(pairs) - len({_folded(one.source) for one in pairs})
    findings.counts["titles_repeated"] = len(pairs) - len({_folded(one.title) for one in pairs})
    findings.counts["titles_in_source"] = sum(_folded(one.title) in _folded(one.source) for one in pairs)
    return pairs, findings


def shared_pairs(training: Sequence[Pair], held_out: Sequence[Pair]) -> dict[str, int]:
    """How many held-out sources and titles stand in training too, compared after NFKC, case folding and removing spaces."""
    sources = {_folded(one.source) for one in training}
    titles = {_folded(one.title) for one in training}
    return {
        "sources": sum(_folded(one.source) in sources for one in held_out),
        "titles": sum(_folded(one.title) in titles for one in held_out),
    }


def _folded(text: str) -> str:
    return "".join(normalize(text).casefold().split())


def _records(path: Path, named: Mapping[str, str | None], findings: Findings) -> Iterator[tuple[str, Pair | _Broken]]:
    """(place, pair or what is wrong with it) for every record of the file."""
    text, encoding, has_bom = decode(read_bytes(path), str(path))
    findings.encodings[str(path)] = encoding
    findings.counts["files_with_bom"] += has_bom
    findings.counts["files_with_crlf"] += "\r\n" in text
    findings.counts["files_not_utf8"] += encoding != "utf-8"
    if not text.strip():
        raise InputError(message(str(path), "an empty file", "lines of a title and its source"))
    if text.lstrip()[0] in "{[":
        for place, value in records(path):
            yield place, _from_object(value, named)
    else:
        yield from _table(path, text, named)


def _from_object(value: Any, named: Mapping[str, str | None]) -> Pair | _Broken:
    if isinstance(value, Unreadable):
        return _Broken(value.why, "a JSON object with a source and a title")
    if not isinstance(value, Mapping):
        return _Broken(type(value).__name__, "an object with a source and a title")
    fields = {}
    for role, known in (("source", SOURCES), ("title", TITLES)):
        name = named[role] or next((one for one in known if one in value), None)
        if name is None or name not in value:
            return _Broken(f"the fields {sorted(map(str, value))[:8]}", f"{name or role!r} among them; {ADVICE}")
        fields[role] = value[name]
    return _made(fields["source"], fields["title"])


def _table(path: Path, text: str, named: Mapping[str, str | None]) -> Iterator[tuple[str, Pair | _Broken]]:
    first = next(line for line in text.splitlines() if line.strip())
    tabs = "\t" in first
    if not tabs and "," not in first:
        raise InputError(message(str(path), f"{first[:60]!r}", "columns parted by tabs or commas, or JSON records"))
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"skipinitialspace": True}
    csv.field_size_limit(2**30)
    reader = csv.reader((f"{line}\n" for line in lines), **options)
    places: dict[str, int] | None = None
    width = 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(message(f"{path}, line {reader.line_num}", str(error), "a whole row")) from error
        if not any(cell.strip() for cell in row):
            continue
        if places is None:
            places, has_header = _places(path, row, named)
            width = len(row)
            if has_header:
                continue
        if len(row) != width:
            yield f"line {reader.line_num}", _Broken(f"{len(row)} cells", f"{width}, as in the first row")
        else:
            yield f"line {reader.line_num}", _made(row[places["source"]], row[places["title"]])


def _places(path: Path, row: list[str], named: Mapping[str, str | None]) -> tuple[dict[str, int], bool]:
    """Role -> column, and whether the first row is a header."""
    given = [value for value in named.values() if value is not None]
    if given and all(value.isdigit() for value in given):
        numbers = {role: int(value) - 1 for role, value in named.items() if value is not None}
        if len(numbers) < 2 or not all(0 <= at < len(row) for at in numbers.values()):
            raise InputError(message(f"{path}: columns", f"{given} of {len(row)}", "two numbers, counted from 1"))
        return numbers, False
    header = [cell.strip() for cell in row]
    folded = [cell.casefold() for cell in header]
    places = {}
    for role, known in (("source", SOURCES), ("title", TITLES)):
        name = named[role]
        if name is not None and name not in header:
            raise InputError(
                message(f"{path}: column {name!r}", ", ".join(header)[:80], "a name of the header", ADVICE)
            )
        found = header.index(name) if name is not None else next((folded.index(n) for n in known if n in folded), None)
        if found is not None:
            places[role] = found
    if len(places) == 2:
        return places, True
    if len(header) == 2 and not places:
        return {"title": 0, "source": 1}, False
    raise InputError(message(str(path), f"the columns {', '.join(header)[:80]}", "a source and a title", ADVICE))


def _made(source: Any, title: Any) -> Pair | _Broken:
    for role, value in (("source", source), ("title", title)):
        if not isinstance(value, str):
            return _Broken(f"a {role} that is {type(value).__name__}", "text")
        if not value.strip():
            return _Broken(f"an empty {role}", "text")
    return Pair(source.strip(), title.strip())
