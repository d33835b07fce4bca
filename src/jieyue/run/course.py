"""The course of a training: what every update said, kept beside the checkpoints so that a run that goes on has all of it.

A line an update, as it ends. A run that goes on from update N takes the lines up to N; those after it are lived again and
written anew. A last line that was cut off by a kill is of such an update.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from jieyue.json_values import Facts
from jieyue.report import write_whole

__all__ = ["Course", "Points"]

Points: TypeAlias = list[tuple[int, float]]
_FILE = "course.jsonl"


@dataclass
class Course:
    """What was noted, each as (update, value): ``losses`` and ``rates`` at every update, the deciding ``scores`` now and then.

    ``aside``: the loss of the examples set aside, where the deciding score is another one. ``seconds``: of training up to the
    last update that is noted, all starts of the run together, without looking at the examples set aside. ``folder``: where it
    is kept, None = nowhere. Cost: a short line an update.
    """

    folder: Path | None = None
    losses: Points = field(default_factory=list)
    rates: Points = field(default_factory=list)
    scores: Points = field(default_factory=list)
    aside: Points = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def read(cls, folder: Path) -> Course:
        """What the run whose checkpoints are in ``folder`` has noted so far."""
        course = cls()
        for noted in _lines(folder):
            course._take(**noted)
        return course

    @classmethod
    def begun(cls, folder: Path, step: int) -> Course:
        """The course up to update ``step`` of the run in ``folder``, which goes on there; a new one begins with ``step`` 0."""
        course = cls(folder)
        kept = [noted for noted in _lines(folder) if noted["step"] <= step]
        for noted in kept:
            course._take(**noted)
        if (folder / _FILE).is_file():
            write_whole(folder / _FILE, "".join(json.dumps(noted) + "\n" for noted in kept))
        return course

    @property
    def updates(self) -> set[int]:
        """Which updates are noted: all of a run, unless the beginning of its file is lost."""
        return {step for step, _ in self.losses}

    def note(self, step: int, seconds: float, **values: float | None) -> None:
        """What update ``step`` said; ``values``: ``loss``, ``rate``, ``score``, ``aside``; None is not noted."""
        known = {name: value for name, value in values.items() if value is not None}
        self._take(step, seconds, **known)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / _FILE, "a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, "seconds": seconds, **known}) + "\n")

    def _take(self, step: int, seconds: float, **values: float) -> None:
        self.seconds = seconds
        places = {"loss": self.losses, "rate": self.rates, "score": self.scores, "aside": self.aside}
        for name, value in values.items():
            places[name].append((step, value))


def _lines(folder: Path) -> Iterator[Facts]:
    path = folder / _FILE
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
