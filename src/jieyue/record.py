"""The record in a trained folder, ``jieyue.json``: the task, its settings and the version.

Read without torch, so that a wrong folder is told at once.
"""

from __future__ import annotations

import json
from pathlib import Path

from .errors import InputError, near_file
from .json_values import Facts

__all__ = ["RECORD", "read_record"]

RECORD = "jieyue.json"


def read_record(folder: str | Path, task: str | None = None) -> Facts:
    """What training recorded of a model; ``task``: the only one that is wanted.

    ``InputError`` for a folder that is not there or that jieyue did not save, a broken record, or another task.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        found, hint = f"no {RECORD} in it", ""
        if not Path(folder).is_dir():
            found = f"{'a file' if Path(folder).exists() else 'no such folder'}, so {found}"
            hint = near_file(folder)
        raise InputError(str(folder), found, f"the folder of a model trained by `jieyue train`{hint}")
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not the JSON object that `jieyue train` writes: {error}") from error
    if task is not None and record.get("recipe") != task:
        trained = f"a model of `jieyue train {record.get('recipe')}`"
        raise InputError(str(folder), trained, f"one of `jieyue train {task}`")
    return record
