"""Texts with labels, read from the files that are in use: TSV, CSV, JSON and JSON lines, plain, ``.gz`` or ``.xz``.

A table has a header (``label<TAB>text_a``) or two columns without one, of which the one with fewer different values is the
label. A JSON record is an object. Columns are found by their usual names (``TEXTS``, ``PAIRS``, ``LABELS``), or named, or,
in a table without header, numbered from 1. In tab-separated files quotes are letters like others; in CSV they quote.

A label is text (a number becomes its digits); an empty one or a missing field means that it is not known.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jieyue.errors import InputError, message
from jieyue.text import normalize

from .files import decode, load, read_bytes
from .findings import Findings

__all__ = ["Columns", "Labelled", "note_repeated", "read_labelled", "shared_texts"]

TEXTS = ("text", "sentence", "sentence1", "text_a", "content", "review", "question", "title")
PAIRS = ("sentence2", "text_b", "pair")
LABELS = ("label", "labels", "category", "topic", "class")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, perhaps a second one (``pair``), and its label; None = not known."""

    text: str
    label: str | None = None
    pair: str = ""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns hold what: names of the header or of the record's fields, or numbers from 1; None = found by name."""

    text: str | None = None
    label: str | None = None
    pair: str | None = None

    def numbered(self) -> dict[str, int] | None:
        """The columns as places from 0, where they are given as numbers."""
        given = {role: value for role, value in vars(self).items() if value is not None}
        if not given or not all(value.isdigit() for value in given.values()):
            return None
        if "text" not in given or "0" in given.values():
            raise InputError(message("columns", f"numbers {given}", "the text's and the label's, counted from 1"))
        return {role: int(value) - 1 for role, value in given.items()}


class _Broken(Exception):
    """One record that cannot be read: what was found, what was expected."""


