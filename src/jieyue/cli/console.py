"""The only place that prints: facts and tables for people, JSON lines for machines, one clear line for a mistake."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console as Terminal
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from jieyue.budget import format_bytes, format_seconds
from jieyue.errors import InputError
from jieyue.report import Report, write_whole
from jieyue.report.tones import TONES, tone
from jieyue.report.translation import DATA
from jieyue.text import without_controls

from .flags import Given
from .language import said, spoken
from .settings_file import settings_text, told

__all__ = ["Console", "decoded", "in_own_language", "read_text", "show"]


_SILENT_SECONDS = 30.0
_STYLES = {"right": "green", "wrong": "red", "doubt": "yellow"}
_ENCODING = "encoding"


class Console:
    """Where a verb speaks: ``as_json`` writes one JSON object a line to standard output, and nothing else there."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._told_at = time.monotonic()
        self._bar: Progress | None = None
        self.speaks = os.environ.get("RANK", "0") == "0"  # under torchrun the first process alone prints
        self.terminal = Terminal(
            stderr=as_json, highlight=False, soft_wrap=not sys.stdout.isatty(), quiet=not self.speaks
        )

    def print(self, text: str) -> None:
        """A text as it is."""
        self._end_bar()
        self.terminal.print(escape(without_controls(text)))

    def print_report(self, text: str) -> None:
        """A report's text, its verdicts in their colours where the terminal has any."""
        self._end_bar()
        shown = Text(without_controls(text))
        for word, role in TONES.items():
            for own in {word, said(word)}:  # a cell of its own: two spaces, or nothing, on both sides
                shown.highlight_regex(rf"(?m)(?<![^ \n])(?<![^ \n] ){re.escape(own)}(?=  |$)", _STYLES[role])
        self.terminal.print(shown)

    def say(self, line: str) -> None:
        """A sentence for people (standard error when the output is JSON)."""
        self.print(said(line))

    def reading(self, what: str, done: int, total: int) -> None:
        """While a file is read (bytes) or examples are encoded: a bar on a terminal, else a line every half minute."""
        if not self.as_json and self.terminal.is_terminal and self.speaks:
            self._reading_bar(what, done, total)
        elif not self._is_due():
            return
        elif what == _ENCODING:
            self.say(f"encoding: {done / max(total, 1):.0%} of {total:,}")
        else:
            self.say(f"reading {what}: {done / max(total, 1):.0%} of {format_bytes(total)}")

    def _reading_bar(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:.0f}%"),
            )
            self._bar = Progress(*columns, console=self.terminal, transient=True)
            self._bar.add_task("")
            self._bar.start()
        name = said(what) if what == _ENCODING else f"{said('reading')} {Path(what).name}"
        self._bar.update(self._bar.task_ids[0], completed=done, total=max(total, 1), description=escape(name))
        if done >= total:
            self._end_bar()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _is_due(self) -> bool:
        """Once every half minute; the first time half a minute after the start."""
        now = time.monotonic()
        if now - self._told_at < _SILENT_SECONDS:
            return False
        self._told_at = now
        return True

    def fact(self, event: str, **values: Any) -> None:
        """One JSON line for machines; people read it as ``event: a = 1, b = 2``."""
        if self.as_json and self.speaks:
            sys.stdout.write(json.dumps({"event": event, **values}, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        elif not self.as_json:
            told = [f"{said(key)} = {value}" for key, value in values.items()]
            self.print(f"{said(event)}: {', '.join(told)}")

    def settings(self, command: str, parameters: Sequence[inspect.Parameter], given: Given) -> None:
        """The flags that hold (``--show``): a file for ``--config``, or one JSON object."""
        if self.as_json:
            flags = {flag: given.get(name) for name, (flag, _) in told(parameters).items() if flag not in ("", "show")}
            self.fact("settings", command=command, **json.loads(json.dumps(flags, default=str)))
        else:
            sys.stdout.write(settings_text(command, parameters, given) + "\n")

    def table(self, title: str, columns: list[str], rows: list[list[str]], event: str | None = None) -> None:
        """A table for people; as JSON, one object with the columns as keys for each row."""
        if self.as_json:
            for row in rows:
                self.fact(event or title, **dict(zip(columns, row, strict=True)))
            return
        self._end_bar()
        drawn = Table(
            title=said(title) or None,
            title_justify="left",
            title_style="bold",
            header_style="dim",
            box=None,
            pad_edge=False,
        )
        for number, column in enumerate(columns):
            numeric = number > 0 and all(not row[number] or row[number][0] in "0123456789-+.<≤≥±" for row in rows)
            drawn.add_column(said(column), justify="right" if numeric else "left", overflow="fold")
        ours = [column not in DATA for column in columns]
        for row in rows:
            shown = (said(cell) if own else cell for cell, own in zip(row, ours, strict=True))
            drawn.add_row(*(Text(without_controls(cell), _STYLES.get(tone(cell, said), "")) for cell in shown))
        self.terminal.print(drawn)

    @contextmanager
    def progress(self, what: str) -> Iterator[Any]:
        """A bar fed by ``update(done, total, facts)``; as JSON, at most one line a second."""
        if self.as_json:
            yield _JsonProgress(self, what)
            return
        self._end_bar()
        if not self.terminal.is_terminal:
            yield partial(self._told_now_and_then, what, time.monotonic())
            return
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[facts]}"))
        with Progress(*columns, console=self.terminal) as bar:
            task = bar.add_task(said(what), total=None, facts="")
            started = time.monotonic()

            def update(done: int, total: int, facts: Mapping[str, float]) -> None:
                bar.update(task, completed=done, total=total, facts=_progress_line(started, done, total, facts))

            yield update

    def _told_now_and_then(self, what: str, started: float, done: int, total: int, facts: Mapping[str, float]) -> None:
        """Without a terminal: a line every half minute, and one at the end."""
        if self._is_due() or done == total:
            self.say(f"{said(what)} {_progress_line(started, done, total, facts)}")


def _progress_line(started: float, done: int, total: int, facts: Mapping[str, float]) -> str:
    shown = [f"{done}/{total}"]
    shown += [_short(name, value) for name, value in facts.items() if name != "remaining_seconds"]
    left = facts.get("remaining_seconds", (time.monotonic() - started) / max(done, 1) * (total - done))
    shown.append(said("… left").replace("…", format_seconds(max(left, 0.0))) if done < total else said("done"))
    return " · ".join(shown)


def show(
    console: Console,
    report: Report,
    sections: tuple[str, ...] | None = None,
    *,
    out: Path | None = None,
    name: str = "report",
    page: Path | None = None,
) -> None:
    """The report's tables for people (of these sections), its own JSON for machines; both files where ``out`` is given.

    ``page``: where the whole report was written already. Pictures are told by the page that shows them.
    """
    seen = page or (None if out is None else out / f"{name}.html")
    if console.as_json:
        sys.stdout.write(json.dumps({"event": "report", **json.loads(report.json())}, ensure_ascii=False) + "\n")
    else:
        chosen = [section for section in report.sections if sections is None or section.title in sections]
        own = replace(report, sections=chosen).in_language(spoken())
        console.print_report(
            "\n" + own.text(width=min(console.terminal.width, 120), page="" if seen is None else str(seen))
        )
    if out is not None:
        report.save(out, name)
        in_own_language(report, seen)
        console.fact("saved", report=str(seen))


def in_own_language(report: Report, page: Path | None) -> None:
    """The page anew in the language that is spoken, where that is not the report's; its JSON stays as programs read it."""
    if page is not None and spoken() != report.language:
        write_whole(page, report.in_language(spoken()).html())


def read_text(path: Path) -> str:
    """A text in any encoding and packing that training reads; ``InputError`` names what is wrong with it."""
    from jieyue.data.encodings import is_damaged
    from jieyue.data.files import read_text as read

    text = read(path).text
    if not text.strip() or is_damaged(text):
        found = "bytes that do not decode" if text.strip() else "an empty file"
        raise InputError(f"{path}: found {found}, expected text")
    return text


def decoded(raw: bytes, name: str) -> str:
    """UTF-8 bytes as text; ``InputError`` tells the place of what is not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 (byte {error.start}); expected UTF-8 text") from error


class _JsonProgress:
    def __init__(self, console: Console, what: str) -> None:
        self.console, self.what, self.last = console, what, 0.0

    def __call__(self, done: int, total: int, facts: Mapping[str, float]) -> None:
        now = time.monotonic()
        if done == total or now - self.last >= 1:
            self.last = now
            self.console.fact(
                self.what, done=done, total=total, **{name: round(value, 6) for name, value in facts.items()}
            )


def _short(name: str, value: float) -> str:
    if name == "tokens_per_second":
        return f"{value:,.0f} tokens/s"
    return f"{name.replace('_', ' ')} {value:.3f}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
