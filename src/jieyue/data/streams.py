"""JSON records of files that may be larger than memory, one at a time.

``records(path, layout)`` yields (place, value) of JSON lines, of a JSON list, of an object of lists (``{"train": [...],
"valid": [...]}``, ``{"data": [...]}``), of an object of named records, of one object, and of several such documents one after
another. All of the file is read: what is no JSON is an ``Unreadable`` in its line's place, or ``InputError`` that names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from jieyue.errors import InputError

from . import textstream
from .encodings import is_damaged
from .json_shapes import OBJECTS, WRAPPERS, Json, Layout, has_lines, is_part, kind_of_object
from .textstream import SPACE, Misread, TextStream

__all__ = ["Placed", "Unreadable", "part_of", "records"]

_DECODER = json.JSONDecoder()
_LENIENT = json.JSONDecoder(parse_int=float)  # finds the end of a number that is too long to be one
_FEW = 10  # documents up to which a file is several files in one rather than a record a line
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Unreadable:
    """In the place of a record that is no JSON: why."""

    why: str


Placed: TypeAlias = "tuple[str, Json | Unreadable]"


def records(
    text: TextStream, layout: Layout = OBJECTS, part: str | None = None, *, goes_on: bool = False
) -> Iterator[Placed]:
    """(place, record) in order. ``part``: the list to take of an object of several.

    A broken line is an ``Unreadable``, a broken document ``InputError``. With ``goes_on`` such a record is an ``Unreadable``, too,
    where the next one is found: on a line that begins as those of its list do, with the same bracket behind the same white space.
    Memory: one record and one block.
    """
    text.skip()
    if not text.peek(1):
        raise InputError(text.name, "an empty file", "JSON or JSON lines")
    reader = _Reader(text, layout, part, goes_on)
    yield from reader.lines() if has_lines(text) else reader.documents()
    if part is not None and reader.names and part not in reader.names and not set(WRAPPERS) & set(reader.names):
        raise InputError(text.name, f"the parts {', '.join(reader.names)}", f"one named {part!r}")


def part_of(path: str | Path, wanted: Sequence[str], encoding: str | None = None) -> str | None:
    """The first list of an object of lists whose name is wanted; None for a file of another layout, or without it.

    Cost: the file is read up to there.
    """
    with TextStream(path, encoding) as text:
        text.skip()
        if text.peek(1) == "{" and kind_of_object(text, OBJECTS) == "parts":
            for name in _names(text):
                if name.lower() in wanted:
                    return name
                _pass_over(text)
    return None


class _Reader:
    """Goes through one file; ``names`` of the lists that were found in objects of lists."""

    def __init__(self, text: TextStream, layout: Layout, part: str | None, goes_on: bool) -> None:
        self.text, self.layout, self.part, self.goes_on = text, layout, part, goes_on
        self.names: list[str] = []

    def lines(self) -> Iterator[Placed]:
        """Each line's document, or documents."""
        of_lines = (
            _named_lines(self.text.name)
            or sum(bool(line.strip()) for line in self.text.peek(textstream.BLOCK).split("\n")[: _FEW + 2]) > _FEW
        )
        number = self.text.line - 1
        while (line := self.text.take_line()) is not None:
            number += 1
            if not (line := line.strip(SPACE)):
                continue
            for value in _documents_of(line, self.text.encoding):
                yield from self.unwrapped(value, f"line {number}", of_lines)

    def documents(self) -> Iterator[Placed]:
        """Documents of any length, one after another; the elements of a list are read one by one."""
        number, of_lines = 0, _named_lines(self.text.name)
        while True:
            self.text.skip()
            start = self.text.peek(1)
            if not start:
                return
            place = f"document {number + 1}" if number else ""
            number += 1
            if start == "[" and not of_lines:
                yield from self.elements(place)
            elif start == "{" and (kind := kind_of_object(self.text, self.layout)) != "record":
                yield from self.parts(place, kind)
            elif start in "[{" or number == 1:
                place = f"line {self.text.line}"
                try:
                    value = _value(self.text)
                except Misread as broken:
                    value = self._salvaged(broken, number)
                yield from self.unwrapped(value, place, of_lines)
            else:
                found = f"something that is no JSON behind document {number - 1}"
                yield place, self._salvaged(self.text.wrong(found, "the end, or JSON"), number)

    def _salvaged(self, broken: Misread, number: int) -> Unreadable:
        """In place of a broken document, moving on to the next that begins a line; a file that is nothing else is refused."""
        if not self.goes_on:
            raise broken
        while self.text.take_line() is not None and self.text.peek(1) not in ("{", "["):
            pass
        if number == 1 and not self.text.peek(1):
            raise broken
        return Unreadable(broken.why)

    def elements(self, place: str) -> Iterator[Placed]:
        """The records of a list, or the list itself where it is one."""
        found = _elements(self.text, place, self.goes_on)
        first = next(found, None)
        if first is None:
            return
        if not isinstance(first[1], Unreadable) and self.layout.is_list_record([first[1]], False):
            values: list[Json | Unreadable] = [first[1]]
            for _, value in found:
                values.append(value)
            broken = next((value for value in values if isinstance(value, Unreadable)), None)
            yield place or "[0]", broken or [value for value in values if not isinstance(value, Unreadable)]
            return
        yield first
        yield from found

    def parts(self, place: str, kind: str) -> Iterator[Placed]:
        """The lists of an object, of which one is asked for (else all of them); or its named records."""
        lists = 0
        for name in _names(self.text):
            if kind == "map":
                yield name, _value(self.text)
                continue
            self.names.append(name)
            is_list = self.text.peek(1) == "["
            lists += is_list and is_part(name)
            if is_list and self._is_wanted(name):
                if lists > 1 and self.part is None and not self.layout.joins_parts:
                    raise self._several()
                yield from _elements(self.text, f"{place} {name}".strip(), self.goes_on)
                if self.goes_on and not self.text.peek(1):
                    return  # cut off, as the last element says
            else:
                _pass_over(self.text)

    def unwrapped(self, value: Json | Unreadable, place: str, of_lines: bool) -> Iterator[Placed]:
        """The records in a document that was read whole."""
        if isinstance(value, list) and value and not self.layout.is_list_record(value, of_lines):
            for number, one in enumerate(value):
                yield f"{place}[{number}]" if place else f"[{number}]", one
        elif isinstance(value, dict) and not self.layout.is_record(value):
            kept = {name: one for name, one in value.items() if isinstance(one, list) and is_part(name)}
            kept = {name: one for name, one in kept.items() if not one or isinstance(one[0], list | dict)}
            named = [name for name, one in value.items() if isinstance(one, dict) and self.layout.is_record(one)]
            self.names += kept
            if len(kept) > 1 and self.part is None and not self.layout.joins_parts:
                raise self._several()
            for name, one in kept.items():
                if self._is_wanted(name):
                    for number, record in enumerate(one):
                        yield f"{place} {name}[{number}]", record
            if not kept and named:
                for name, one in value.items():
                    yield f"{place} {name}", one
            elif not kept:
                yield place, value
        else:
            yield place, value

    def _is_wanted(self, name: str) -> bool:
        if not is_part(name):
            return False
        return self.part is None or name == self.part or name.lower() in WRAPPERS

    def _several(self) -> InputError:
        return InputError(
            self.text.name, f"several lists, {', '.join(self.names)}", "one", "write each to a file of its own"
        )


