"""A report as rows of strings (``blocks``), and these as plain text and as Markdown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .amounts import Cell, Estimate, format_value
from .picture import Picture
from .values import Example, Examples, Fact, Note, Section, Table

__all__ = ["Block", "blocks", "columns", "escape", "explain", "markdown", "text", "wrapped"]

_WIDE = "\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
_CLOSING = "，。；：、！？）」』】》”’…"
_OPENING = "（「『【《“‘"
_PIECES = re.compile(f" *(?:[{_OPENING}]*[{_WIDE}][{_CLOSING}]*|[^ {_WIDE}]+[{_CLOSING}]*)")


@dataclass(frozen=True)
class Block:
    """A piece of a report, ready to print.

    ``kind`` "heading": ``title``; "facts", "table" and "example": ``rows`` of strings under ``columns`` (no columns for
    facts and examples), ``right[j]`` says that column j holds numbers; "note" and "picture": ``title`` and ``note``.
    """

    kind: Literal["heading", "facts", "table", "note", "picture", "example"]
    title: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    right: tuple[bool, ...] = ()
    note: str = ""


def explain(fact: Fact) -> str:
    """How the fact was found, and how its interval was."""
    interval = fact.value.how if isinstance(fact.value, Estimate) else ""
    return "; ".join(part for part in (fact.how, interval and f"interval: {interval}") if part)


def numeric(table: Table) -> tuple[bool, ...]:
    """Which columns hold numbers (or nothing)."""
    return tuple(
        all(not isinstance(row[j], str | bool) for row in table.rows) and any(row[j] is not None for row in table.rows)
        for j in range(len(table.columns))
    )


def blocks(sections: Iterable[Section], said: Callable[[str], str] = str) -> list[Block]:
    """``said``: the language of "yes", "no", "not measured" and what examples are told with."""
    made: list[Block] = []
    for section in sections:
        made.append(Block("heading", section.title))
        facts: list[tuple[str, ...]] = []
        for item in [*section.items, None]:
            if isinstance(item, Fact):
                facts.append((item.what, _shown(item.value, item.unit, said), explain(item)))
                continue
            if facts:
                made.append(Block("facts", rows=tuple(facts), right=(False, False, False)))
                facts = []
            if item is not None:
                made += _blocks_of(item, said)
    return made


def _shown(value: Cell, unit: str, said: Callable[[str], str]) -> str:
    text = format_value(value, unit)
    return said(text) if value is None or isinstance(value, bool) else text


def _blocks_of(item: Table | Picture | Examples | Note, said: Callable[[str], str]) -> list[Block]:
    if isinstance(item, Note):
        return [Block("note", note=item.text)]
    if isinstance(item, Picture):
        return [Block("picture", item.title, note=item.summary() + (f". {item.note}" if item.note else ""))]
    if isinstance(item, Table):
        rows = tuple(
            tuple(_shown(cell, column.unit, said) for cell, column in zip(row, item.columns, strict=True))
            for row in item.rows
        )
        return [Block("table", item.title, tuple(c.name for c in item.columns), rows, numeric(item), item.note)]
    head = [Block("note", item.title, note=item.note)] if item.title or item.note else []
    return head + [Block("example", each.question, rows=_told(each, said)) for each in item.examples]


def _told(example: Example, said: Callable[[str], str]) -> tuple[tuple[str, ...], ...]:
    missing = f"({said('no answer')})"
    answer = example.answer or missing
    if example.confidence is not None:
        answer += f"  ({said('… sure').replace('…', format_value(example.confidence, 'share'))})"
    rows = [(said("answer"), answer), (said("gold"), " / ".join(example.gold) or missing)]
    if example.right is not None:
        rows.append((said("judged"), said("right" if example.right else "wrong")))
    if example.title:
        rows.append((said("from"), example.title))
    return (*rows, (said("passage"), example.passage)) if example.passage else tuple(rows)


def text(title: str, about: str, found: Sequence[Block], width: int, page: str | None = None) -> str:
    """``page``: where pictures are to be seen, "" for nowhere; None tells each in sentences instead."""
    lines = [title, "=" * columns(title), *([about] if about else [])]
    for block in found:
        if block.kind == "picture" and page is not None:
            lines += ["", f"{block.title}: {page}"] if page else []
            continue
        lines.append("")
        if block.kind == "heading":
            lines += [block.title, "-" * columns(block.title)]
            continue
        if lines[-2].startswith("-") and not lines[-2].strip("-"):
            lines.pop()
        if block.title:
            lines.append(block.title)
        if block.kind in ("facts", "example"):
            lines += _aligned(block.rows, (), width)
        elif block.kind == "table":
            lines += _aligned((block.columns, *block.rows), block.right, width)
        if block.note:
            lines += wrapped(block.note, width)
    return "\n".join(line.rstrip() for line in lines)


def _aligned(rows: Sequence[tuple[str, ...]], right: tuple[bool, ...], width: int) -> list[str]:
    """Columns two spaces apart; the last one wraps under itself."""
    clean = [[" ".join(cell.split()) for cell in row] for row in rows]
    count = max((len(row) for row in clean), default=0)
    widths = [max(columns(row[j]) for row in clean) for j in range(count)]
    lines = []
    for row in clean:
        cells = [
            " " * (widths[j] - columns(cell)) + cell
            if j < len(right) and right[j]
            else cell + " " * (widths[j] - columns(cell))
            for j, cell in enumerate(row)
        ]
        start = sum(widths[:-1]) + 2 * (count - 1)
        last = cells[-1].rstrip()
        if start + columns(last) > width and width - start >= 24:
            first, *rest = wrapped(last, width - start)
            lines.append("  ".join([*cells[:-1], first]))
            lines += [" " * start + more for more in rest]
        else:
            lines.append("  ".join([*cells[:-1], last]))
    return lines


def columns(text: str) -> int:
    """The columns of a terminal that a text takes.

    >>> columns("节约 jieyue")
    11
    """
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def wrapped(text: str, width: int) -> list[str]:
    """Lines broken between words, and between the characters of Chinese, Japanese and Korean; none begins with a full stop.

    What is wider than a line is cut where it fills one.
    """
    lines = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for piece in _PIECES.findall(" ".join(paragraph.split())):
            if line and columns(line) + columns(piece.rstrip()) > width:
                lines.append(line.rstrip())
                line, piece = "", piece.lstrip()
            while columns(piece.rstrip()) > width:
                cut = next(i for i in range(1, len(piece)) if columns(piece[: i + 1]) > width)
                lines.append(piece[:cut])
                piece = piece[cut:]
            line += piece
        lines.append(line.rstrip())
    return lines


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line.

    >>> escape("a|b *c* <img src=x>")
    'a\\\\|b \\\\*c\\\\* &lt;img src=x&gt;'
    """
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_|~$])", r"\\\1", line)
    if re.search(r"\]\s*[\[(:]|\[\^", line):  # else brackets can be no link: intervals stay readable
        line = re.sub(r"([\[\]])", r"\\\1", line)
    return re.sub(r"^(\d+)([.)])(?=\s|$)|^([#+\-=])", lambda m: f"{m[1]}\\{m[2]}" if m[1] else f"\\{m[3]}", line)


