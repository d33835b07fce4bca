"""JSON records of files that may be larger than memory: one at a time, from plain, ``.gz`` or ``.xz`` files.

``records(path)`` yields (place, value or what is wrong with it) of a JSON-lines file, of a JSON list, or of an object of
lists (``{"train": [...], "valid": [...]}``, of which ``part`` picks one). At no time more than one record and one block of
text are held. Encodings are told apart by the first mebibyte, as ``files.decode`` does it.
"""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from jieyue.errors import InputError, message

from .files import decode

__all__ = ["Unreadable", "part_of", "records"]

BLOCK = 2**20
_SPACE = " \t\r\n"
_PART = r'\{\s*"([^"\\]*)"\s*:\s*\[\s*[\[{]'
_DECODER = json.JSONDecoder()
_BYTES = re.compile("[\ud800-\udfff]")  # what "surrogateescape" makes of bytes that are not UTF-8


class Unreadable:
    """In the place of a record that is no JSON: why."""

    def __init__(self, why: str) -> None:
        self.why = why


def records(path: Path, part: str | None = None) -> Iterator[tuple[str, Any]]:
    """(place, record) in order; a broken line of a JSON-lines file is an ``Unreadable``, a broken document ``InputError``."""
    text = _Text(path)
    with text.stream:
        text.skip()
        if not text.peek(1):
            raise InputError(message(str(path), "an empty file", "JSON or JSON lines"))
        start = text.peek(4096)
        second = start[1:].lstrip(_SPACE)[:1]
        if start[0] == "[" and (second in "[{]" or second == ""):
            yield from _elements(text, "")
        elif _has_parts(text):
            yield from _parts(text, part)
        else:
            yield from _lines(text)


def part_of(path: Path, wanted: Sequence[str]) -> str | None:
    """The first list of an object of lists whose name is wanted; None for a file of another layout, or without it.

    Cost: the file is read up to there.
    """
    text = _Text(path)
    with text.stream:
        text.skip()
        if _has_parts(text):
            for name in _names(text):
                if name.lower() in wanted:
                    return name
                _pass_over(text)
    return None


def _has_parts(text: _Text) -> bool:
    found = re.match(_PART, text.peek(4096))
    return found is not None and _is_part(found[1])


def _is_part(name: str) -> bool:
    return name.lower() in ("train", "valid", "validation", "dev", "test", "data", "dialogues")


class _Text:
    """A file as text, read block by block; what was consumed is forgotten."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream = _opened(path)
        raw = self._read()
        encoding = _encoding(raw, str(path))
        self.decoder = codecs.getincrementaldecoder(encoding)(
            "surrogateescape" if encoding == "utf-8-sig" else "strict"
        )
        self.encoding = encoding.removesuffix("-sig")
        self.buffer, self.at, self.ended = self.decoder.decode(raw), 0, False

    def _read(self) -> bytes:
        try:
            return self.stream.read(BLOCK)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise InputError(
                message(str(self.path), f"a damaged archive ({error})", "a whole file, plain, .gz or .xz")
            ) from error

    def more(self) -> bool:
        """Reads another block; False at the end."""
        if self.ended:
            return False
        raw = self._read()
        self.ended = not raw
        self.buffer = self.buffer[self.at :] + self.decoder.decode(raw, final=self.ended)
        self.at = 0
        return not self.ended

    def peek(self, count: int) -> str:
        while len(self.buffer) - self.at < count and self.more():
            pass
        return self.buffer[self.at : self.at + count]

    def skip(self, also: str = "") -> None:
        """Moves on over white space (and ``also``)."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in _SPACE + also:
                self.at += 1
            if self.at < len(self.buffer) or not self.more():
                return

    def take(self, expected: str) -> None:
        self.skip()
        if self.peek(1) != expected:
            raise self.wrong(f"{self.peek(1)!r}" if self.peek(1) else "the end of the file", repr(expected))
        self.at += 1

    def value(self) -> Any:
        """One JSON value."""
        self.skip()
        while True:
            try:
                found, end = _DECODER.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.buffer) - 12
                if not (cut and self.more()):
                    self.at = error.pos
                    raise self.wrong(error.msg, "JSON") from error
                continue
            if end == len(self.buffer) and self.more():
                continue  # a number may go on
            self.at = end
            return _whole(found)

    def wrong(self, found: str, expected: str) -> InputError:
        near = self.buffer[max(0, self.at - 20) : self.at + 20]
        return InputError(message(str(self.path), f"{found} near {near!r}", expected))