def _named_lines(name: str) -> bool:
    parts = Path(name.lower()).suffixes[-2:]
    return ".jsonl" in parts or ".ndjson" in parts


def _documents_of(line: str, encoding: str) -> Iterator[Json | Unreadable]:
    """The documents of one line."""
    if is_damaged(line):
        yield Unreadable(f"bytes that are not {encoding.upper() if encoding == 'utf-8' else encoding}")
        return
    at = 0
    while at < len(line):
        try:
            value, at = _DECODER.raw_decode(line, at)
        except json.JSONDecodeError as error:
            behind = " behind a whole document" if at else ""
            yield Unreadable(f"no JSON{behind} ({error.msg} at column {error.pos + 1})")
            return
        except ValueError:
            yield Unreadable("a number of more digits than a number may have")
            return
        except RecursionError:
            yield Unreadable("lists in lists, too deep to be read")
            return
        yield _checked(value, line)
        while at < len(line) and line[at] in SPACE:
            at += 1


def _checked(value: Json, written: str) -> Json | Unreadable:
    """The value, or ``Unreadable`` where a text in it has half of a surrogate pair, as only ``\\u`` escapes can write it."""
    if "\\ud" not in written and "\\uD" not in written:
        return value
    values = [value]
    while values:
        one = values.pop()
        if isinstance(one, str):
            if found := _HALF.search(one):
                return Unreadable(f"half of a surrogate pair (\\u{ord(found[0]):04x}), which is no character")
        elif isinstance(one, list):
            values += one
        elif isinstance(one, dict):
            values += [*one, *one.values()]
    return value


