"""The ARM builds of the C++ kernels under qemu, against float64: ``make qemu-check``.

    python tests/arm/check.py                       # compiled here from the sources into one static program for each kernel
    python tests/arm/check.py --wheel dist/FILE     # the libraries of a wheel, opened by the system's loader

Needs a cross-compiler and an emulator (Debian: ``g++-aarch64-linux-gnu``, ``qemu-user``); says so and stops where they are missing.
Calls are recorded here, with the oracle's results beside them; a program replays them, so nothing of Python is emulated. Once as a
processor with all extensions, which must take the build with BFMMLA, once as one without bfloat16, which must take the plain one.
This is no proof of an ARM machine: memory order and speed are this machine's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "contracts"), str(ROOT / "tests" / "arm")]
import cases  # noqa: E402
import hatch_build  # noqa: E402

COMPILER, EMULATOR, SYSROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
ATTENTION, LINEAR = hatch_build.LIBRARIES
BUILDS = {  # of each processor, the fastest first
    "max": {ATTENTION: "neonbf16,plain", LINEAR: "plain"},
    "cortex-a57": {ATTENTION: "plain", LINEAR: "plain"},
}
DRIVER = ["-std=c++17", "-O2", str(Path(__file__).with_name("driver.cpp"))]


def objects(folder: Path, library: Path) -> list[str]:
    """Every ARM build of a library and what chooses among them, compiled."""
    target = hatch_build.Target.of(COMPILER)
    source, made = ROOT / library.parent / "csrc", []
    jobs = [("dispatch.cpp", "dispatch", [target.define])]
    for name, flags in target.builds(library).items():
        jobs.append(("kernel.cpp", name, [*flags.split(), f"-DKERNEL=kernel_{name}", f'-DKERNEL_NAME="{name}"']))
    for file, name, flags in jobs:
        made.append(str(folder / f"{library.stem}-{name}.o"))
        hatch_build.compiled([COMPILER, *hatch_build.FLAGS.split(), *flags, "-c", str(source / file), "-o", made[-1]])
    return made


def program(folder: Path, library: Path, wheel: Path | None) -> list[str]:
    """The driver of a library, linked to its builds or, with a wheel, to what lies in that; and how it is started."""
    made = folder / f"driver-{library.stem}"
    more = ["-DLINEAR"] if library == LINEAR else []
    if wheel is None:
        hatch_build.compiled([COMPILER, *DRIVER, *more, *objects(folder, library), "-static", "-o", str(made)])
        return [EMULATOR, str(made)]
    with zipfile.ZipFile(wheel) as files:
        placed = folder / library.name
        placed.write_bytes(files.read(library.relative_to("src").as_posix()))
    hatch_build.compiled([COMPILER, *DRIVER, *more, str(placed), f"-Wl,-rpath,{folder}", "-o", str(made)])
    return [EMULATOR, "-L", SYSROOT, str(made)]


def replay(command: list[str], processor: str, library: Path, files: list[Path]) -> bool:
    """Whether every recorded call comes out right on a processor, in the builds that it must have."""
    started = [command[0], "-cpu", processor, *command[1:], BUILDS[processor][library], *map(str, files)]
    return subprocess.run(started, check=False).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheel", type=Path, help="a wheel for linux-aarch64, whose libraries are run")
    given = parser.parse_args()
    missing = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
    if missing:
        print(f"qemu-check skipped: {' and '.join(missing)} not found (Debian: g++-aarch64-linux-gnu, qemu-user)")
        return 0
    os.environ["CXX"] = COMPILER
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {ATTENTION: cases.attention_files(folder), LINEAR: cases.linear_files(folder)}
        right = True
        for library, recorded in files.items():
            command = program(folder, library, given.wheel)
            for processor in BUILDS:
                print(f"{library.name} on {processor}", flush=True)
                right &= replay(command, processor, library, recorded)
            if library == ATTENTION:
                print("The broken twin, which must be found wrong:", flush=True)
                right &= not replay(command, "max", library, [cases.broken_file(folder)])
    print("qemu-check: " + ("all right" if right else "WRONG"))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
