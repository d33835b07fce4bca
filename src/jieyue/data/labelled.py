"""Texts with labels, read from the files that are in use: tables (``data.tables``), JSON and JSON lines, plain or packed.

A table has a header (``label<TAB>text_a``) or two columns without one, of which the one with far fewer different values is the
label. A JSON record is an object. Columns are found by their usual names (``NAMES``), or named, or, in tables, numbered from 1.

A label is text: a number becomes its digits (1.0 is 1), a list of one (doccano's) that one; an empty one, null or a missing
field means that it is not known. Multi-label, a list is all of a text's labels, and an empty list says that it has none;
regression, the label is a number (``data.label_kinds``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jieyue.errors import InputError
from jieyue.text import folded

from .files import as_paths
from .findings import BadRecord, Findings
from .json_shapes import Json
from .label_kinds import check_kind, kind_of, number_of, parted
from .rows import open_rows
from .streams import Unreadable
from .tables import Table, columns_by_name, numbered

__all__ = ["Columns", "Labelled", "note_repeated", "read_labelled", "shared_texts"]

NAMES = {
    "text": (
        *("text", "sentence", "sentence1", "text_a", "content", "review", "question", "tweet", "comment", "utterance"),
        *("query", "message", "document", "body", "title", "headline"),
        *("文本", "内容", "评论", "评价", "正文", "句子", "微博", "标题"),
    ),
    "pair": ("sentence2", "text_b", "pair"),
    "label": (
        *("label", "labels", "category", "topic", "class", "sentiment", "emotion", "intent", "polarity", "target"),
        *("标签", "类别", "分类", "情感", "极性", "情绪"),
    ),
}
ADVICE = "name them (--text-column, --label-column), or number them from 1"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, perhaps a second one (``pair``), and its label; None = not known.

    ``labels``: all of them where a text has any number; ``value``: the label where it is a number. ``is_known``: whether the
    file tells any of these.
    """

    text: str
    label: str | None = None
    pair: str = ""
    labels: tuple[str, ...] | None = None
    value: float | None = None

    @property
    def is_known(self) -> bool:
        return self.label is not None or self.labels is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Every label that it has."""
        if self.labels is not None:
            return self.labels
        return () if self.label is None else (self.label,)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns hold what: names of the header or of the record's fields, or numbers from 1; None = found by name."""

    text: str | None = None
    label: str | None = None
    pair: str | None = None

    def named(self) -> dict[str, str | None]:
        """Role -> what was given for it."""
        return {"text": self.text, "pair": self.pair, "label": self.label}


def read_labelled(
    paths: str | Path | Sequence[str | Path],
    *,
    columns: Columns | None = None,
    skip_bad: bool = False,
    delimiter: str | None = None,
    encoding: str | None = None,
    problem: str = "single-label",
    separator: str | None = None,
) -> tuple[list[Labelled], Findings]:
    """All examples of the files, in order, and what was found on the way.

    ``problem``: of ``label_kinds.KINDS``, "auto" = told from all labels; ``separator``: parts the labels of a multi-label
    column. ``delimiter``, ``encoding``: decide where given, else they are found (``data.tables``, ``data.encodings``).
    A broken record (another number of cells, no text, a field of another type) raises ``InputError`` with file, place, what
    is wrong and what was expected; with ``skip_bad`` it is left out, counted and listed.
    """
    check_kind(problem)
    files = as_paths(paths)
    findings, columns = Findings(), columns or Columns()
    lists = problem in ("auto", "multi-label")
    for name in ("files", "examples", "labels", "labels_unknown", "records_skipped"):
        findings.counts[name] = 0
    read: list[tuple[str, Labelled]] = []
    for path in files:
        found = open_rows(path, NAMES, findings, delimiter=delimiter, encoding=encoding, goes_on=skip_bad)
        rows = (
            _of_table(str(path), found, columns)
            if isinstance(found, Table)
            else _of_objects(str(path), found, columns, lists)
        )
        for place, made in rows:
            if isinstance(made, Labelled):
                read.append((f"{path}, {place}", made))
            else:
                findings.refuse(f"{path}, {place}: {made}", skip_bad)
    examples = _of_kind(read, problem, separator, findings, skip_bad)
    if not examples:
        names = ", ".join(map(str, files)) or "no file"
        skipped = findings.counts["records_skipped"]
        raise InputError(names, f"no examples ({skipped} records skipped)", "at least one")
    findings.counts["examples"] = len(examples)
    findings.counts["labels"] = len({name for one in examples for name in one.names})
    findings.counts["labels_unknown"] = sum(not one.is_known for one in examples)
    note_repeated(examples, findings)
    return examples, findings


