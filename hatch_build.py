"""Builds the C++ kernels with whatever compiler is at hand, inside the package build or by ``python hatch_build.py``.

Each kernel (src/jieyue/attention/csrc, src/jieyue/linear/csrc) is compiled once for each instruction set and linked into one
plain C library (``libband.so``, ``liblinear.so``), which picks a build at run time. It needs libc alone, so a wheel with them is
``py3-none-<platform>``; its manylinux version is read off the library. Without a compiler, or where compiling fails, the
wheel is ``py3-none-any`` and the package uses its other engines.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # `python hatch_build.py` needs no hatchling
    BuildHookInterface = object

LIBRARIES = (
    Path("src/jieyue/attention/libband.so"),
    Path("src/jieyue/linear/liblinear.so"),
)  # sources: csrc beside each
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -fno-math-errno -fno-trapping-math -ffp-contract=fast"
BUILDS = {"plain": ""}
AVX512 = "-mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl"
X86_BUILDS = {"avx2": "-mavx2 -mfma", "avx512": AVX512, "avx512bf16": f"{AVX512} -mavx512bf16"}


class BuildFailed(Exception):
    """No compiler, or the compiler's own words."""


class BandKernelHook(BuildHookInterface):
    """Adds the libraries to wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        try:
            built = [build(root, library) for library in LIBRARIES]
        except BuildFailed as failure:
            for library in LIBRARIES:
                (root / library).unlink(missing_ok=True)
            self.app.display_warning(f"the kernels are not built, other engines will be used: {failure}")
            return
        build_data["artifacts"] += [library.as_posix() for library in LIBRARIES]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(built)}"


def find_compiler() -> str:
    """The compiler named by CXX, or the first that is found."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        if shutil.which(name):
            return name
    raise BuildFailed("no C++ compiler found (CXX, g++, clang++, c++)")


def compiled(command: list[str]) -> str:
    """Output of a compiler command."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildFailed(f"{' '.join(command)}\n{done.stderr.strip()}")
    return done.stdout


def build(root: Path, library: Path, extra_flags: str = "") -> Path:
    """Compiles a library under `root` (a few seconds), and puts it in its place when it is whole."""
    compiler = find_compiler()
    x86 = compiled([compiler, "-dumpmachine"]).startswith(("x86_64", "amd64"))
    builds = BUILDS | (X86_BUILDS if x86 else {})
    with tempfile.TemporaryDirectory() as folder:

        def compile_one(source: str, flags: str, to: str) -> str:
            target = str(Path(folder) / to)
            command = [compiler, *FLAGS.split(), *flags.split(), *extra_flags.split()]
            compiled([*command, "-c", str(root / library.parent / "csrc" / source), "-o", target])
            return target

        with ThreadPoolExecutor() as pool:
            jobs = [pool.submit(compile_one, "dispatch.cpp", "-DX86_BUILDS" if x86 else "", "dispatch.o")]
            for name, flags in builds.items():
                define = f'-DKERNEL=kernel_{name} -DKERNEL_NAME="{name}"'
                jobs.append(pool.submit(compile_one, "kernel.cpp", f"{flags} {define}", f"{name}.o"))
            objects = [job.result() for job in jobs]
        placed = root / library
        partial = placed.with_name(placed.name + ".part")
        linking = ["-Wl,--as-needed"] if sys.platform == "linux" else []
        compiled([compiler, "-shared", *linking, *extra_flags.split(), *objects, "-o", str(partial)])
        partial.replace(placed)
    return placed


def platform_tag(libraries: list[Path]) -> str:
    """Where the libraries run: on Linux, from the youngest glibc symbol version that they ask for."""
    system = re.sub(r"[-.]", "_", sysconfig.get_platform())
    if sys.platform != "linux":
        return system
    versions = [found for path in libraries for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", path.read_bytes())]
    if not versions:
        return system
    major, minor = max((2, 17), *((int(a), int(b)) for a, b in versions))
    return f"manylinux_{major}_{minor}_{platform.machine()}"


if __name__ == "__main__":
    try:
        for each in LIBRARIES:
            sys.stdout.write(f"{build(Path(__file__).parent, each, ' '.join(sys.argv[1:]))}\n")
    except BuildFailed as failure:
        sys.exit(str(failure))
