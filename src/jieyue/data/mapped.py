"""Tokens of any number of dialogues in files that the system maps into memory: only what is being read is resident.

A folder holds ``ids.i32`` (all tokens, one after another), ``marks.u8`` (what each token belongs to), ``starts.i64`` (where
each dialogue begins, and the end) and ``counts.json``, which is written last: without it the folder counts as unfinished.
``keep_tokens`` finds the tokens of an earlier run again, by a digest of what they were made from.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy

from jieyue.errors import InputError
from jieyue.json_values import Facts

__all__ = [
    "ANY_TURN",
    "LAST_TURN",
    "REPLY",
    "MappedTokens",
    "keep_tokens",
    "open_tokens",
    "temporary_tokens",
    "write_tokens",
]

ANY_TURN, REPLY, LAST_TURN = 1, 2, 4  # bits of a mark
_FILES = {"ids": ("ids.i32", numpy.int32), "marks": ("marks.u8", numpy.uint8), "starts": ("starts.i64", numpy.int64)}
_RECORD = "counts.json"
_TEMPORARY = "jieyue-tokens-"


class MappedTokens:
    """The dialogues of a folder: ``tokens[n]`` is (ids, marks) of dialogue n, views of the files.

    ``lengths``: tokens of each; ``counts``: what ``write_tokens`` was told.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: Facts = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        arrays = {}
        for name, (file, kind) in _FILES.items():
            path = folder / file
            arrays[name] = numpy.memmap(path, kind, "r") if path.stat().st_size else numpy.zeros(0, kind)
        self.ids, self.marks, self.starts = arrays["ids"], arrays["marks"], arrays["starts"]
        if len(self.starts) == 0 or self.starts[-1] != len(self.ids) or len(self.ids) != len(self.marks):
            raise InputError(str(folder), "token files that do not fit one another", "whole ones", "delete it")

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        first, stop = int(self.starts[number]), int(self.starts[number + 1])
        return self.ids[first:stop], self.marks[first:stop]

    @property
    def lengths(self) -> numpy.ndarray:
        return numpy.diff(self.starts)


def write_tokens(
    folder: str | Path,
    dialogues: Iterable[tuple[numpy.ndarray, numpy.ndarray]],
    counts: Facts,
    *,
    block: int = 2**20,
) -> MappedTokens:
    """Writes (ids, marks) of each dialogue as they come; ``counts`` is read when the last one was written.

    Memory: ``block`` tokens, whatever there is in all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _RECORD).unlink(missing_ok=True)
    with (
        (folder / _FILES["ids"][0]).open("wb") as ids_file,
        (folder / _FILES["marks"][0]).open("wb") as marks_file,
        (folder / _FILES["starts"][0]).open("wb") as starts_file,
    ):
        total, waiting = 0, 0
        held: tuple[list[numpy.ndarray], list[numpy.ndarray], list[int]] = ([], [], [0])

        def flush() -> None:
            for file, parts, kind in ((ids_file, held[0], numpy.int32), (marks_file, held[1], numpy.uint8)):
                if parts:
                    file.write(numpy.concatenate(parts).astype(kind).tobytes())
            starts_file.write(numpy.asarray(held[2], dtype=numpy.int64).tobytes())
            for part in held:
                part.clear()

        for ids, marks in dialogues:
            if len(ids) != len(marks):
                raise InputError(f"write_tokens: found {len(ids)} ids and {len(marks)} marks, expected as many")
            total, waiting = total + len(ids), waiting + len(ids)
            held[0].append(ids)
            held[1].append(marks)
            held[2].append(total)
            if waiting >= block:
                flush()
                waiting = 0
        flush()
    part = folder / f".{_RECORD}.part"
    part.write_text(json.dumps(dict(counts), ensure_ascii=False), encoding="utf-8")
    os.replace(part, folder / _RECORD)
    return MappedTokens(folder)


def temporary_tokens(dialogues: Iterable[tuple[numpy.ndarray, numpy.ndarray]], counts: Facts) -> MappedTokens:
    """As ``write_tokens``, in files that end with the process however it ends.

    Where the system allows it, they have no name any more once they are written. Those of a process that was killed while it
    wrote are removed by the next that writes.
    """
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    try:
        with _claimed(folder):
            tokens = write_tokens(folder, dialogues, counts)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if os.name == "posix":
        shutil.rmtree(folder, ignore_errors=True)
    else:
        weakref.finalize(tokens, shutil.rmtree, folder, ignore_errors=True)
    return tokens


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Holds the folder's lock, which a process that ends lets go of; False where another holds it."""
    try:
        import fcntl
    except ImportError:  # not on Windows, where nothing is removed but one's own
        yield False
        return
    with (folder / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < 60:  # perhaps just made, and not yet claimed
                continue
            with _claimed(folder) as is_free:
                if is_free:
                    shutil.rmtree(folder)


def open_tokens(folder: str | Path) -> MappedTokens | None:
    """The tokens of a folder, or None where there are none or writing them was interrupted."""
    folder = Path(folder)
    return MappedTokens(folder) if (folder / _RECORD).is_file() else None


def keep_tokens(
    folder: str | Path,
    digest: str,
    dialogues: Iterable[tuple[numpy.ndarray, numpy.ndarray]],
    counts: Mapping[str, int],
) -> tuple[MappedTokens, bool]:
    """The folder's tokens where they were made from what ``digest`` identifies (True); else they are written anew (False).

    ``dialogues`` is not touched where the tokens are there. The tokens' ``counts`` are {"digest", "counts"}. Tokens made from
    anything else, unfinished or damaged are replaced as a whole, so that another process keeps what it has open.
    """
    folder = Path(folder)
    try:
        found = open_tokens(folder)
    except (InputError, OSError, ValueError):
        found = None
    if found is not None and found.counts.get("digest") == digest:
        return found, True
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
        tokens = write_tokens(Path(aside) / "new", dialogues, {"digest": digest, "counts": counts})
        with suppress(OSError):  # another process of the same run was first; what is open here stays readable
            if folder.exists():
                folder.rename(Path(aside) / "old")
            tokens.folder.rename(folder)
        tokens.folder = folder
    return tokens, False
