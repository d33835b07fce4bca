"""Rows of a file one after another, and rows written beside answers: JSON lines and CSV, plain or compressed, in bounded memory.

A CSV has a header; its values stay the texts that they are, and quotes between tabs stay too, as in training's files
(``data.tables``). ``-`` is standard input or output.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from jieyue.data.encodings import is_damaged
from jieyue.data.tables import cells_of
from jieyue.data.textstream import TextStream
from jieyue.errors import InputError

__all__ = ["PACKED", "RowReader", "RowWriter", "cell", "is_table", "whole_rows"]

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
PACKED = (".gz", ".xz", ".bz2", ".zst", ".zip")


def is_table(path: Path) -> bool:
    """Whether the name says CSV or TSV."""
    return _ending(path) in _DELIMITERS


class RowReader:
    """``for place, row in RowReader(path, stream)``: each row a dict, with the place that messages name.

    ``stream``: binary standard input in the place of a file. A file is read as training reads it, in whatever packing and encoding;
    ``encoding`` decides where given, standard input is UTF-8 else. It is a table where its name ends in .csv or .tsv, or where what
    is read does not begin with ``{``. ``InputError`` names the line of what is no row: another number of cells, JSON that is not an
    object, bytes that do not decode.
    """

    def __init__(self, path: Path, stream: BinaryIO | None = None, encoding: str | None = None) -> None:
        self.path, self.stream, self.encoding = path, stream, encoding
        self.columns: list[str] | None = None  # of a table, once its header was read

    def __iter__(self) -> Iterator[tuple[str, dict[str, object]]]:
        if self.stream is None:
            with TextStream(self.path, self.encoding) as text:
                yield from self._rows(f"{line}\n" for line in iter(text.take_line, None))
            return
        try:
            piped = io.TextIOWrapper(self.stream, self.encoding or "utf-8-sig", newline="", errors="surrogateescape")
        except LookupError:
            raise InputError("encoding", repr(self.encoding), "one that Python knows, such as gb18030") from None
        with piped:
            yield from self._rows(piped)

    def _rows(self, text: Iterable[str]) -> Iterator[tuple[str, dict[str, object]]]:
        whole = self._decoded(text)
        first = next((line for line in whole if line.strip()), "")
        if not first:
            raise InputError(str(self.path), "no row", "JSON lines, or a CSV with a header")
        lines = itertools.chain([first], whole)
        is_json = not is_table(self.path) and first.lstrip().startswith("{")
        yield from self._objects(lines) if is_json else self._table(lines, first)

    def _decoded(self, text: Iterable[str]) -> Iterator[str]:
        for number, line in enumerate(text, 1):
            if is_damaged(line):
                raise InputError(f"{self.path}, line {number}", "bytes that do not decode", "text", "save it as UTF-8")
            yield line

    def _table(self, lines: Iterator[str], first: str) -> Iterator[tuple[str, dict[str, object]]]:
        usual = _DELIMITERS.get(_ending(self.path), "")
        delimiter = usual if usual and usual in first else max(f"{usual},\t;|", key=first.count)
        rows = cells_of(str(self.path), lines, delimiter, trims=False)
        _, self.columns = next(rows)
        if len(set(self.columns)) < len(self.columns):
            raise InputError(f"{self.path}: header", "a name twice", "a name of its own for each column")
        for number, cells in rows:
            if len(cells) != len(self.columns):
                found = f"{len(cells)} cells"
                raise InputError(f"{self.path}, line {number}", found, f"{len(self.columns)}, as the header")
            yield f"{self.path}, line {number}", dict(zip(self.columns, cells, strict=True))

    def _objects(self, lines: Iterator[str]) -> Iterator[tuple[str, dict[str, object]]]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{self.path}, row {number}", f"no JSON ({error})", "a JSON object") from None
            if not isinstance(row, dict):
                raise InputError(f"{self.path}, row {number}", f"{line.strip():.40}", "a JSON object")
            yield f"{self.path}, row {number}", row


class RowWriter:
    """Writes rows to a text stream; a table's header is written with the first row, unless the stream ``goes_on``."""

    def __init__(self, stream: TextIO, *, delimiter: str | None, goes_on: bool = False) -> None:
        self.stream, self.delimiter, self.has_header = stream, delimiter, goes_on

    def write(self, rows: Sequence[dict[str, object]]) -> None:
        """All of the rows, and then to the file."""
        for row in rows:
            if self.delimiter is None:
                self.stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                continue
            writer = csv.writer(self.stream, delimiter=self.delimiter, lineterminator="\n")
            if not self.has_header:
                writer.writerow(row)
                self.has_header = True
            writer.writerow([cell(value) for value in row.values()])
        self.stream.flush()


def whole_rows(path: Path, delimiter: str | None) -> Iterator[dict[str, object]]:
    """The rows that ``RowWriter`` wrote; what stands behind the last whole one, after a kill, is left out."""
    with path.open(encoding="utf-8", errors="replace", newline="") as stream:
        if delimiter is None:
            for line in stream:
                if line.endswith("\n"):
                    yield json.loads(line)
            return
        csv.field_size_limit(2**30)
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        columns, held = next(reader, []), None
        try:
            for cells in reader:
                if held is not None:
                    yield dict(zip(columns, held, strict=True))
                held = cells if len(cells) == len(columns) else None
        except csv.Error:  # the end of the file inside quotes: the row before it is whole
            pass
        if held is not None and _ends_a_line(path):
            yield dict(zip(columns, held, strict=True))


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read() == b"\n"


def cell(value: object) -> str:
    """A value as it stands in a table: text as it is, None as nothing, others as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _ending(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() in PACKED else path.suffix.lower()
