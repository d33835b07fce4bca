"""Which malloc a long verb runs under: tcmalloc where it is found, as freed blocks are then neither kept nor touched anew.

glibc keeps freed blocks (a process holds up to twice what its tensors need) or, under a low mmap threshold, gives each back to
the system at once (up to twice the time). tcmalloc does neither, but must be there before the process starts: the command
line starts itself again once, before torch is loaded and anything is opened or read: process number, standard input and the
signals it ignores stay. Verbs that train do, and those that read much with a trained model; what they start themselves does not
inherit it. ``bench`` and ``verify`` tell of the malloc that is there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path

from jieyue.errors import InputError

__all__ = ["ALLOCATORS", "find", "preloaded", "start_again"]

ALLOCATORS = ("auto", "tcmalloc", "system")
_TRAINING = ("train", "compare", "reproduce", "sparsify")
_READING = ("chat", "serve", "predict", "evaluate")
_FLAG = "--allocator"
_STARTED = "JIEYUE_STARTED_AGAIN"  # from the command line to itself: which LD_PRELOAD there was before
_KERNELS, _KEPT = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256"  # oneDNN's own is 1024, some 100 KB for each length of rows
_PLACES = (
    "/usr/lib/*-linux-gnu/libtcmalloc_minimal.so.4",
    "/usr/lib64/libtcmalloc_minimal.so.4",
    "/usr/lib/libtcmalloc_minimal.so.4",
    "/usr/local/lib/libtcmalloc_minimal.so.4",
)


def find() -> Path | None:
    """gperftools' tcmalloc without profiler, of this Python's environment (conda) or of the system; None where there is none."""
    if sys.platform != "linux":
        return None
    own = str(Path(sys.prefix) / "lib" / "libtcmalloc_minimal.so.4")
    return next((Path(path) for place in (own, *_PLACES) for path in sorted(glob(place))), None)


def preloaded(library: Path | None, environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of a process that is to run under ``library``."""
    if library is None:
        return {}
    return {"LD_PRELOAD": " ".join([str(library), *filter(None, [environment.get("LD_PRELOAD")])])}


def start_again(arguments: Sequence[str]) -> None:
    """Replaces this process by itself under tcmalloc, once, where a verb trains or reads much and nothing else was chosen.

    ``arguments``: the command line without the program's name. ``--allocator system`` leaves malloc as it is, ``tcmalloc``
    refuses to run without it (``InputError``), ``auto`` takes it where it is found; an LD_PRELOAD or MALLOC_* that is set
    already wins. Call it before torch is loaded.
    """
    verb = arguments[0] if arguments else ""
    if verb in _TRAINING:  # kernels of lengths that do not come again are not kept for good
        os.environ.setdefault(_KERNELS, _KEPT)
    before = os.environ.pop(_STARTED, None)
    if before is not None:  # this is the second start: processes of ours begin as the first one did
        os.environ.pop("LD_PRELOAD")
        if before:
            os.environ["LD_PRELOAD"] = before
        return
    if verb not in (*_TRAINING, *_READING):
        return
    wanted = _wanted(arguments)
    library = None if wanted == "system" else find()
    if wanted == "tcmalloc" and library is None:
        raise InputError(
            _FLAG, "no tcmalloc here", "gperftools' libtcmalloc_minimal", "apt install libtcmalloc-minimal4"
        )
    preset = any(name == "LD_PRELOAD" or name.startswith("MALLOC_") for name in os.environ)
    if library is None or (preset and wanted == "auto") or {"--help", "-h"} & set(arguments):
        return
    environment = {**os.environ, **preloaded(library, os.environ), _STARTED: os.environ.get("LD_PRELOAD", "")}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _wanted(arguments: Sequence[str]) -> str:
    """The flag's value, read before the command line is built; ``InputError`` for another than ``ALLOCATORS``."""
    wanted = "auto"
    for place, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        if name == _FLAG:
            wanted = value if given else next(iter(arguments[place + 1 :]), "")
    if wanted not in ALLOCATORS:
        raise InputError(_FLAG, repr(wanted), f"one of {', '.join(ALLOCATORS)}")
    return wanted
