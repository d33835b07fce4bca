"""What malloc does with freed memory: keeps it, gives it back to the system, or keeps it below a wall.

tcmalloc keeps freed blocks of pages, so that its heap grows by whatever fits none of them; told to give each back at once, it has
every activation's pages touched anew, which may cost half of an update's time again. Below a wall it keeps them until the
heap would grow beyond: then it gives back as much of what is free as is asked for, and refuses where what is live has no room.
glibc keeps blocks below a threshold or gives all back at once, and knows no wall.
"""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jieyue.machine import resident_bytes

__all__ = [
    "fix_malloc_threshold",
    "give_back_beyond",
    "give_back_freed_memory",
    "keep_freed_memory",
    "malloc_name",
    "release_free_memory",
    "walled",
]

_DECOMMIT, _LIMIT = b"tcmalloc.aggressive_memory_decommit", b"tcmalloc.heap_limit_mb"
_COMMITTED = b"tcmalloc.pageheap_committed_bytes"


def fix_malloc_threshold(num_bytes: int = 64 * 1024) -> bool:
    """Makes glibc give blocks of at least ``num_bytes`` back to the system when they are freed; False on other systems.

    glibc raises its threshold on its own up to 32 MiB and keeps freed blocks below it, so that a process holds up to
    twice what its tensors need. With a fixed threshold the resident set follows the tensors. Call it at start.
    """
    mallopt = _c_function("mallopt")
    return mallopt is not None and mallopt(-3, num_bytes) == 1  # M_MMAP_THRESHOLD


def give_back_freed_memory() -> bool:
    """From now on malloc gives freed blocks back to the system at once, for time; False where it cannot be told to.

    tcmalloc keeps blocks of pages otherwise, glibc whatever is below its threshold (``fix_malloc_threshold``).
    """
    set_property = _c_function("MallocExtension_SetNumericProperty")
    if set_property is not None:
        return bool(set_property(_DECOMMIT, ctypes.c_size_t(1)))
    return fix_malloc_threshold()


def keep_freed_memory() -> bool:
    """Takes ``fix_malloc_threshold`` back: glibc keeps freed blocks of up to 32 MiB, as it comes to do by itself; False elsewhere."""
    mallopt = _c_function("mallopt")
    limits = ((-3, 32 * 2**20), (-1, 64 * 2**20))  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    return mallopt is not None and all(mallopt(which, num_bytes) == 1 for which, num_bytes in limits)


def give_back_beyond(num_bytes: int) -> bool:
    """Where the resident set is above ``num_bytes``, tcmalloc gives so much of what it holds free back; False where it need not.

    Called between updates: batches of many shapes leave pieces that fit nothing any more, and a process grows by them for
    a long time. glibc is left alone, as it would keep giving back (``release_free_memory``) and take the time for it. Cost: reading
    the resident set, some 50 microseconds.
    """
    release = _c_function("MallocExtension_ReleaseToSystem")
    beyond = 0 if release is None else resident_bytes() - num_bytes
    if release is None or beyond <= 0:
        return False
    release(ctypes.c_size_t(beyond))
    return True


def release_free_memory() -> bool:
    """Gives what malloc holds but nobody uses back to the system; False where the C library offers no such call."""
    release = _c_function("MallocExtension_ReleaseFreeMemory")
    if release is not None:
        release()
        return True
    trim = _c_function("malloc_trim")
    return trim is not None and trim(0) >= 0


def malloc_name() -> str:
    """Which malloc serves this process, as far as its loaded libraries tell: tcmalloc, jemalloc, mimalloc, glibc or the system's."""
    try:
        loaded = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"the system's ({platform.system()})"
    for name in ("tcmalloc", "jemalloc", "mimalloc"):
        if re.search(rf"/lib{name}[\w.-]*\.so", loaded):
            return name
    return "glibc" if platform.libc_ver()[0] == "glibc" else "the system's"


@contextmanager
def walled(num_bytes: int | None) -> Iterator[None]:
    """Within, the resident set stays below ``num_bytes`` and tcmalloc keeps what is freed; None and other mallocs: nothing is done.

    Memory for which there is no room is refused, which torch raises as out of memory. Outside what is freed goes back at once, as
    ``give_back_freed_memory`` has it; of what was kept within, a sixteenth of the heap goes back at the end where the wall is so near,
    so that what is done outside has room. Cost: reading the resident set twice.
    """
    set_property = _c_function("MallocExtension_SetNumericProperty")
    get_property = _c_function("MallocExtension_GetNumericProperty")
    committed = ctypes.c_size_t()
    if num_bytes is None or set_property is None or not get_property(_COMMITTED, ctypes.byref(committed)):
        yield
        return
    heap = num_bytes - max(0, resident_bytes() - committed.value)  # the rest are libraries and what they mapped
    set_property(_DECOMMIT, ctypes.c_size_t(0))
    set_property(_LIMIT, ctypes.c_size_t(max(1, heap >> 20)))  # 0 is no limit
    try:
        yield
    finally:
        set_property(_LIMIT, ctypes.c_size_t(0))
        set_property(_DECOMMIT, ctypes.c_size_t(1))
        give_back_beyond(num_bytes - max(0, heap) // 16)


def _c_function(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    except OSError:
        return None