def note_repeated(examples: Sequence[Labelled], findings: Findings) -> None:
    """Counts texts that stand more than once, and those of them whose label is another one than before."""
    seen: dict[tuple[str, str], Labelled] = {}
    for one in examples:
        first = seen.setdefault((one.text, one.pair), one)
        if first is not one:
            findings.counts["texts_repeated"] += 1
            both = one.is_known and first.is_known
            findings.counts["texts_contradicted"] += both and set(one.names) != set(first.names)


def shared_texts(training: Sequence[Labelled], held_out: Sequence[Labelled]) -> dict[str, int]:
    """How many held-out texts stand in training too, compared after NFKC, case folding and removing spaces."""

    def key(one: Labelled) -> tuple[str, str]:
        return folded(one.text), folded(one.pair)

    known = {key(one) for one in training}
    return {"texts": sum(key(one) in known for one in held_out)}


def _of_kind(
    read: Sequence[tuple[str, Labelled]], problem: str, separator: str | None, findings: Findings, skip_bad: bool
) -> list[Labelled]:
    """The examples with ``labels`` or ``value`` as their kind has them."""
    if separator is not None:
        read = [(place, _listed(one, separator)) for place, one in read]
        problem = "multi-label"
    if problem == "auto":
        problem = kind_of([(place, one.label, one.labels) for place, one in read])
    found: list[Labelled] = []
    for place, one in read:
        try:
            found.append(_as(one, problem))
        except BadRecord as bad:
            findings.refuse(f"{place}: {bad}", skip_bad)
    return found


def _listed(one: Labelled, separator: str) -> Labelled:
    labels = one.labels if one.labels is not None else parted(one.label, separator)
    return replace(one, labels=labels)


def _as(one: Labelled, problem: str) -> Labelled:
    if problem == "multi-label":
        labels = one.names if one.is_known else None
        return replace(one, label=None, labels=labels)
    own = replace(one, labels=None)
    return own if problem == "single-label" or own.label is None else replace(own, value=number_of(own.label))


def _of_objects(
    name: str, found: Sequence[tuple[str, Json | Unreadable]], columns: Columns, lists: bool
) -> Iterator[tuple[str, Labelled | BadRecord]]:
    named, fields = [one for one in (columns.label, columns.pair) if one is not None], dict[str, None]()
    for place, value in found:
        if named and isinstance(value, Mapping):
            fields |= dict.fromkeys(value)
        try:
            yield place, _from_object(value, columns, lists)
        except BadRecord as bad:
            yield place, bad
    if fields and (missing := [one for one in named if one not in fields]):  # each may be left out, but not by all
        raise InputError(f"{name}: column {missing[0]!r}", ", ".join(fields)[:80], "a field of some record", ADVICE)


