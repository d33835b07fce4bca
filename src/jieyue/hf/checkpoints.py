"""Checkpoints that are whole: what each file's digest is, the newest one that is intact, and which may go.

transformers goes on silently without an optimizer's, scheduler's or random state that is missing; here a record beside them
names every file and its digest, and a checkpoint that does not match is passed over for the one before it, with a warning.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError, loads
from pathlib import Path

from safetensors import SafetensorError

from jieyue.errors import InputError

__all__ = [
    "RECORD",
    "checkpoints_of",
    "digests",
    "intact_checkpoint",
    "keep_best",
    "keep_newest",
    "read_record",
    "room_for",
]

RECORD = "jieyue_training.json"
_LITTLE = 2**20  # bytes free on a disk that is full: what did not fit is larger than the rest
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints_of(root: Path) -> list[Path]:
    """The folders ``checkpoint-N`` in ``root``, oldest first; others of like names (checkpoint-best) are the user's."""
    named = [(found, path) for path in root.glob("checkpoint-*") if (found := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named, key=lambda pair: int(pair[0][1]))]


@contextmanager
def room_for(folder: Path) -> Iterator[None]:
    """A disk that has no room left inside is told in one line; torch and safetensors say it by errors of their own."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if shutil.disk_usage(folder).free > _LITTLE:
            raise
        do = "make room; --resume goes on from the last whole checkpoint, where there is one"
        raise InputError("checkpoint", f"no room left in {folder}", "some for weights and optimizer", do) from error


def digests(folder: Path) -> dict[str, str]:
    """Path inside the folder -> sha256 of every file but the record. Reads them all: about a second a GiB."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != RECORD:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def read_record(folder: Path) -> dict[str, object]:
    """The record of a checkpoint that is intact; ``InputError`` names what is wrong with another."""
    path = folder / RECORD
    if not path.is_file():
        raise InputError("resume", f"{folder} without {RECORD}", "a checkpoint written by this trainer")
    try:
        record: dict[str, object] = loads(path.read_text(encoding="utf-8"))
    except (JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError("resume", f"{path} that cannot be read ({error})", "an intact checkpoint") from error
    if wrong := _damage(folder, record):
        raise InputError("resume", f"{folder} with {wrong}", "an intact checkpoint", "resume from an older one")
    return record


def intact_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint that is intact; a warning for each that is not, ``InputError`` where none is, None without any."""
    found = checkpoints_of(root) if root.is_dir() else []
    for folder in reversed(found):
        try:
            read_record(folder)
        except InputError as error:
            if folder == found[0] or not (folder / RECORD).is_file():
                raise
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
        else:
            return folder
    return None


def keep_newest(root: Path, count: int | None, best: str | None) -> None:
    """Removes the oldest checkpoints beyond ``count``; the best one and the newest one always stay."""
    found = checkpoints_of(root)
    stay = {path.name for path in found[-1:]} | ({Path(best).name} if best else set())
    gone = [path for path in found if path.name not in stay]
    for old in gone[: max(0, len(found) - count)] if count else []:
        shutil.rmtree(old, ignore_errors=True)


def keep_best(root: Path, best: str | None) -> None:
    """Removes all checkpoints but the best one, where there is one: what a limit of 1 leaves of a finished run."""
    if best and Path(best).is_dir():
        for path in checkpoints_of(root):
            if path.name != Path(best).name:
                shutil.rmtree(path, ignore_errors=True)


def _damage(folder: Path, record: Mapping[str, object]) -> str:
    """What is missing or changed; empty for an intact checkpoint."""
    known = record.get("files")
    present = digests(folder) if isinstance(known, dict) else {path.name: "" for path in folder.iterdir()}
    if isinstance(known, dict):
        for name, digest in known.items():
            if name not in present:
                return f"{name} missing"
            if present[name] != digest:
                return f"{name} changed since it was written"
    for part in ("optimizer", "scheduler", "rng_state"):
        if not any(name.partition("/")[0].startswith(part) for name in present):
            return f"no {part} state (save_only_model?)"
    return ""
