"""From a file's bytes to JSON records: plain, ``.gz`` or ``.xz``; UTF-8 or another encoding, found and named.

``load`` returns one JSON document or the lines of a JSON-lines file. A byte order mark and ``\\r\\n`` are accepted and counted.
"""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jieyue.errors import InputError, message

__all__ = ["Document", "decode", "load", "read_bytes"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_FREQUENT = {  # the commonest characters of running text, which tell the two Chinese code pages apart
    "gb18030": frozenset(
        "的一是在了不和有大中人上为个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去"
    ),
    "big5": frozenset(
        "的一是在了不和有大中人上為個國我以要他時來用們生到作地於出就分對成會可主發年動同工也能下過子說產種面而方後多定行學法所民得經十三之進著等部度家電力里如水化高自二理起小物現實加量都兩體制機當使點從業本去"
    ),
}


@dataclass(frozen=True, slots=True)
class Document:
    """``value`` is the JSON document; or a list of (line number, text of the line) when ``is_lines``."""

    value: Any
    is_lines: bool
    encoding: str
    has_bom: bool
    has_crlf: bool


def read_bytes(path: Path) -> bytes:
    """The file's content, decompressed by its own first bytes. ``InputError`` when absent or damaged."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            return gzip.decompress(data)
        return lzma.decompress(data) if data[:6] == b"\xfd7zXZ\x00" else data
    except FileNotFoundError:
        raise InputError(message(f"{path}", "no such file", "a JSON or JSON-lines file, plain, .gz or .xz")) from None
    except OSError as error:
        raise InputError(message(f"{path}", f"{error.strerror or error}", "a readable file")) from error
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(message(f"{path}", f"a damaged archive ({error})", "a whole .gz or .xz file")) from error


def decode(data: bytes, name: str) -> tuple[str, str, bool]:
    """(text, encoding, had a byte order mark). Tried: the mark, UTF-8, then the likeliest of GB18030, Big5 and Windows-1252.

    Likeliest = largest share of very common characters among those above ASCII; Windows-1252 wins where neither Chinese
    code page gives one such character in ten. ``InputError`` when nothing decodes.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(encoding), encoding, True
            except UnicodeDecodeError as error:
                raise InputError(
                    message(name, f"a {encoding} mark but {error.reason} at byte {error.start}", f"{encoding} text")
                ) from error
    try:
        return data.decode("utf-8"), "utf-8", False
    except UnicodeDecodeError as error:
        broken_at = error.start
    best: tuple[float, str, str] | None = None
    for encoding in ("gb18030", "big5", "cp1252"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        high = [char for char in text if char > "\x7f"]
        common = _FREQUENT.get(encoding)
        share = sum(char in common for char in high) / len(high) if common and high else 0.1
        if best is None or share > best[0]:
            best = (share, encoding, text)
    if best is None:
        raise InputError(message(name, f"bytes that are not UTF-8 at byte {broken_at}", "UTF-8 text"))
    return best[2], best[1], False


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def load(path: Path) -> Document:
    """The file as one JSON document, or as JSON lines where it is no document but some of its first lines are objects."""
    text, encoding, has_bom = decode(read_bytes(path), str(path))
    has_crlf = "\r\n" in text
    if not text.strip():
        raise InputError(message(str(path), "an empty file", "JSON or JSON lines"))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        # split only at line feeds: U+2028 and its kin may stand inside a JSON string
        lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2 or not any(_is_object(line) for _, line in lines[:10]):
            raise InputError(
                message(str(path), f"{error.msg} at line {error.lineno}, column {error.colno}", "JSON or JSON lines")
            ) from error
        return Document(lines, True, encoding, has_bom, has_crlf)
    if isinstance(value, dict) and not ({"data", "paragraphs"} & set(value)):
        value = [value]  # a JSON-lines file of one line
    return Document(value, False, encoding, has_bom, has_crlf)
