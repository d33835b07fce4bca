"""Sources with their titles, read from the files that are in use: tables (``data.tables``), JSON, JSON lines; plain or packed.

Columns are found by their usual names, in a header or in the records' fields (CSL: ``title``, ``abstract``; LCSTS: ``summary``,
``short_text``, or ``title``, ``content``); or they are named; or, in a table, numbered from 1. ``source`` is the text only where
no other field is, and where it is longer than the title: in news it names the outlet. Of two columns without a header the
title is the shorter one in nearly every row; where that is not so, they have to be numbered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jieyue.errors import InputError
from jieyue.text import folded

from .files import as_paths
from .findings import BadRecord, Findings
from .json_shapes import Json
from .rows import open_rows
from .streams import Unreadable
from .tables import Table, columns_by_name, numbered, typical_length

__all__ = ["Pair", "read_titles", "shared_pairs"]

NAMES = {
    "source": (
        *("abstract", "content", "text", "short_text", "article", "document", "body", "src", "passage"),
        *("正文", "内容", "文章", "摘要", "文本", "source"),
    ),
    "title": ("title", "summary", "headline", "target", "tgt", "标题", "题目"),
}
OUTLET = "source"  # in news: who published it
_NEARLY_ALL = 0.95  # of the rows, in which the title has to be the shorter column
ADVICE = "name them (--source-column, --title-column), or number them from 1"


@dataclass(frozen=True, slots=True)
class Pair:
    """A source and its title."""

    source: str
    title: str


def read_titles(
    paths: str | Path | Sequence[str | Path],
    *,
    source_column: str | None = None,
    title_column: str | None = None,
    skip_bad: bool = False,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> tuple[list[Pair], Findings]:
    """All pairs of the files, in order, and what was found on the way.

    ``delimiter``, ``encoding``: decide where given, else they are found (``data.tables``, ``data.encodings``).
    A record without source or title, with an empty one, or with another number of cells raises ``InputError`` with file, place,
    what is wrong and what was expected; with ``skip_bad`` it is left out, counted and listed.
    """
    files = as_paths(paths)
    findings = Findings()
    for name in ("files", "pairs", "records_skipped"):
        findings.counts[name] = 0
    named = {"source": source_column, "title": title_column}
    pairs: list[Pair] = []
    for path in files:
        found = open_rows(path, NAMES, findings, delimiter=delimiter, encoding=encoding, goes_on=skip_bad)
        rows = _of_table(str(path), found, named) if isinstance(found, Table) else _of_objects(str(path), found, named)
        for place, made in rows:
            if isinstance(made, Pair):
                pairs.append(made)
            else:
                findings.refuse(f"{path}, {place}: {made}", skip_bad)
    if not pairs:
        names, skipped = ", ".join(map(str, files)) or "no file", findings.counts["records_skipped"]
        raise InputError(names, f"no pairs ({skipped} records skipped)", "at least one")
    findings.counts["pairs"] = len(pairs)
    findings.counts["sources_repeated"] = len(pairs) - len({folded(one.source) for one in pairs})
    findings.counts["titles_repeated"] = len(pairs) - len({folded(one.title) for one in pairs})
    findings.counts["titles_in_source"] = sum(folded(one.title) in folded(one.source) for one in pairs)
    return pairs, findings


def shared_pairs(training: Sequence[Pair], held_out: Sequence[Pair]) -> dict[str, int]:
    """How many held-out sources and titles stand in training too, compared after NFKC, case folding and removing spaces."""
    sources = {folded(one.source) for one in training}
    titles = {folded(one.title) for one in training}
    return {
        "sources": sum(folded(one.source) in sources for one in held_out),
        "titles": sum(folded(one.title) in titles for one in held_out),
    }


def _of_objects(
    name: str, found: Sequence[tuple[str, Json | Unreadable]], named: Mapping[str, str | None]
) -> Iterator[tuple[str, Pair | BadRecord]]:
    objects = [value for _, value in found if isinstance(value, Mapping)]
    known = {role: list(names) for role, names in NAMES.items()}
    if named["source"] is None:
        others = set(known["source"]) - {OUTLET}
        if any(others & set(value) for value in objects):
            known["source"].remove(OUTLET)  # a record without the text must not fall back on it
        else:
            _refuse_outlets(name, objects, named["title"] or next((n for n in known["title"] if _has(objects, n)), ""))
    for place, value in found:
        try:
            yield place, _from_object(value, named, known)
        except BadRecord as bad:
            yield place, bad


def _has(objects: Sequence[Mapping[str, Json]], name: str) -> bool:
    return any(name in value for value in objects)


def _refuse_outlets(name: str, objects: Sequence[Mapping[str, Json]], title: str) -> None:
    """``InputError`` where the only text is a field ``source`` that is no longer than the title: it names the outlet."""
    both = [(value.get(OUTLET), value.get(title)) for value in objects]
    sources = [source for source, _ in both if isinstance(source, str)]
    titles = [text for _, text in both if isinstance(text, str)]
    if sources and titles and typical_length(sources) <= typical_length(titles):
        found = f"{OUTLET!r} no longer than {title!r}, so the name of an outlet rather than the text"
        raise InputError(name, found, "a field with the text", ADVICE)


def _from_object(value: Json | Unreadable, named: Mapping[str, str | None], known: Mapping[str, Sequence[str]]) -> Pair:
    if isinstance(value, Unreadable):
        raise BadRecord(value.why, "a JSON object with a source and a title")
    if not isinstance(value, Mapping):
        raise BadRecord(type(value).__name__, "an object with a source and a title")
    fields: dict[str, Json] = {}
    for role, names in known.items():
        name = named[role] or next((one for one in names if one in value), None)
        if name is None or name not in value:
            raise BadRecord(f"the fields {sorted(map(str, value))[:8]}", f"{name or role!r} among them; {ADVICE}")
        fields[role] = value[name]
    return _made(fields["source"], fields["title"])


def _of_table(name: str, table: Table, named: Mapping[str, str | None]) -> Iterator[tuple[str, Pair | BadRecord]]:
    places = _places(name, table, named)
    for place, cells in table.whole():
        try:
            yield (
                place,
                cells if isinstance(cells, BadRecord) else _made(cells[places["source"]], cells[places["title"]]),
            )
        except BadRecord as bad:
            yield place, bad


def _places(name: str, table: Table, named: Mapping[str, str | None]) -> dict[str, int]:
    """Role -> column."""
    places = numbered(named, table.width, name)
    if places is not None:
        if len(places) < 2:
            raise InputError(f"{name}: columns", "one number", "the source's and the title's", ADVICE)
        return places
    if table.header is not None:
        places = columns_by_name(name, table.header, NAMES, named, ADVICE)
        if len(places) == 2:
            if table.header[places["source"]].casefold() == OUTLET and named["source"] is None:
                rows = [cells for _, cells in table.rows if len(cells) == table.width]
                objects = [{role: cells[at] for role, at in places.items()} for cells in rows]
                _refuse_outlets(name, objects, "title")
            return places
        if len(places) == 1 and table.width == 2 and any(named.values()):
            (role, at), other = next(iter(places.items())), {"source": "title", "title": "source"}
            return {role: at, other[role]: 1 - at}
    elif any(named.values()):
        wanted = ", ".join(filter(None, named.values()))
        raise InputError(f"{name}: columns {wanted}", "a table without header", "numbers from 1")
    if table.width == 2:
        return _by_length(name, table)
    shown = ", ".join(table.header or table.rows[0][1])[:80]
    raise InputError(name, f"the columns {shown}", "a source and a title", ADVICE)


def _by_length(name: str, table: Table) -> dict[str, int]:
    """Of two columns the title is the one that is shorter in nearly every row."""
    rows = [cells for _, cells in table.rows if len(cells) == table.width and all(cell.strip() for cell in cells)]
    for title in (0, 1):
        if sum(len(cells[title]) < len(cells[1 - title]) for cells in rows) >= _NEARLY_ALL * len(rows) > 0:
            return {"title": title, "source": 1 - title}
    raise InputError(
        name,
        "two columns of which neither is the shorter one throughout",
        "a header that names them",
        f"{ADVICE} (--title-column 1 --source-column 2)",
    )


def _made(source: Json, title: Json) -> Pair:
    for role, value in (("source", source), ("title", title)):
        if not isinstance(value, str):
            raise BadRecord(f"a {role} that is {type(value).__name__}", "text")
        if not value.strip():
            raise BadRecord(f"an empty {role}", "text")
    return Pair(str(source).strip(), str(title).strip())
