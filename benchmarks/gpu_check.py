"""Tests every CUDA path, compares what trainings hold with what was predicted, and times the cells of the table in
docs/attention.md, in at most ten minutes: `make gpu-check`.

What it found is written to --out (test output, the memory of trainings predicted and measured, the bench's report and data, and
summary.json). To be run first wherever a GPU is found. Without CUDA it says so and ends well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[1]
SECONDS, LEAST = 600.0, 10.0
BENCH = ["-m", "jieyue", "bench", "attention", "--device", "cuda"]
STEPS: tuple[tuple[str, list[str], float], ...] = (
    ("tests", ["-m", "pytest", "-m", "gpu", "-q", "--all", "tests"], 0.55),
    ("memory", ["benchmarks/cuda_predictions.py", "--measure"], 0.72),
    ("cells", [*BENCH, "--parts", "shares,worn", "--repeats", "5"], 0.9),
    ("rivals", [*BENCH, "--parts", "rivals", "--repeats", "3"], 1.0),
)  # name, arguments of Python, the share of the time by which it must have ended
SHOWN = "memory"  # its table is printed as well


class Device(NamedTuple):
    """What is told of the GPU."""

    name: str
    compute_capability: str
    memory_bytes: int


def present() -> Device | None:
    """The first GPU, None without CUDA."""
    if not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_properties(0)
    return Device(device.name, f"{device.major}.{device.minor}", device.total_memory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cuda")
    return check(parser.parse_args().out, present())


def check(
    out: Path,
    device: Device | None,
    run: Callable[[str, list[str], float, Path], str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """All steps within ``SECONDS``, each by its share; 0 when all are done, 1 when one is not, 0 with a line without a GPU."""
    if device is None:
        print("gpu-check: skipped, torch sees no CUDA device here")
        return 0
    run = run_step if run is None else run
    out.mkdir(parents=True, exist_ok=True)
    begun, steps = clock(), {}
    for name, arguments, share in STEPS:
        left = begun + share * SECONDS - clock()
        if left < LEAST:
            steps[name] = "no time left"
        else:
            kept = [*arguments, "--out", str(out / name)] if name != "tests" else arguments
            steps[name] = run(name, kept, left, out)
        print(f"gpu-check: {name}: {steps[name]}")
        if name == SHOWN and (out / f"{name}.txt").is_file():
            print((out / f"{name}.txt").read_text(encoding="utf-8").rstrip())
    found = device._asdict() | {"torch": torch.__version__, "seconds": round(clock() - begun, 1), "steps": steps}
    unfinished = out / "summary.json.part"
    unfinished.write_text(json.dumps({"device": found.pop("name"), **found}, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(out / "summary.json")
    print(f"gpu-check: {device.name}, {found['seconds']} seconds, written to {out}")
    return 0 if all(step == "done" for step in steps.values()) else 1


def run_step(name: str, arguments: list[str], seconds: float, out: Path) -> str:
    """Runs one step, its output in a file; "done", or how it ended."""
    with (out / f"{name}.txt").open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                [sys.executable, *arguments],
                cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=file, stderr=subprocess.STDOUT,
                timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"not ended after {seconds:.0f} seconds"
    return "done" if done.returncode == 0 else f"ended with code {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())
