"""The folder of a run: whether it can be written, and what it keeps of the training examples."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from jieyue.errors import InputError, message
from jieyue.tasks import Facts

__all__ = ["MEMORY", "check_folder", "read_memory"]

MEMORY = "training_memory.json"  # what judging must know of the training examples: Task.memory


def check_folder(folder: Path) -> None:
    """Refuses a folder that is a file or cannot be written, before anything is read or trained."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise InputError(message("out", f"the file {folder}", "a folder, or a name that is free")) from None
    except OSError as error:
        raise InputError(message("out", f"{folder}, which cannot be written ({error.strerror})", "a folder")) from None


def read_memory(folder: str | Path) -> Facts | None:
    """``Task.memory`` of the training examples; None in a folder of an earlier version."""
    path = Path(folder) / MEMORY
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not what `jieyue train` writes ({error}); remove it, or train anew") from None
