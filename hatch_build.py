"""Builds the C++ kernels with whatever compiler is at hand, inside the package build or by ``python hatch_build.py``.

CXX names a compiler, a cross-compiler too (``CXX=aarch64-linux-gnu-g++``): the target is the compiler's, wheels are tagged with it.
Each kernel (src/jieyue/attention/csrc, src/jieyue/linear/csrc) is compiled once for each instruction set and linked into one
plain C library (``libband.so``, ``liblinear.so``), which picks a build at run time. It needs libc alone, so a wheel with them is
``py3-none-<platform>``; its manylinux version is read off the library. Without a compiler, or where compiling fails, the
wheel is ``py3-none-any`` and the package uses its other engines.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # `python hatch_build.py` needs no hatchling
    BuildHookInterface = object

LIBRARIES = (
    Path("src/jieyue/attention/libband.so"),
    Path("src/jieyue/linear/liblinear.so"),
)  # sources: csrc beside each; the ending is the same everywhere, they are opened by their path
FLAGS = (
    "-std=c++17 -O3 -fvisibility=hidden -fno-exceptions -fno-rtti -fno-math-errno -fno-trapping-math -ffp-contract=fast"
)
AVX512 = "-mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl"
BUILDS = {
    "x86_64": {"plain": "", "avx2": "-mavx2 -mfma", "avx512": AVX512, "avx512bf16": f"{AVX512} -mavx512bf16"},
    "aarch64": {"plain": "", "neonbf16": "-march=armv8.2-a+bf16"},  # plain: NEON
}
PAIRED = ("avx512bf16", "neonbf16")  # products of bfloat16 pairs: attention's alone


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
            self.app.display_warning(
                f"CPU engine: composed (stock torch operations); the kernels are not built: {failure}"
            )
            return
        self.app.display_info(engine_line())
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


class Target(NamedTuple):
    """What a compiler makes code for: x86_64, aarch64 or another machine, and linux, darwin, windows or another system."""

    machine: str
    system: str

    @classmethod
    def of(cls, compiler: str) -> Target:
        triple = compiled([compiler, "-dumpmachine"]).strip().lower()
        machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(triple.split("-")[0], triple.split("-")[0])
        systems = {"linux": "linux", "darwin": "darwin", "mingw": "windows", "windows": "windows"}
        return cls(machine, next((system for word, system in systems.items() if word in triple), triple))

    def builds(self, library: Path) -> dict[str, str]:
        """Names of the builds of a library with their flags."""
        found = BUILDS.get(self.machine, {"plain": ""})
        if self.system != "linux" and self.machine == "aarch64":  # the processor is asked in Linux's way
            found = {"plain": ""}
        return {name: flags for name, flags in found.items() if name not in PAIRED or "attention" in library.parts}

    @property
    def flags(self) -> list[str]:
        """No -fPIC for Windows, where all code is; there GCC leaves vectors on the stack unaligned, so moves must allow it."""
        if self.system != "windows":
            return ["-fPIC"]
        return ["-Wa,-muse-unaligned-vector-move"] if self.machine == "x86_64" else []

    @property
    def link_flags(self) -> list[str]:
        """No OpenMP anywhere: the library is handed torch's own runtime (on macOS clang's) or Python's threads, never a second."""
        return {"linux": ["-Wl,--as-needed"], "windows": ["-static"]}.get(self.system, [])

    @property
    def define(self) -> str:
        """Which builds dispatch.cpp chooses among."""
        if self.machine == "x86_64":
            return "-DX86_BUILDS"
        return "-DARM_BUILDS" if (self.machine, self.system) == ("aarch64", "linux") else ""


def build(root: Path, library: Path, extra_flags: str = "", to: Path | None = None) -> Path:
    """Compiles a library under `root` (a few seconds), and puts it in its place (or `to`) when it is whole."""
    compiler = find_compiler()
    target = Target.of(compiler)
    with tempfile.TemporaryDirectory() as folder:

        def compile_one(source: str, flags: str, to: str) -> str:
            made = str(Path(folder) / to)
            command = [compiler, *FLAGS.split(), *target.flags, *flags.split(), *extra_flags.split()]
            compiled([*command, "-c", str(root / library.parent / "csrc" / source), "-o", made])
            return made

        with ThreadPoolExecutor() as pool:
            jobs = [pool.submit(compile_one, "dispatch.cpp", target.define, "dispatch.o")]
            for name, flags in target.builds(library).items():
                define = f'-DKERNEL=kernel_{name} -DKERNEL_NAME="{name}"'
                jobs.append(pool.submit(compile_one, "kernel.cpp", f"{flags} {define}", f"{name}.o"))
            objects = [job.result() for job in jobs]
        placed = to or root / library
        partial = placed.with_name(placed.name + ".part")
        compiled([compiler, "-shared", *target.link_flags, *extra_flags.split(), *objects, "-o", str(partial)])
        partial.replace(placed)
    return placed


def engine_line() -> str:
    """Which engine this platform gets."""
    try:
        target = Target.of(find_compiler())
    except BuildFailed as failure:
        return f"CPU engine: composed (stock torch operations); no native kernel: {failure}"
    names = ", ".join(target.builds(LIBRARIES[0]))
    return f"CPU engine: native, for {target.machine} on {target.system}, builds {names}; the fastest is chosen at run time"


def platform_tag(libraries: list[Path]) -> str:
    """Where the libraries run: on Linux, from the youngest glibc symbol version that they ask for."""
    target = Target.of(find_compiler())
    if target.system == "windows":
        return {"x86_64": "win_amd64", "aarch64": "win_arm64"}[target.machine]
    if target.system != "linux":
        return re.sub(r"[-.]", "_", sysconfig.get_platform())
    versions = [found for path in libraries for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", path.read_bytes())]
    if not versions:
        return f"linux_{target.machine}"
    major, minor = max((2, 17), *((int(a), int(b)) for a, b in versions))
    return f"manylinux_{major}_{minor}_{target.machine}"


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{engine_line()}\n")
        for each in LIBRARIES:
            sys.stdout.write(f"{build(Path(__file__).parent, each, ' '.join(sys.argv[1:]))}\n")
    except BuildFailed as failure:
        sys.exit(str(failure))
