"""A file as text that is read block by block and forgotten behind the reader; it knows the place it stands at."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

from jieyue.errors import InputError, message

from .encodings import find_encoding, undamaged
from .files import ByteSource, warn_if_doubtful

__all__ = ["BLOCK", "SPACE", "Misread", "Progress", "TextStream"]

BLOCK = 2**20
SPACE = " \t\r\n"
_NEAR = 80  # characters that tell what a line begins with
Progress = Callable[[str, int, int], None]
"""Called once a block with the file's name, the bytes of it that are read, and all of them."""


class Misread(InputError):
    """What stands at a place is not what it should be; ``why`` is the same without the file's name and what was expected."""

    def __init__(self, told: str, why: str) -> None:
        super().__init__(told)
        self.why = why


class TextStream:
    """``buffer[at:]`` is what was read and not yet consumed. ``encoding`` decides where given, else it is found.

    Bytes that do not decode stand in the text as lone surrogates. ``InputError`` as ``ByteSource`` and ``find_encoding``.
    Memory: one block, or as much as ``peek`` is asked for.
    """

    def __init__(
        self,
        path: str | Path,
        encoding: str | None = None,
        progress: Progress | None = None,
        *,
        warns: bool = True,
    ) -> None:
        self.name = str(path)
        self._source = ByteSource(path)
        self._progress = progress
        self.buffer, self.at, self.ended = "", 0, False
        self._lines, self._column = 0, 0  # of what is no longer in the buffer
        try:
            raw = self._source.read(BLOCK)
            found = find_encoding(raw, self.name, wanted=encoding, whole=len(raw) < BLOCK)
            if warns:
                warn_if_doubtful(found, self.name)
            self.found, self.encoding, self.has_bom = found, found.name, found.mark > 0
            self._decoder = codecs.getincrementaldecoder(found.name)(undamaged(found.name))
            self.buffer = self._decoded(raw[found.mark :])
        except BaseException:
            self.__exit__()
            raise
        self.has_crlf = "\r\n" in self.buffer

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.__exit__()

    def _decoded(self, raw: bytes, final: bool = False) -> str:
        try:
            return self._decoder.decode(raw, final=final)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.name}, after line {self.line}",
                f"{error.reason}",
                f"{self.encoding} text",
                "name its encoding: --encoding",
            ) from error

    @property
    def line(self) -> int:
        """The number of the line that ``at`` stands in, from 1."""
        return self._lines + self.buffer.count("\n", 0, self.at) + 1

    @property
    def column(self) -> int:
        """The column that ``at`` stands in, from 1."""
        start = self.buffer.rfind("\n", 0, self.at)
        return self.at - start if start >= 0 else self._column + self.at + 1

    def more(self) -> bool:
        """Reads another block; False at the end."""
        if self.ended:
            return False
        raw = self._source.read(BLOCK)
        if self._progress is not None:
            self._progress(self.name, self._source.consumed, self._source.num_bytes)
        self.ended = not raw
        last = self.buffer.rfind("\n", 0, self.at)
        self._column = self.at - last - 1 if last >= 0 else self._column + self.at
        self._lines += self.buffer.count("\n", 0, self.at)
        kept = self.buffer[self.at :]
        self.at, self.buffer = 0, kept
        self.buffer = kept + self._decoded(raw, final=self.ended)
        return not self.ended

    def peek(self, count: int) -> str:
        """The next ``count`` characters, fewer at the end; nothing is consumed."""
        while len(self.buffer) - self.at < count and self.more():
            pass
        return self.buffer[self.at : self.at + count]

    def skip(self, also: str = "") -> None:
        """Moves on over white space (and ``also``)."""
        passed = SPACE + also
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in passed:
                self.at += 1
            if self.at < len(self.buffer) or not self.more():
                return

    def take_line(self) -> str | None:
        """The next line without its end, consumed; None when there is none. Only line feeds end lines: U+2028 may stand in text."""
        while True:
            end = self.buffer.find("\n", self.at)
            if end >= 0:
                line, self.at = self.buffer[self.at : end], end + 1
                return line
            if not self.more():
                break
        if self.at >= len(self.buffer):
            return None
        line, self.at = self.buffer[self.at :], len(self.buffer)
        return line

    def indent(self) -> str | None:
        """The white space before this place on its line; None where something else stands there."""
        start = self.buffer.rfind("\n", 0, self.at) + 1
        before = self.buffer[start : self.at]
        return before if not before.strip() and len(before) == self.column - 1 else None

    def skip_to_element(self, indent: str, opening: str) -> bool:
        """Moves on to the next line of a list in which an element begins, with ``opening`` behind ``indent``, or the list ends.

        False where there is none: at the end of the text, or before a line that is about something else.
        """
        while self.take_line() is not None:
            text = self.peek(len(indent) + _NEAR).split("\n")[0]
            inner = text.lstrip(" \t")
            lead = text[: len(text) - len(inner)]
            is_deeper = len(lead) > len(indent)
            if (lead == indent and inner.startswith(opening)) or (
                inner.startswith("]") and len(lead) < max(len(indent), 1)
            ):
                self.at += len(lead)
                return True
            if inner.startswith('"') and not is_deeper:
                return False
        return False

    def wrong(self, found: str, expected: str) -> Misread:
        """What is wrong at this place, with what stands there."""
        if found == "Unterminated string starting at":
            found = "a string that does not end"
        near = self.buffer[self.at : self.at + 30].split("\n")[0]
        shown = f"{found} before {near!r}" if near else found
        place = f"line {self.line}, column {self.column}"
        return Misread(message(f"{self.name}, {place}", shown, expected), f"{shown} at {place}")
