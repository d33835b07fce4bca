"""The only place that prints: facts and tables for people, JSON lines for machines, one clear line for a mistake."""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console as Terminal
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from jieyue.budget import format_bytes, format_seconds
from jieyue.errors import InputError
from jieyue.report import Report
from jieyue.text import without_controls

from .settings_file import settings_text, told

__all__ = ["Console", "decoded", "read_text", "show"]


_SILENT_SECONDS = 30.0


class Console:
    """Where a verb speaks: ``as_json`` writes one JSON object a line to standard output, and nothing else there."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._told_at = time.monotonic()
        self.speaks = os.environ.get("RANK", "0") == "0"  # under torchrun the first process alone prints
        self.terminal = Terminal(
            stderr=as_json, highlight=False, soft_wrap=not sys.stdout.isatty(), quiet=not self.speaks
        )

    def say(self, line: str) -> None:
        """A sentence for people (standard error when the output is JSON)."""
        self.terminal.print(escape(without_controls(line)))

    def reading(self, name: str, done: int, total: int) -> None:
        """A line every half minute while a large file is read; the first after half a minute."""
        now = time.monotonic()
        if now - self._told_at >= _SILENT_SECONDS:
            self._told_at = now
            self.say(f"reading {name}: {done / max(total, 1):.0%} of {format_bytes(total)}")

    def fact(self, event: str, **values: Any) -> None:
        """One JSON line for machines; people read it as ``event: a = 1, b = 2``."""
        if self.as_json and self.speaks:
            sys.stdout.write(json.dumps({"event": event, **values}, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        elif not self.as_json:
            self.say(f"{event}: " + ", ".join(f"{key} = {value}" for key, value in values.items()))

    def settings(self, command: str, parameters: Sequence[inspect.Parameter], given: Mapping[str, Any]) -> None:
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
        drawn = Table(
            title=title or None, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False
        )
        for number, column in enumerate(columns):
            numeric = number > 0 and all(not row[number] or row[number][0] in "0123456789-+.<≤≥±" for row in rows)
            drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            drawn.add_row(*(escape(without_controls(cell)) for cell in row))
        self.terminal.print(drawn)

    @contextmanager
    def progress(self, what: str) -> Iterator[Any]:
        """A bar fed by ``update(done, total, facts)``; as JSON, at most one line a second."""
        if self.as_json:
            yield _JsonProgress(self, what)
            return
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[facts]}"))
        with Progress(*columns, console=self.terminal, transient=not self.terminal.is_terminal) as bar:
            task = bar.add_task(what, total=None, facts="")
            started = time.monotonic()

            def update(done: int, total: int, facts: Mapping[str, float]) -> None:
                shown = [f"{done}/{total}"]
                shown += [_short(name, value) for name, value in facts.items() if name != "remaining_seconds"]
                left = facts.get("remaining_seconds", (time.monotonic() - started) / max(done, 1) * (total - done))
                shown.append(f"{format_seconds(max(left, 0.0))} left" if done < total else "done")
                bar.update(task, completed=done, total=total, facts=" · ".join(shown))

            yield update


def show(
    console: Console,
    report: Report,
    sections: tuple[str, ...] | None = None,
    *,
    out: Path | None = None,
    name: str = "report",
) -> None:
    """The report's tables for people (of these sections), its own JSON for machines; both files where ``out`` is given."""
    if console.as_json:
        sys.stdout.write(json.dumps({"event": "report", **json.loads(report.json())}, ensure_ascii=False) + "\n")
    else:
        chosen = [section for section in report.sections if sections is None or section.title in sections]
        console.say("\n" + replace(report, sections=chosen).text(width=min(console.terminal.width, 120)))
    if out is not None:
        console.fact("saved", report=str(report.save(out, name).html))


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