def read_labelled(
    paths: str | Path | Sequence[str | Path], *, columns: Columns | None = None, skip_bad: bool = False
) -> tuple[list[Labelled], Findings]:
    """All examples of the files, in order, and what was found on the way.

    A broken record (another number of cells, no text, a field of another type) raises ``InputError`` with file, place, what
    is wrong and what was expected; with ``skip_bad`` it is left out, counted and listed.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    findings, columns = Findings(), columns or Columns()
    for name in ("files", "examples", "labels", "labels_unknown", "records_skipped"):
        findings.counts[name] = 0
    examples: list[Labelled] = []
    for path in files:
        for place, made in _records(path, columns, findings):
            if isinstance(made, Labelled):
                examples.append(made)
                continue
            line = f"{path}, {place}: {made}"
            if not skip_bad:
                raise InputError(f"{line}; correct it, or pass --skip-bad to leave such records out")
            findings.counts["records_skipped"] += 1
            findings.skipped.append(line)
    if not examples:
        names = ", ".join(map(str, files)) or "no file"
        raise InputError(message(names, f"no examples ({len(findings.skipped)} records skipped)", "at least one"))
    findings.counts["examples"] = len(examples)
    findings.counts["labels"] = len({one.label for one in examples} - {None})
    findings.counts["labels_unknown"] = sum(one.label is None for one in examples)
    note_repeated(examples, findings)
    return examples, findings


def note_repeated(examples: Sequence[Labelled], findings: Findings) -> None:
    """Counts texts that stand more than once, and those of them whose label is another one than before."""
    seen: dict[tuple[str, str], str | None] = {}
    for one in examples:
        key = (one.text, one.pair)
        if key in seen:
            findings.counts["texts_repeated"] += 1
            findings.counts["texts_contradicted"] += None not in (one.label, seen[key]) and one.label != seen[key]
        else:
            seen[key] = one.label


def shared_texts(training: Sequence[Labelled], held_out: Sequence[Labelled]) -> dict[str, int]:
    """How many held-out texts stand in training too, compared after NFKC, case folding and removing spaces."""

    def key(one: Labelled) -> tuple[str, str]:
        return _folded(one.text), _folded(one.pair)

    known = {key(one) for one in training}
    return {"texts": sum(key(one) in known for one in held_out)}


def _folded(text: str) -> str:
    return "".join(normalize(text).casefold().split())


def _records(path: Path, columns: Columns, findings: Findings) -> Iterator[tuple[str, Labelled | _Broken]]:
    """(place, example or what is wrong with it) for every record of the file."""
    text, encoding, has_bom = decode(read_bytes(path), str(path))
    findings.encodings[str(path)] = encoding
    findings.counts["files"] += 1
    findings.counts["files_with_bom"] += has_bom
    findings.counts["files_with_crlf"] += "\r\n" in text
    findings.counts["files_not_utf8"] += encoding != "utf-8"
    if text.lstrip()[:1] in ("{", "["):
        yield from _objects(path, columns)
    else:
        yield from _table(path, text, columns)


def _objects(path: Path, columns: Columns) -> Iterator[tuple[str, Labelled | _Broken]]:
    document = load(path)
    if document.is_lines:
        for number, line in document.value:
            try:
                yield f"line {number}", _from_object(json.loads(line), columns)
            except json.JSONDecodeError as error:
                yield f"line {number}", _Broken(f"found {error.msg}, expected a JSON object")
        return
    if not isinstance(document.value, list):
        raise InputError(
            message(
                str(path),
                "one JSON object" + (" of questions" if "data" in document.value else ""),
                "a list of records, or JSON lines, each with a text and a label",
            )
        )
    for number, value in enumerate(document.value, 1):
        yield f"record {number}", _from_object(value, columns)


def _from_object(value: Any, columns: Columns) -> Labelled | _Broken:
    if not isinstance(value, Mapping):
        return _Broken(f"found {type(value).__name__}, expected an object with a text and a label")
    fields = {}
    for role, known in (("text", TEXTS), ("pair", PAIRS), ("label", LABELS)):
        named = getattr(columns, role)
        fields[role] = named if named is not None else next((name for name in known if name in value), None)
    if fields["text"] is None or fields["text"] not in value:
        return _Broken(f"found the fields {sorted(map(str, value))[:8]}, expected {fields['text'] or 'text'!r}")
    text, label = value[fields["text"]], value.get(fields["label"]) if fields["label"] else None
    pair = value.get(fields["pair"], "") if fields["pair"] else ""
    if not isinstance(text, str) or not isinstance(pair, str):
        return _Broken(f"found {fields['text']!r} = {text!r:.40}, expected text")
    if label is not None and not isinstance(label, str | int | bool):
        return _Broken(f"found {fields['label']!r} = {label!r:.40}, expected one label")
    return _made(text, pair, None if label is None else str(label))


def _table(path: Path, text: str, columns: Columns) -> Iterator[tuple[str, Labelled | _Broken]]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise InputError(message(str(path), "an empty file", "lines of a text and its label"))
    tabs = "\t" in first
    if not tabs and "," not in first:
        raise InputError(message(str(path), f"{first[:60]!r}", "columns parted by tabs or commas, or JSON records"))
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"skipinitialspace": True}
    reader = csv.reader((f"{line}\n" for line in lines), **options)
    csv.field_size_limit(2**30)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise InputError(message(f"{path}, line {reader.line_num}", str(error), "a whole row")) from error
    places, has_header = _places(path, [row for _, row in rows], columns)
    width = len(rows[0][1])
    for number, row in rows[has_header:]:
        if len(row) != width:
            yield f"line {number}", _Broken(f"found {len(row)} cells, expected {width}")
            continue
        cells = {role: row[at] for role, at in places.items()}
        yield f"line {number}", _made(cells["text"], cells.get("pair", ""), cells.get("label"))


def _places(path: Path, rows: list[list[str]], columns: Columns) -> tuple[dict[str, int], bool]:
    """Role -> column, and whether the first row is a header."""
    header = [cell.strip() for cell in rows[0]]
    if (numbered := columns.numbered()) is not None:
        if max(numbered.values()) >= len(header):
            raise InputError(
                message(f"{path}: columns", f"{len(header)} columns", f"at least {max(numbered.values()) + 1}")
            )
        return numbered, False
    folded = [cell.casefold() for cell in header]
    places = {}
    for role, known in (("text", TEXTS), ("pair", PAIRS), ("label", LABELS)):
        named = getattr(columns, role)
        if named is not None:
            if named not in header:
                raise InputError(
                    message(f"{path}: column {named!r}", ", ".join(header)[:80], "a name of the header, or numbers")
                )
            places[role] = header.index(named)
        elif found := [
            folded.index(name) for name in known if name in folded and folded.index(name) not in places.values()
        ]:
            places[role] = found[0]
    if "text" in places and ("label" in places or len(header) == 1 or columns.text):
        return places, True
    if len(header) != 2:
        raise InputError(
            message(
                str(path),
                f"{len(header)} columns, {', '.join(header)[:60]}",
                f"a header with {TEXTS[0]!r} and {LABELS[0]!r}, or two columns",
                "name them: --text-column, --label-column (or number them from 1)",
            )
        )
    variety = [len({row[at] for row in rows if len(row) == 2}) for at in (0, 1)]
    if variety[0] == variety[1]:
        raise InputError(
            message(
                str(path),
                f"two columns of {variety[0]} different values each",
                "a label column with fewer",
                "number them: --text-column 1 --label-column 2",
            )
        )
    label = int(variety[1] < variety[0])
    return {"text": 1 - label, "label": label}, False


def _made(text: str, pair: str, label: str | None) -> Labelled | _Broken:
    if not text.strip():
        return _Broken("found an empty text, expected one")
    label = (label or "").strip()
    return Labelled(text.strip(), label or None, pair.strip())