def _from_object(value: Json | Unreadable, columns: Columns, lists: bool) -> Labelled:
    if isinstance(value, Unreadable):
        raise BadRecord(value.why, "a JSON object")
    if not isinstance(value, Mapping):
        raise BadRecord(type(value).__name__, "an object with a text and a label")
    fields: dict[str, str | None] = {}
    for role, named in columns.named().items():
        fields[role] = named or next((name for name in NAMES[role] if name in value), None)
    text_field, pair_field, label_field = fields["text"], fields["pair"], fields["label"]
    if text_field is None or text_field not in value:
        raise BadRecord(f"the fields {sorted(map(str, value))[:8]}", repr(text_field or "text"))
    text, pair = value[text_field], value.get(pair_field, "") if pair_field else ""
    if not isinstance(text, str) or not isinstance(pair, str):
        raise BadRecord(f"{text_field!r} = {text!r:.40}", "text")
    given = value.get(label_field) if label_field else None
    if lists and label_field and isinstance(given, list):
        names = [_label(one, label_field) for one in given]
        labels = tuple(dict.fromkeys(name.strip() for name in names if name and name.strip()))
        return replace(_made(text, pair, labels[0] if len(labels) == 1 else None), labels=labels)
    return _made(text, pair, _label(given, label_field) if label_field else None)


def _label(value: Json, name: str) -> str | None:
    """A label as text: one value, or a list of one."""
    if isinstance(value, list):
        if len(value) > 1:
            raise BadRecord(f"{name!r} = {value!r:.40}", "one label")
        value = value[0] if value else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str | int | float):
        raise BadRecord(f"{name!r} = {value!r:.40}", "one label")
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _of_table(name: str, table: Table, columns: Columns) -> Iterator[tuple[str, Labelled | BadRecord]]:
    places = _places(name, table, columns)
    has_floats = _all_whole_floats(table, places.get("label"))
    for place, cells in table.whole():
        if isinstance(cells, BadRecord):
            yield place, cells
            continue
        label = cells[places["label"]].strip() if "label" in places else None
        try:
            pair = cells[places["pair"]] if "pair" in places else ""
            yield place, _made(cells[places["text"]], pair, label.removesuffix(".0") if label and has_floats else label)
        except BadRecord as bad:
            yield place, bad


def _all_whole_floats(table: Table, at: int | None) -> bool:
    """Whether the labels are numbers that a table program wrote with ``.0``, as it does where some are missing."""
    if at is None:
        return False
    labels = {cells[at].strip() for _, cells in table.rows if len(cells) == table.width} - {""}
    return bool(labels) and all(label.endswith(".0") and label[:-2].lstrip("-").isdigit() for label in labels)


def _places(name: str, table: Table, columns: Columns) -> dict[str, int]:
    """Role -> column."""
    places = numbered(columns.named(), table.width, name)
    if places is not None:
        if "text" not in places:
            raise InputError(f"{name}: columns", "no text column", "the text's and the label's", ADVICE)
        return places
    if table.header is not None:
        places = columns_by_name(name, table.header, NAMES, columns.named(), ADVICE)
        if "text" in places and ("label" in places or columns.text or table.width == 1):
            return places
    elif any(columns.named().values()):
        wanted = ", ".join(filter(None, columns.named().values()))
        raise InputError(f"{name}: columns {wanted}", "a table without header", "numbers from 1")
    if table.width != 2:
        shown = ", ".join(table.header or table.rows[0][1])[:60]
        found = f"{table.width} columns, {shown}"
        raise InputError(name, found, "a header with 'text' and 'label', or two columns", ADVICE)
    return _by_variety(name, table)


def _by_variety(name: str, table: Table) -> dict[str, int]:
    """Of two columns the label's is the one with fewer different values; refused where it has nearly as many as rows."""
    rows = [cells for _, cells in table.rows if len(cells) == table.width]
    variety = [len({row[at] for row in rows}) for at in (0, 1)]
    label = int(variety[1] < variety[0])
    if variety[0] == variety[1] or (len(rows) >= 10 and 2 * variety[label] > len(rows)):
        found = f"two columns of {variety[0]} and {variety[1]} different values in {len(rows)} rows"
        advice = "name what parts the columns (--delimiter), or number them: --text-column 1 --label-column 2"
        raise InputError(name, found, "a label column with far fewer", advice)
    return {"text": 1 - label, "label": label}


def _made(text: str, pair: str, label: str | None) -> Labelled:
    if not text.strip():
        raise BadRecord("an empty text", "one")
    label = (label or "").strip()
    return Labelled(text.strip(), label or None, pair.strip())