def _encoding(start: bytes, name: str) -> str:
    """UTF-8, or what a byte order mark or the likeliest Chinese code page says, by the first block."""
    for marks, encoding in (
        ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
        ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
    ):
        if start.startswith(marks):
            return encoding
    try:
        codecs.getincrementaldecoder("utf-8-sig")("strict").decode(start)
        return "utf-8-sig"
    except UnicodeDecodeError:
        lines = start[: start.rfind(b"\n") + 1] or start
        found = decode(lines, name)[1] if _mostly_broken(start) else "utf-8-sig"
        return found


def _mostly_broken(start: bytes) -> bool:
    """Whether more of the bytes above ASCII are broken UTF-8 than whole: another encoding, not a damaged line."""
    text = start.decode("utf-8", "replace")
    return text.count("\ufffd") > sum(char > "\x7f" and char != "\ufffd" for char in text)


def _opened(path: Path) -> IO[bytes]:
    try:
        with path.open("rb") as stream:
            start = stream.read(6)
        if start[:2] == b"\x1f\x8b":
            return gzip.open(path)  # type: ignore[return-value]
        return lzma.open(path) if start == b"\xfd7zXZ\x00" else path.open("rb")
    except FileNotFoundError:
        raise InputError(message(f"{path}", "no such file", "a JSON or JSON-lines file, plain, .gz or .xz")) from None
    except OSError as error:
        raise InputError(message(f"{path}", f"{error.strerror or error}", "a readable file")) from error


def _elements(text: _Text, name: str) -> Iterator[tuple[str, Any]]:
    text.take("[")
    number = 0
    while True:
        text.skip()
        if text.peek(1) == "]":
            text.at += 1
            return
        if number:
            text.take(",")
        yield f"{name}[{number}]", text.value()
        number += 1


def _parts(text: _Text, part: str | None) -> Iterator[tuple[str, Any]]:
    """The lists of an object; of several the one that is asked for (without a wish: all of them)."""
    names: list[str] = []
    for name in _names(text):
        names.append(name)
        is_wanted = part is None or name == part or (len(names) == 1 and name in ("data", "dialogues"))
        if is_wanted and text.peek(1) == "[":
            yield from _elements(text, name)
        else:
            _pass_over(text)
    if part is not None and part not in names and not {"data", "dialogues"} & set(names):
        raise InputError(message(str(text.path), f"the parts {', '.join(names)}", f"one named {part!r}"))


def _names(text: _Text) -> Iterator[str]:
    """The names in an object; after each, what it names must be read before the next."""
    text.take("{")
    while True:
        text.skip(also=",")
        if text.peek(1) == "}":
            return
        name = str(text.value())
        text.take(":")
        text.skip()
        yield name


def _pass_over(text: _Text) -> None:
    """Reads a value and forgets it, a list element by element."""
    if text.peek(1) == "[":
        for _ in _elements(text, ""):
            pass
    else:
        text.value()


def _lines(text: _Text) -> Iterator[tuple[str, Any]]:
    number = 0
    while True:
        end = text.buffer.find("\n", text.at)
        if end < 0 and text.more():
            continue
        line = text.buffer[text.at : end if end >= 0 else len(text.buffer)].strip()
        text.at = end + 1 if end >= 0 else len(text.buffer)
        number += 1
        if line:
            try:
                yield f"line {number}", _whole(json.loads(line))
            except json.JSONDecodeError as error:
                yield f"line {number}", Unreadable(f"no JSON ({error.msg} at column {error.colno})")
        if end < 0:
            return


def _whole(value: Any) -> Any:
    """The value, or ``Unreadable`` where a text in it holds bytes that are not UTF-8."""
    texts = [value]
    while texts:
        one = texts.pop()
        if isinstance(one, str):
            if _BYTES.search(one):
                return Unreadable("bytes that are not UTF-8")
        elif isinstance(one, list):
            texts += one
        elif isinstance(one, dict):
            texts += one.values()
    return value
