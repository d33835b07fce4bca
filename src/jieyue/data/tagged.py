"""Texts with entities: CoNLL columns (a word a line, its tag in the last column, empty lines between texts) and JSON spans.

Columns are parted by tabs, or by spaces where there are none; ``-DOCSTART-`` lines are passed over. Names of columns stand in the first
line, or in a line ``# global.columns = …`` (CoNLL-U Plus), and are read where a column is asked for by its name.

A JSON record is ``{"text": …, "entities" | "spans" | "label": [[start, end, type], …]}``, in characters, the end not included; or with
objects of ``start``, ``end`` and ``label`` or ``type``. Words of such texts are runs of letters and digits; a Chinese character or
another mark is a word of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jieyue.errors import InputError

from .files import as_paths, read_text
from .findings import BadRecord, Findings
from .json_shapes import Json, is_json
from .rows import open_rows
from .streams import Unreadable
from .tables import Table
from .tags import Span, bio_of, spans_of

__all__ = ["Tagged", "read_tagged", "words_of"]

SPANS = ("entities", "spans", "label", "labels")
WORDS = ("word", "words", "token", "tokens", "form", "text", "字", "词", "单词")
_TAG = re.compile(r"O|[BIESLUM]-\S+")
_GLOBAL = "# global.columns ="
_CHINESE = r"\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff\U00020000-\U0003ffff"  # and kana: no spaces between words
_WORD = re.compile(rf"[{_CHINESE}]|[^\W_{_CHINESE}]+|[^\w\s]|_")


@dataclass(frozen=True, slots=True)
class Tagged:
    """A text, the places [start, end) of its words, and its entities in words; None = not known."""

    text: str
    places: tuple[tuple[int, int], ...]
    spans: tuple[Span, ...] | None = None

    @property
    def words(self) -> list[str]:
        return [self.text[start:end] for start, end in self.places]


def words_of(text: str) -> Tagged:
    """A text in words.

    >>> words_of("Ann in 北京.").words
    ['Ann', 'in', '北', '京', '.']
    """
    return Tagged(text, tuple(found.span() for found in _WORD.finditer(text)))


def read_tagged(
    paths: str | Path | Sequence[str | Path],
    *,
    column: str | None = None,
    skip_bad: bool = False,
    encoding: str | None = None,
) -> tuple[list[Tagged], Findings]:
    """All texts of the files, in order, and what was found on the way.

    ``column``: the tag's in CoNLL files, a number from 1 or a name; None = the last. Words are in the first column, or in the one of a
    usual name (``WORDS``) where columns have names. Broken records (another number of columns, a tag that is none,
    spans that overlap or lie outside of the text) raise ``InputError`` with their place, or are left out with ``skip_bad``.
    """
    findings, examples = Findings(), list[Tagged]()
    for path in as_paths(paths):
        found = read_text(path, encoding)
        if is_json(found.text[: 2**16], True):
            records = open_rows(path, {}, findings, encoding=encoding, goes_on=skip_bad)
            assert not isinstance(records, Table)
            rows: Iterator[tuple[str, Callable[[], Tagged]]] = (
                (place, partial(_of_json, value, findings.counts)) for place, value in records
            )
        else:
            findings.note_file(path, found.encoding.name, found.has_bom, found.has_crlf)
            columns = _columns(str(path), found.text, column)
            rows = (
                (place, partial(_of_block, block, columns, findings.counts))
                for place, block in _blocks(found.text, columns.header)
            )
        for place, made in rows:
            try:
                examples.append(made())
            except BadRecord as bad:
                findings.refuse(f"{path}, {place}: {bad}", skip_bad)
    if not examples:
        raise InputError(", ".join(map(str, as_paths(paths))) or "no file", "no texts", "at least one")
    findings.counts["examples"] = len(examples)
    findings.counts["entities"] = sum(len(one.spans or ()) for one in examples)
    return examples, findings


@dataclass(frozen=True, slots=True)
class _Columns:
    """Places of a word and its tag in a line; ``header``: the number of the line with names, 0 = none."""

    word: int = 0
    tag: int = -1
    header: int = 0


def _columns(path: str, text: str, asked: str | None) -> _Columns:
    """Where word and tag stand; ``InputError`` for a name that the file's columns do not have."""
    if asked is None or asked.isdecimal():
        return _Columns(tag=-1 if asked is None else int(asked) - 1)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    number, first = next(((at, one) for at, one in lines if one.startswith(_GLOBAL)), lines[0] if lines else (0, ""))
    names = first[len(_GLOBAL) :].split() if first.startswith(_GLOBAL) else _cells(first)
    if asked not in names:
        found = f"a first line of {', '.join(names)[:60] or 'nothing'}"
        raise InputError(f"{path}, tag_column={asked!r}", found, "that name among them", "or a number from 1")
    word = next((at for at, name in enumerate(names) if name.lower() in WORDS and name != asked), 0)
    return _Columns(word, names.index(asked), number)


