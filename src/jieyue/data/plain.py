"""Plain text, line by line, and rows of it: what masked-LM training reads.

``read_lines`` gives the lines that hold something: of plain text, or of the texts in JSON records, a Parquet file, or a table by its
name (.csv, .tsv), whose commas and labels are nothing to be learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from jieyue.errors import InputError
from jieyue.text import folded

from .encodings import is_damaged
from .files import as_paths, read_text, warn_if_doubtful
from .findings import BadRecord, Findings
from .json_shapes import Json, Layout, is_json
from .rows import is_parquet, parquet_records
from .streams import Unreadable, records
from .tables import columns_by_name, read_table
from .textstream import TextStream

__all__ = ["note_repeated_lines", "read_lines", "shared_lines"]

NAMES = (
    "text",
    "content",
    "sentence",
    "body",
    "article",
    "passage",
    "document",
    "paragraphs",
    "文本",
    "正文",
    "内容",
    "文章",
)
_LISTS = Layout(is_list_record=lambda values, of_lines: False)  # a list holds texts or records
_TABLES = {".csv": ",", ".tsv": "\t"}
_LONG = 20  # characters from which on a line is no chance repetition
_PASSAGE = 60  # bytes of UTF-8 without spaces that make a passage: some twelve English words, twenty Chinese characters


def read_lines(
    paths: str | Path | Sequence[str | Path], *, skip_bad: bool = False, encoding: str | None = None
) -> tuple[list[str], Findings]:
    """The lines of the files that are not blank, in order, and what was found. ``encoding`` decides where given.

    A line with a zero byte, U+FFFD (what decoders leave of damaged text) or bytes that do not decode is broken, and so is a
    JSON record without a text: ``InputError`` names it; with ``skip_bad`` it is left out, counted and listed.
    """
    files = as_paths(paths)
    findings, lines = Findings(), list[str]()
    for name in ("files", "lines", "characters", "records_skipped"):
        findings.counts[name] = 0
    for path in files:
        for place, found in _texts(path, findings, encoding, skip_bad):
            if isinstance(found, BadRecord):
                findings.refuse(f"{path}, {place}: {found}", skip_bad, "lines")
                continue
            for line in filter(None, map(str.strip, found.split("\n"))):
                if "\0" in line or "\ufffd" in line or is_damaged(line):
                    findings.refuse(f"{path}, {place}: found damaged characters, expected text", skip_bad, "lines")
                else:
                    lines.append(line)
    if not lines:
        raise InputError(", ".join(map(str, files)) or "no file", "no text", "at least one line of it")
    findings.counts["lines"] = len(lines)
    findings.counts["characters"] = sum(map(len, lines))
    note_repeated_lines(lines, findings)
    return lines, findings


def _texts(
    path: Path, findings: Findings, encoding: str | None, goes_on: bool
) -> Iterator[tuple[str, str | BadRecord]]:
    """(place, text) of every line or record."""
    if is_parquet(path):
        findings.note_file(path, "utf-8", False, False)
        for place, value in parquet_records(path):
            yield place, _text_of(value)
        return
    with TextStream(path, encoding, warns=False) as text:
        if is_json(text.peek(2**16), text.ended):
            warn_if_doubtful(text.found, text.name)
            findings.note_file(path, text.encoding, text.has_bom, text.has_crlf)
            for place, value in records(text, _LISTS, goes_on=goes_on):
                yield place, _text_of(value)
            return
    found = read_text(path, encoding)
    findings.note_file(path, found.encoding.name, found.has_bom, found.has_crlf)
    usual = next((mark for ending, mark in _TABLES.items() if ending in path.suffixes[-2:]), None)
    if usual is not None:
        yield from _of_table(str(path), found.text, usual)
        return
    for number, line in enumerate(found.text.split("\n"), 1):
        yield f"line {number}", line


def _of_table(name: str, text: str, usual: str) -> Iterator[tuple[str, str | BadRecord]]:
    """The texts of a table's one column, or of the one that is called so; ``usual`` parts columns where it stands in the first row."""
    first = text.lstrip().partition("\n")[0]
    known = {"text": NAMES}
    table = read_table(
        name, text, known, usual if usual in first else None if ";" in first else usual, refuses_doubt=False
    )
    places = {"text": 0} if table.width == 1 else columns_by_name(name, table.header or (), known, {}, "")
    if "text" not in places:
        shown = ", ".join(table.header or table.rows[0][1])[:60]
        raise InputError(
            name, f"the columns {shown}", f"a header with one of {', '.join(NAMES[:4])}, …", "or plain text"
        )
    for place, cells in table.whole():
        yield place, cells if isinstance(cells, BadRecord) else cells[places["text"]]


def _text_of(value: Json | Unreadable) -> str | BadRecord:
    if isinstance(value, Unreadable):
        return BadRecord(value.why, "JSON")
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        name = next((name for name in NAMES if name in value), None)
        found = value[name] if name else None
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            found = "\n".join(map(str, found))
        if isinstance(found, str):
            return found
        shown = f"{name!r} = {found!r:.40}" if name else f"the fields {sorted(map(str, value))[:8]}"
        return BadRecord(shown, f"a text under one of {', '.join(NAMES[:4])}, …")
    return BadRecord(type(value).__name__, "a text, or an object with one")


def note_repeated_lines(lines: Sequence[str], findings: Findings) -> None:
    """Counts the lines of twenty characters or more that stood before."""
    long = [line for line in lines if len(line) >= _LONG]
    findings.counts["lines_repeated"] = len(long) - len(set(long))


def shared_lines(training: Sequence[str], held_out: Sequence[str]) -> dict[str, int]:
    """How many held-out lines are of a passage that stands in training too, after NFKC, case folding, no spaces.

    A passage is a stretch of neighbouring lines, in the same order in both, of 60 bytes or more in UTF-8 together: a long line
    alone, or short ones that follow one another in both. A heading that both parts have is none.
    """
    known = [folded(line) for line in training]
    lines, pairs = set(known), set(pairwise(known))
    count, stretch, size, last = 0, 0, 0, ""
    for line in map(folded, held_out):
        if stretch and (last, line) not in pairs:
            count += stretch if size >= _PASSAGE else 0
            stretch, size = 0, 0
        if line in lines:
            stretch, size = stretch + 1, size + len(line.encode("utf-8", "surrogatepass"))
        last = line
    return {"lines": count + (stretch if size >= _PASSAGE else 0)}
