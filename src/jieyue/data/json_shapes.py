"""What a JSON file holds, told from its beginning: lines, a list, an object of lists, an object of named records, one record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from . import textstream
from .textstream import SPACE, TextStream

__all__ = ["OBJECTS", "WRAPPERS", "Json", "Layout", "has_lines", "is_json", "is_part", "kind_of_object"]

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"
"""What ``json.loads`` gives: objects are dictionaries, lists are lists."""


PARTS = ("train", "valid", "validation", "dev", "test")
WRAPPERS = ("data", "dialogues", "examples")
_DECODER = json.JSONDecoder()
_BEGUN = re.compile(r'\s*(\{\s*"|\[\s*\{\s*"|\[\s*\[\s*["\[{]|\[\s*")')
_BETWEEN = re.compile(r"[\s,]*")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a task's records look. ``is_list_record(values, of_lines)``: whether a list with these (first) values is one record;
    ``of_lines``: it stands alone in its line, as all do. ``is_record(object)``: whether an object is one. ``joins_parts``:
    whether an object of several lists by split is read as a whole where no part is asked for.
    """

    is_list_record: Callable[[Sequence[Json], bool], bool] = lambda values, of_lines: not isinstance(values[0], Mapping)
    is_record: Callable[[Mapping[str, Json]], bool] = lambda value: False
    joins_parts: bool = False


OBJECTS = Layout()
"""Every record is an object; a list holds records."""


def is_part(name: str) -> bool:
    return name.lower() in (*PARTS, *WRAPPERS)


def is_json(start: str, ended: bool = True) -> bool:
    """Whether a text that begins so is JSON, and not a table or prose whose first letter happens to be a bracket.

    >>> is_json('["a", "b"]'), is_json("[quote] fine words"), is_json('{"a": '), is_json("[1] a note, and more")
    (True, False, True, False)
    """
    start = start.lstrip(SPACE + "\ufeff")
    if start[:1] not in ("[", "{"):
        return False
    try:
        value, end = _DECODER.raw_decode(start)
    except json.JSONDecodeError as error:
        if not ended and error.pos >= len(start) - 12:
            return True
        lines = [line for line in start.split("\n")[:10] if line.strip()]
        return ("\t" not in lines[0] and _BEGUN.match(start) is not None) or any(map(_is_container, lines[1:]))
    except (ValueError, RecursionError):
        return True
    rest = start[end:].lstrip(" \t\r")[:1]
    is_nested = isinstance(value, dict) or any(isinstance(one, str | list | dict) for one in value) or not value
    return (is_nested and (rest in ("", "\n", "[", "{") or not _is_flat(value))) or not start[end:].strip()


def _is_flat(value: Json) -> bool:
    return isinstance(value, list) and not any(isinstance(one, list | dict) for one in value)


def _is_container(line: str) -> bool:
    try:
        return isinstance(json.loads(line), list | dict)
    except (ValueError, RecursionError):
        return False


def has_lines(text: TextStream) -> bool:
    """Whether every line is a document of its own; not where the first one goes on over several lines, or is all there is."""
    start = text.peek(textstream.BLOCK)
    first, _, rest = start.partition("\n")
    if not rest.strip(SPACE):
        return False
    if _is_container(first):
        return True
    following = [line for line in rest.split("\n")[:20] if line.strip()][:10]
    most_are_documents = 2 * sum(map(_is_container, following)) >= len(following)
    try:
        _, end = _DECODER.raw_decode(start)
        return end <= len(first) and most_are_documents
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(start) - 12 and not text.ended
        return not is_cut and most_are_documents
    except (ValueError, RecursionError):  # a number too long, or lists too deep, for Python
        return first.rstrip()[-1:] in ("]", "}")


def kind_of_object(text: TextStream, layout: Layout) -> str:
    """What the object at this place is, as far as the first block tells: "parts", a "map" of records, or a "record"."""
    buffer, seen = text.peek(textstream.BLOCK), dict[str, Json]()
    at, is_parts, is_map = 1, False, False
    while True:
        at = _after_space(buffer, at)
        try:
            name, at = _DECODER.raw_decode(buffer, at)
            at = _after_space(buffer, at)
            if buffer[at : at + 1] != ":":
                break
            at = _after_space(buffer, at + 1)
            if buffer[at : at + 1] == "[" and is_part(str(name)):
                is_parts = is_parts or buffer[_after_space(buffer, at + 1) :][:1] in ("[", "{", "]")
            value, at = _DECODER.raw_decode(buffer, at)
        except (ValueError, RecursionError):
            break
        seen[str(name)] = value
        is_map = is_map or (isinstance(value, dict) and layout.is_record(value))
    if layout.is_record(seen):
        return "record"
    return "parts" if is_parts else "map" if is_map else "record"


def _after_space(buffer: str, at: int) -> int:
    found = _BETWEEN.match(buffer, at)
    return found.end() if found else at