def markdown(title: str, about: str, found: Sequence[Block], level: int) -> str:
    parts = [f"{'#' * level} {escape(title)}", *([escape(about)] if about else [])]
    for block in found:
        if block.kind == "heading":
            parts.append(f"{'#' * (level + 1)} {escape(block.title)}")
        elif block.kind == "facts":
            parts.append(_grid(("", "", ""), block.rows, (False, True, False)))
        elif block.kind == "table":
            parts += [f"**{escape(block.title)}**"] * bool(block.title) + [
                _grid(block.columns, block.rows, block.right)
            ]
        elif block.kind == "example":
            listed = "\n".join(f"- {name}: {escape(value)}" for name, value in block.rows)
            parts.append(f"**{escape(block.title)}**\n\n{listed}")
        elif block.kind == "picture":
            parts.append(f"*{escape(block.title)}*: {escape(block.note)}")
            continue
        else:
            parts += [f"**{escape(block.title)}**"] * bool(block.title)
        if block.note:
            parts.append("\n\n".join(escape(line) for line in block.note.splitlines() if line.strip()))
    return "\n\n".join(parts) + "\n"


def _grid(columns: Sequence[str], rows: Sequence[tuple[str, ...]], right: Sequence[bool]) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = line("---:" if number else "---" for number in right)
    return "\n".join([line(map(escape, columns)), rule, *(line(map(escape, row)) for row in rows)])
