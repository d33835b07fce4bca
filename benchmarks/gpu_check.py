"""Tests every CUDA path and times the cells of the table in docs/attention.md, in at most ten minutes: `make gpu-check`.

What it found is written to --out (test output, the bench's report and data, and summary.json). To be run first wherever a GPU is
found. Without CUDA it says so and ends well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
SECONDS = 600.0
STEPS: tuple[tuple[str, list[str], float], ...] = (
    ("tests", ["-m", "pytest", "-m", "gpu", "-q", "--all", "tests"], 0.6),
    (
        "cells",
        ["-m", "jieyue", "bench", "attention", "--device", "cuda", "--parts", "shares,worn", "--repeats", "5"],
        0.9,
    ),
    ("rivals", ["-m", "jieyue", "bench", "attention", "--device", "cuda", "--parts", "rivals", "--repeats", "3"], 1.0),
)  # name, arguments of Python, the share of the time by which it must have ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cuda")
    out: Path = parser.parse_args().out
    if not torch.cuda.is_available():
        print("gpu-check: skipped, torch sees no CUDA device here")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    begun, steps = time.monotonic(), {}
    for name, arguments, share in STEPS:
        left = begun + share * SECONDS - time.monotonic()
        kept = [*arguments, "--out", str(out / name)] if name != "tests" else arguments
        steps[name] = _run(name, kept, max(left, 10.0), out)
        print(f"gpu-check: {name}: {steps[name]}")
    device = torch.cuda.get_device_properties(0)
    found = {
        "device": device.name,
        "compute_capability": f"{device.major}.{device.minor}",
        "memory_bytes": device.total_memory,
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - begun, 1),
        "steps": steps,
    }
    unfinished = out / "summary.json.part"
    unfinished.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(out / "summary.json")
    print(f"gpu-check: {device.name}, {found['seconds']} seconds, written to {out}")
    return 0 if all(step == "done" for step in steps.values()) else 1


def _run(name: str, arguments: list[str], seconds: float, out: Path) -> str:
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
