"""Measured cells of a comparison, kept as files: ``FOLDER/cells/DIGEST.json``, work in ``FOLDER/work/DIGEST`` until then.

A cell is known by the digest of all that decides it, is written whole or not at all, and is never measured twice. A lock
per cell lets several processes share the work.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.report import write_whole

__all__ = ["cell_path", "content_of", "digest_of", "locked", "read_cell", "write_cell"]


def digest_of(key: Facts) -> str:
    """JSON values in 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def content_of(files: Iterable[Path]) -> str:
    """The content of files, one after the other, in 16 hexadecimal digits; ``InputError`` for one that is not there."""
    total = hashlib.sha256()
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def cell_path(folder: Path, digest: str) -> Path:
    """Where a cell is, or will be."""
    return folder / "cells" / f"{digest}.json"


def read_cell(folder: Path, digest: str) -> Facts | None:
    """A cell's JSON object; None where it was not measured yet."""
    path = cell_path(folder, digest)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def write_cell(folder: Path, digest: str, text: str) -> Facts:
    """Writes a cell whole, removes its work, and gives back what stands in the file."""
    path = cell_path(folder, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text + "\n")
    shutil.rmtree(folder / "work" / digest, ignore_errors=True)
    return dict(json.loads(path.read_text(encoding="utf-8")))


@contextmanager
def locked(folder: Path, digest: str, wait: bool) -> Iterator[bool]:
    """True where the cell is ours; the system frees it when a process ends, however it ends. The empty file stays."""
    path = folder / "locks" / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
