"""What a run had decided when it was interrupted: kept in its folder, and held against what it is asked to go on with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy

from jieyue import __version__
from jieyue.data.packing import DialogueRows
from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.planning.setting import AUTO
from jieyue.report import write_whole

from .config import TrainingConfig
from .folder import RESOLVED, lasting
from .prepare import Prepared

__all__ = ["RESOLVED", "as_before", "check_resumed", "decided_updates", "write_resolved"]


def write_resolved(folder: Path, training: TrainingConfig, prepared: Prepared, updates: int) -> None:
    """Writes what was decided."""
    values = _values(training, prepared) | {"version": __version__, "updates": updates}
    write_whole(folder / RESOLVED, json.dumps(values, ensure_ascii=False, indent=1) + "\n")


def decided_updates(folder: Path) -> int:
    """The number of updates of the interrupted run."""
    before = _read(folder)
    return int(before["updates"] if "updates" in before else before["steps"])


def as_before(folder: Path, training: TrainingConfig) -> TrainingConfig:
    """With the optimizer and dtype of the interrupted run where they are left open."""
    before = TrainingConfig.known(_read(folder).get("training", {}))
    left = {name: before[name] for name in ("optimizer", "dtype") if getattr(training, name) == AUTO}
    return replace(training, **left)


def check_resumed(folder: Path, training: TrainingConfig, prepared: Prepared) -> None:
    """Refuses to go on with other settings, another model or other data than the interrupted run had."""
    before = _read(folder)
    then = {
        **before,
        "training": TrainingConfig.known(before["training"] if "training" in before else before["course"]),
    }
    now = _values(training, prepared)
    for name, value in {**now, **now["training"]}.items():
        had = {**then, **then["training"]}.get(name)
        said = name in before and not (name == "tokens" and had is None)
        if name in ("tokens", "attention") and not said:  # older runs did not say these
            continue
        if name != "training" and had != value:
            raise InputError(f"resume: {name} is {value!r}, but the interrupted run had {had!r}; expected the same")


def _read(folder: Path) -> Facts:
    path = folder / RESOLVED
    if not path.is_file():
        raise InputError(f"resume: no {RESOLVED} in {folder}; expected the folder of an interrupted run")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not what a run writes ({error}); train anew in another folder") from None


def _values(training: TrainingConfig, prepared: Prepared) -> Facts:
    values = {
        "model": lasting(prepared.model.name),
        "adapter": prepared.adapter,
        "base": prepared.base,
        "attention": prepared.attention,
        "data": prepared.sources.name,
        "training": training.to_dict(),
        "settings": {
            name: lasting(value) if isinstance(value, str) else value
            for name, value in prepared.settings.to_dict().items()
        },
        "rows": len(prepared.rows),
        "tokens": _digest(prepared),
    }
    return dict(json.loads(json.dumps(values)))


def _digest(prepared: Prepared) -> str:
    """Identifies the training rows by the tokens in them; tokens on disk know what they were made from."""
    rows = prepared.rows
    if isinstance(rows, DialogueRows) and rows.digest is not None:
        return rows.digest
    found = hashlib.sha256()
    for row in rows:
        for name in sorted(row):
            found.update(name.encode())
            found.update(numpy.ascontiguousarray(row[name]).tobytes())
    return found.hexdigest()[:16]
