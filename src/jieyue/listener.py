"""How a long job tells what it is doing: sentences, facts, tables and progress, to whoever listens; by default to nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

__all__ = ["SILENT", "ProgressListener", "Update"]

Update = Callable[[int, int, Mapping[str, float]], None]


class ProgressListener(Protocol):
    """What the command line's console is, and what a caller may pass instead."""

    def say(self, line: str) -> None:
        """A sentence for people."""

    def fact(self, event: str, **values: Any) -> None:
        """Named values, for people and machines."""

    def table(self, title: str, columns: list[str], rows: list[list[str]], event: str | None = None) -> None:
        """Rows of text under columns."""

    def progress(self, what: str) -> AbstractContextManager[Update]:
        """Gives ``update(done, total, facts)`` for as long as the work lasts."""


class _Silence:
    def say(self, line: str) -> None:
        pass

    def fact(self, event: str, **values: Any) -> None:
        pass

    def table(self, title: str, columns: list[str], rows: list[list[str]], event: str | None = None) -> None:
        pass

    @contextmanager
    def progress(self, what: str) -> Iterator[Update]:
        yield lambda done, total, facts: None


SILENT: ProgressListener = _Silence()
