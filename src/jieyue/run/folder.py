"""The folder of a run: whether it can be written, and what it keeps of the training examples."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.record import RECORD

__all__ = [
    "IN_HAND",
    "MEMORY",
    "RESOLVED",
    "Out",
    "check_apart",
    "check_either",
    "check_folder",
    "check_free",
    "check_unfinished",
    "lasting",
    "locked",
    "read_memory",
]

IN_HAND = "jieyue-"  # how the temporary folders of models and rows in hand are called
RESOLVED = "training.json"  # the resolved settings of a run, for --resume
_WRITTEN = ("README.md", "config.json", "model.safetensors", "tokenizer.json", "report.html", "report.json")
MEMORY = "training_memory.json"  # what judging must know of the training examples: Task.memory


@dataclass(frozen=True)
class Out:
    """Where a run writes; ``overwrite`` permits a folder that holds a finished model."""

    path: Path
    overwrite: bool = False

    @classmethod
    def of(cls, out: str | Path | Out) -> Out:
        """A path as it is: nothing is written over."""
        return out if isinstance(out, Out) else cls(Path(out))


def check_either(*, resume: bool, overwrite: bool) -> None:
    """Refuses to go on and to begin anew at once."""
    if resume and overwrite:
        raise InputError("resume and overwrite: found both, expected one of them")


def check_free(folder: Path, model: str, *, resume: bool, overwrite: bool) -> None:
    """What of the checks of a run's folder can be told by looking, before anything slow is imported."""
    check_either(resume=resume, overwrite=overwrite)
    check_apart(folder, model)
    if folder.exists() and not folder.is_dir():
        raise InputError("out", f"the file {folder}", "a folder, or a name that is free")
    check_unfinished(folder, overwrite or resume)


def check_folder(folder: Path) -> None:
    """Refuses a folder that is a file or cannot be written, before anything is read or trained."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise InputError("out", f"the file {folder}", "a folder, or a name that is free") from None
    except OSError as error:
        raise InputError("out", f"{folder}, which cannot be written ({error.strerror})", "a folder") from None


def check_unfinished(folder: Path, overwrite: bool) -> None:
    """Refuses a folder in which a training was finished, or that holds what a run would take the place of, unless that is asked for."""
    if overwrite:
        return
    if (folder / RECORD).is_file() and (folder / "report.json").is_file():
        raise InputError(
            "out", f"{folder}, which holds a finished model", "another folder", "--overwrite trains anew there"
        )
    if (folder / RECORD).is_file() or (folder / RESOLVED).is_file():
        return
    if there := [name for name in _WRITTEN if (folder / name).exists()]:
        found = f"{folder}, where the {there[0]} of something else lies"
        raise InputError("out", found, "a new folder", "--overwrite writes over it")


def check_apart(folder: Path, model: str) -> None:
    """Refuses the folder of the model that is read: what was trained would take its place."""
    if Path(model).is_dir() and folder.resolve() == Path(model).resolve():
        raise InputError(
            "out", f"{folder}, the folder of the model itself", "another folder", "the model stays as it is"
        )


def lasting(name: str) -> str:
    """What a model is called from run to run: its name, but of one in hand, which lies in a temporary folder, the checksum of its
    files and its name ("3f60…/model")."""
    parts = Path(name).parts
    is_in_hand = len(parts) > 2 and parts[-3].startswith(IN_HAND) and Path(*parts[:-3]) == Path(tempfile.gettempdir())
    return "/".join(parts[-2:]) if is_in_hand else name


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the system gives it free when the process ends, however it ends."""
    import torch.distributed  # here: what looks at a folder before anything slow is imported is above

    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        yield  # several processes of one run share the folder
        return
    place = folder / "checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".lock").open("a+") as file:
        try:
            _lock(file)
        except OSError:
            found = f"{folder}, in which another process is training"
            raise InputError("out", found, "a folder of its own", "wait for it, or name another one") from None
        yield


def _lock(file: IO[str]) -> None:
    """OSError where another process holds it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_memory(folder: str | Path) -> Facts | None:
    """``Task.memory`` of the training examples; None in a folder of an earlier version."""
    path = Path(folder) / MEMORY
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not what `jieyue train` writes ({error}); remove it, or train anew") from None
