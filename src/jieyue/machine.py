"""What this machine has, asked when needed and never at import: cores, memory, device, versions, resident bytes."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = [
    "available_bytes",
    "cpu_name",
    "describe",
    "fix_malloc_threshold",
    "give_back_beyond",
    "give_back_freed_memory",
    "keep_freed_memory",
    "malloc_name",
    "peak_resident_bytes",
    "release_free_memory",
    "resident_bytes",
    "usable_cores",
]


def usable_cores() -> int:
    """Cores that this process may run on (affinity respected)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def cpu_name() -> str:
    """The processor's own name, or the architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _proc_status(key: str) -> int | None:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return None


def resident_bytes() -> int:
    """Resident set of this process now (VmRSS); its peak where the system tells no more."""
    now = _proc_status("VmRSS")
    return peak_resident_bytes() if now is None else now


def peak_resident_bytes() -> int:
    """Highest resident set of this process so far (VmHWM)."""
    high = _proc_status("VmHWM")
    if high is not None:
        return high
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
        return bool(set_property(b"tcmalloc.aggressive_memory_decommit", ctypes.c_size_t(1)))
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


def _c_function(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    except OSError:
        return None


def available_bytes() -> int | None:
    """Memory that could be taken without swapping (MemAvailable), or None where the system does not tell."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def describe() -> dict[str, str | int]:
    """Facts for reports: processor, cores, memory, device, Python and package versions. No host or user name."""
    facts: dict[str, str | int] = {
        "processor": cpu_name(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    available = available_bytes()
    if available is not None:
        facts["available_bytes"] = available
    for package in ("torch", "transformers", "jieyue"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if "torch" in sys.modules:
        import torch

        facts["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            facts["device"] = torch.cuda.get_device_name()
    return facts
