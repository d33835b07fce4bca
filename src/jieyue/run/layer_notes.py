"""What measuring has found so far, kept beside the run as it is found: a choice that was stopped goes on where it was.

The first line says for which model, rows and options; each other one is a result. A last line that was cut off by a kill is of a
result that is found anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.report import write_whole

__all__ = ["Notes", "check_same"]


@dataclass
class Notes:
    """Results by name. ``path``: the file, None = they are kept nowhere. Cost: a line a result."""

    path: Path | None = None
    known: dict[str, Facts] = field(default_factory=dict)

    @classmethod
    def begun(cls, path: Path, asked: Facts, resume: bool) -> Notes:
        """Those in the file where ``resume``, which must be of ``asked`` (``InputError``); else a new file."""
        lines = _whole_lines(path) if resume else []
        if lines:
            check_same(dict(lines[0].get("asked") or {}), asked)
        known = {str(one["name"]): dict(one["found"]) for one in lines[1:]}
        write_whole(path, "".join(_line(one) for one in [{"asked": asked}, *lines[1:]]))
        return cls(path, known)

    def noted(self, name: str, find: Callable[[], Facts]) -> Facts:
        """The result of this name: the one that is known, else what ``find`` finds; equal to the bit, as JSON keeps a float64."""
        if name not in self.known:
            self.known[name] = found = find()
            if self.path is not None:
                with open(self.path, "a", encoding="utf-8") as stream:
                    stream.write(_line({"name": name, "found": found}))
        return self.known[name]


def check_same(before: Facts, asked: Facts) -> None:
    """``InputError`` where an interrupted run had been asked something else."""
    if before != asked:
        changed = sorted(name for name in {*asked, *before} if before.get(name) != asked.get(name))
        raise InputError("resume", f"another {', '.join(changed)} than the interrupted run had", "the same")


def _line(values: Facts) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> list[Facts]:
    found: list[Facts] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            found.append(dict(json.loads(line)))
        except json.JSONDecodeError:
            break
    return found
