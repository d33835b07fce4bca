"""A file of records, whatever it is: JSON in any layout, a table, or Parquet; for labelled texts, titles and questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jieyue.errors import InputError, MissingExtra

from .files import read_text, warn_if_doubtful
from .findings import Findings
from .json_shapes import OBJECTS, Json, Layout, is_json
from .streams import Unreadable, records
from .tables import Names, Table, read_table
from .textstream import TextStream

__all__ = ["is_parquet", "open_rows", "parquet_records"]


def open_rows(
    path: Path,
    known: Names,
    findings: Findings,
    *,
    layout: Layout = OBJECTS,
    delimiter: str | None = None,
    encoding: str | None = None,
    goes_on: bool = False,
) -> Table | list[tuple[str, Json | Unreadable]]:
    """The table in a file, or its (place, JSON record)s; ``findings`` counts the file, ``goes_on`` as in ``records``.

    ``InputError`` and ``MissingExtra`` as ``ByteSource``, ``records`` and ``read_table``. Memory: the file, unpacked.
    """
    if is_parquet(path):
        findings.note_file(path, "utf-8", False, False)
        return list(parquet_records(path))
    with TextStream(path, encoding, warns=False) as text:
        begun = text.peek(2**16)
        if is_json(begun, text.ended) and delimiter is None:
            return _json_records(text, layout, findings, goes_on)
    found = read_text(path, encoding)
    try:
        table = read_table(str(path), found.text, known, delimiter)
    except InputError:
        if begun.lstrip()[:1] in ("[", "{"):  # neither: what is wrong with it as JSON says more
            with TextStream(path, encoding, warns=False) as text:
                return _json_records(text, layout, findings, goes_on)
        raise
    findings.note_file(path, found.encoding.name, found.has_bom, found.has_crlf)
    return table


def _json_records(
    text: TextStream, layout: Layout, findings: Findings, goes_on: bool
) -> list[tuple[str, Json | Unreadable]]:
    warn_if_doubtful(text.found, text.name)
    findings.note_file(text.name, text.encoding, text.has_bom, text.has_crlf)
    return list(records(text, layout, goes_on=goes_on))


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet does; False where it cannot be opened, which whoever reads it will say."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"PAR1"
    except OSError:
        return False


def parquet_records(path: Path) -> Iterator[tuple[str, Json | Unreadable]]:
    """The rows of a Parquet file as objects. ``MissingExtra`` without pyarrow. Memory: a thousand rows."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data") from None
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(1000):
            for row in batch.to_pylist():
                yield f"row {number}", row
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(str(path), f"a damaged Parquet file ({error})", "a whole one") from error
