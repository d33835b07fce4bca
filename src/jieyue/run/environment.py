"""What jieyue finds here: versions, engines and why, threads, allocator, memory, GPU, extras. The text to paste into an issue."""

from __future__ import annotations

import platform
import re
from importlib import metadata

import torch

from jieyue import __version__
from jieyue.attention import Call, full, why
from jieyue.attention.engines.native import NATIVE, builds
from jieyue.machine import available_bytes, cpu_name, usable_cores
from jieyue.malloc import malloc_name
from jieyue.report import Report, Section

__all__ = ["TESTED", "environment"]

TESTED = {
    "python": ("3.11", "3.12"),
    "torch": ("2.11.0", "2.13.0"),
    "transformers": ("5.17.0", "5.23.0"),
}  # on Linux x86-64; the first and the last version on which the whole test suite ran
_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "tokenizers",
    "numpy",
    "typer",
    "matplotlib",
    "jinja2",
)


def environment() -> Report:
    """The report of this machine and installation; nothing of it names a host, a user or a path.

    Cost: loads torch, no model. Sections: Versions, Machine, Attention, Extras.
    """
    report = Report("jieyue on this machine")
    _versions(report.section("Versions"))
    _machine(report.section("Machine"))
    _engines(report.section("Attention"))
    _extras(report.section("Extras"))
    return report


def _versions(section: Section) -> None:
    section.fact("jieyue", __version__)
    section.fact("python", platform.python_version(), how=_tested("python"))
    for name in _PACKAGES:
        found = _installed(name)
        section.fact(name, found or "missing", how=_tested(name) if name in TESTED else "")


def _tested(name: str) -> str:
    return f"tested: {' and '.join(TESTED[name])}"


def _machine(section: Section) -> None:
    section.fact("system", f"{platform.system()} {platform.machine()}").fact("processor", cpu_name())
    section.fact("cores", usable_cores(), how="that this process may use")
    section.fact("threads", torch.get_num_threads(), how="of torch; OMP_NUM_THREADS changes it")
    section.fact("memory available", available_bytes(), "bytes", how="" if available_bytes() else "not told here")
    section.fact("allocator", malloc_name())
    if not torch.cuda.is_available():
        section.fact(
            "GPU", "none", how="this torch is built without CUDA" if torch.version.cuda is None else "none found"
        )
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(number)
        section.fact(f"GPU {number}", found.name, how=f"compute capability {found.major}.{found.minor}")
        section.fact(f"GPU {number}: memory", found.total_memory, "bytes")


def _engines(section: Section) -> None:
    """For each engine whether it can run a plain call, and the sentence that says why not; the first that can is used."""
    q = torch.zeros(1, 1, 1024, 64)
    refusals = why(Call(q, q, q, full()))
    used = next(name for name, refusal in refusals if refusal is None)
    section.fact("engine", used, how="float32, 1,024 tokens, on the CPU", key=True)
    if used == NATIVE.name:
        fastest, *others = builds()
        section.fact("kernel build", fastest, how=f"the fastest here; also {', '.join(others)}" if others else "")
    section.fact("vector instructions", torch.backends.cpu.get_cpu_capability(), how="as torch sees them")
    section.table(["engine", "can", "why not"], [[name, refusal is None, refusal or ""] for name, refusal in refusals])


def _extras(section: Section) -> None:
    """Every optional extra with what of it is installed and what is missing."""
    rows = []
    try:
        needed = metadata.requires("jieyue") or []
    except metadata.PackageNotFoundError:
        section.note("jieyue is not installed as a package, so its extras are not known.")
        return
    extras: dict[str, list[str]] = {}
    for requirement in needed:
        package, of = re.match(r"[\w.-]+", requirement), re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if package and of and of[1] not in ("dev", "docs"):
            extras.setdefault(of[1], []).append(package[0])
    for extra, packages in sorted(extras.items()):
        found = [f"{package} {version}" for package in packages if (version := _installed(package))]
        missing = [package for package in packages if not _installed(package)]
        rows.append([extra, ", ".join(found), ", ".join(missing), f"pip install 'jieyue[{extra}]'" if missing else ""])
    section.table(["extra", "installed", "missing", "to add it"], rows)


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