def _cells(line: str) -> list[str]:
    return [one.strip() for one in (line.split("\t") if "\t" in line else line.split())]


def _blocks(text: str, header: int) -> Iterator[tuple[str, list[str]]]:
    """(place, lines) of each text."""
    block: list[str] = []
    first = 1
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if number == header or (not block and _is_comment(line)):
            continue
        if line.strip() and not line.startswith("-DOCSTART-"):
            first = first if block else number
            block.append(line)
        elif block:
            yield f"line {first}", block
            block = []


def _is_comment(line: str) -> bool:
    """``# text = …`` before a text; ``# O`` is the word # and its tag."""
    return line.startswith("# ") and not _TAG.fullmatch(_cells(line)[-1])


def _of_block(lines: Sequence[str], columns: _Columns, counts: Counter[str]) -> Tagged:
    rows = [_cells(line) for line in lines]
    widths = {len(row) for row in rows}
    if len(widths) != 1 or min(widths) < 2 or max(columns.word, columns.tag) >= min(widths):
        raise BadRecord(f"{sorted(widths)} columns", "a word and its tag a line, as many columns in each")
    words, tags = [row[columns.word] for row in rows], [row[columns.tag] for row in rows]
    wrong = next((tag for tag in tags if not _TAG.fullmatch(tag)), None)
    if wrong is not None or not all(words):
        raise BadRecord(
            f"the tag {wrong!r}" if all(words) else "an empty word",
            "O, or B-, I-, E- or S- and a type; is the first line names, --tag-column NAME",
        )
    spans = spans_of(tags)
    marks = {tag[0] for tag in tags}
    counts["tags_repaired"] += (
        sum(a != b for a, b in zip(tags, bio_of(spans, len(tags)), strict=True)) if marks <= set("OBI") else 0
    )
    places, at = [], 0
    for word in words:
        places.append((at, at + len(word)))
        at += len(word) + 1
    return Tagged(" ".join(words), tuple(places), tuple(spans))


def _of_json(value: Json | Unreadable, counts: Counter[str]) -> Tagged:
    if isinstance(value, Unreadable) or not isinstance(value, Mapping):
        raise BadRecord(value.why if isinstance(value, Unreadable) else type(value).__name__, "an object with a text")
    text, key = value.get("text"), next((name for name in SPANS if name in value), None)
    if not isinstance(text, str) or not text.strip():
        raise BadRecord(f"text = {text!r:.40}", "text")
    own, given = words_of(text), value[key] if key else None
    if given is None:
        return own
    if not isinstance(given, list):
        raise BadRecord(f"{key!r} = {given!r:.40}", "a list of [start, end, type]")
    spans: list[Span] = []
    for start, end, kind in sorted(_span(one, len(text)) for one in given):
        inside = [at for at, (a, b) in enumerate(own.places) if a < end and b > start]
        if not inside or (spans and inside[0] < spans[-1][2]):
            raise BadRecord(f"the entity {[start, end, kind]}", "entities of at least one word that do not overlap")
        exact = (own.places[inside[0]][0], own.places[inside[-1]][1]) == (start, end)
        counts["entities_off_words"] += not exact
        spans.append((kind, inside[0], inside[-1] + 1))
    return Tagged(own.text, own.places, tuple(spans))


def _span(one: Json, length: int) -> tuple[int, int, str]:
    if isinstance(one, Mapping):
        one = [one.get("start"), one.get("end"), one.get("label", one.get("type"))]
    if isinstance(one, list) and len(one) == 3:
        start, end, kind = one
        whole = isinstance(start, int) and isinstance(end, int) and isinstance(kind, str)
        if whole and 0 <= start < end <= length and kind.split() == [kind]:
            return start, end, kind
    raise BadRecord(f"the entity {one!r:.60}", f"[start, end, type] within {length} characters")
