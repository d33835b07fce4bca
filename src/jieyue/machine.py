"""What this machine has, asked when needed and never at import: cores, memory, device, versions, resident bytes."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path

__all__ = [
    "available_bytes",
    "cpu_name",
    "describe",
    "peak_resident_bytes",
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
