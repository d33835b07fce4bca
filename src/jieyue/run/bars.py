"""Progress for people who call from Python: bars in a terminal or a notebook, sentences on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from jieyue.listener import Update

__all__ = ["Bars"]


class Bars:
    """A ``ProgressListener``."""

    def say(self, line: str) -> None:
        """On standard error."""
        sys.stderr.write(line + "\n")

    def fact(self, event: str, **values: Any) -> None:
        """As a sentence."""
        self.say(f"{event}: " + ", ".join(f"{key} = {value}" for key, value in values.items()))

    def table(self, title: str, columns: list[str], rows: list[list[str]], event: str | None = None) -> None:
        """A line a row."""
        for row in rows:
            self.say("  ".join(row))

    @contextmanager
    def progress(self, what: str) -> Iterator[Update]:
        """One bar for as long as the work lasts."""
        with tqdm(desc=what, leave=False) as bar:

            def update(done: int, total: int, facts: Mapping[str, float]) -> None:
                bar.total = total
                bar.set_postfix(
                    {name: f"{value:.4g}" for name, value in facts.items() if name != "remaining_seconds"},
                    refresh=False,
                )
                bar.update(done - bar.n)

            yield update