def _value(text: TextStream) -> Json | Unreadable:
    """One JSON value of any length."""
    text.skip()
    decoder, why = _DECODER, ""
    while True:
        try:
            found, end = decoder.raw_decode(text.buffer, text.at)
        except json.JSONDecodeError as error:
            cut = error.msg.startswith("Unterminated string") or error.pos >= len(text.buffer) - 12
            if cut and text.more():
                continue
            text.at = min(error.pos, len(text.buffer))
            found_here = error.msg if text.at < len(text.buffer) else f"the end of the file ({error.msg})"
            raise text.wrong(found_here, "JSON") from error
        except ValueError:
            decoder, why = _LENIENT, "a number of more digits than a number may have"
            continue
        except RecursionError as error:
            raise text.wrong("lists in lists, too deep to be read", "JSON") from error
        if end == len(text.buffer) and text.more():
            continue  # a number may go on
        written, text.at = text.buffer[text.at : end], end
        if is_damaged(written):
            return Unreadable(
                f"bytes that are not {text.encoding.upper() if text.encoding == 'utf-8' else text.encoding}"
            )
        return Unreadable(why) if why else _checked(found, written)


def _take(text: TextStream, expected: str) -> None:
    text.skip()
    if text.peek(1) != expected:
        raise text.wrong("no JSON" if text.peek(1) else "the end of the file", repr(expected))
    text.at += 1


def _elements(text: TextStream, name: str, goes_on: bool = False) -> Iterator[Placed]:
    """The elements of a list; with ``goes_on`` a broken one is ``Unreadable`` where the next one begins on a line of its own."""
    _take(text, "[")
    text.skip()
    indent, opening = text.indent() if goes_on else None, text.peek(1)
    if indent == "" and text.peek(textstream.BLOCK).partition("\n")[0].rstrip(" ,\r")[-1:] not in ("]", "}"):
        indent = None  # over several lines without any white space: what is inside of an element looks like the next
    number, is_behind = 0, False
    while True:
        text.skip()
        if text.peek(1) == "]":
            text.at += 1
            return
        value: Json | Unreadable
        try:
            if is_behind:
                _take(text, ",")
            value, is_behind = _value(text), True
        except Misread as broken:
            is_found = indent is not None and text.skip_to_element(indent, opening)
            if not is_found and (indent is None or text.peek(1)):
                raise
            value, is_behind = Unreadable(broken.why), False
        yield f"{name}[{number}]", value
        number += 1
        if not (is_behind or text.peek(1)):
            return


def _names(text: TextStream) -> Iterator[str]:
    """The names in an object; after each, what it names must be read before the next."""
    _take(text, "{")
    while True:
        text.skip(also=",")
        if text.peek(1) == "}":
            text.at += 1
            return
        name = str(_value(text))
        _take(text, ":")
        text.skip()
        yield name


def _pass_over(text: TextStream) -> None:
    """Reads a value and forgets it, a list element by element."""
    if text.peek(1) == "[":
        for _ in _elements(text, ""):
            pass
    else:
        _value(text)
