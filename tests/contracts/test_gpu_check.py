"""`make gpu-check` where there is no GPU: what it says then, and, with numbers put in, what it says where there is one."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from jieyue.planning.cuda_memory import Reached
from jieyue.report import Report

ROOT = Path(__file__).parents[2]
MIB = 2**20


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_check"), importlib.import_module("cuda_predictions")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_well(scripts, capsys, monkeypatch, tmp_path):
    for script, arguments in zip(scripts, ([], ["--measure"]), strict=True):
        monkeypatch.setattr(sys, "argv", ["script", *arguments, "--out", str(tmp_path)])
        assert script.main() == 0
    said = capsys.readouterr().out
    assert said == (
        "gpu-check: skipped, torch sees no CUDA device here\ncuda_predictions: skipped, torch sees no CUDA device here\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_steps_share_the_time_and_what_they_found_is_kept(scripts, capsys, tmp_path):
    gpu_check, _ = scripts
    now, given = [0.0], []

    def run(name, arguments, seconds, out):
        given.append((name, arguments, seconds))
        now[0] += {"tests": 100, "memory": 300, "cells": 135, "rivals": 0}[name]
        if name == "memory":
            (out / "memory.txt").write_text("bert-tiny: allocated +0.10 %\n")
        return "done" if name != "cells" else "ended with code 1"

    device = gpu_check.Device("A GPU", "9.0", 80 * 2**30)
    assert gpu_check.check(tmp_path, device, run, lambda: now[0]) == 1
    assert [(name, round(seconds)) for name, _, seconds in given] == [
        ("tests", 330),
        ("memory", 332),
        ("cells", 140),
        ("rivals", 65),
    ]
    assert given[0][1][-1] == "tests" and given[1][1][-2:] == ["--out", str(tmp_path / "memory")]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["device"] == "A GPU" and summary["compute_capability"] == "9.0" and summary["seconds"] == 535.0
    assert summary["steps"] == {"tests": "done", "memory": "done", "cells": "ended with code 1", "rivals": "done"}
    assert "bert-tiny: allocated +0.10 %" in capsys.readouterr().out
    now[0] = 0.0
    late = [0.0, 595.0, 595.0, 595.0, 595.0, 596.0]
    assert gpu_check.check(tmp_path, device, lambda *_: "done", lambda: late.pop(0)) == 1
    assert json.loads((tmp_path / "summary.json").read_text())["steps"]["rivals"] == "no time left"


def test_a_step_that_fails_or_hangs_is_told(scripts, tmp_path):
    gpu_check, _ = scripts
    assert gpu_check.run_step("one", ["-c", "print(5)"], 60, tmp_path) == "done"
    assert (tmp_path / "one.txt").read_text() == "5\n"
    assert gpu_check.run_step("two", ["-c", "raise SystemExit(3)"], 60, tmp_path) == "ended with code 3"
    assert (
        gpu_check.run_step("three", ["-c", "import time; time.sleep(60)"], 0.2, tmp_path) == "not ended after 0 seconds"
    )


def test_measured_memory_is_told_beside_what_was_promised(scripts, capsys, monkeypatch, tmp_path):
    _, predictions = scripts
    kept = {
        one.name: {kind: {"allocated_bytes": (1 + at) * MIB, "reserved_bytes": 40 * MIB} for kind in predictions.KINDS}
        for at, one in enumerate(predictions.CONFIGURATIONS)
    }
    monkeypatch.setattr(predictions, "read", lambda: kept)
    first, asked = predictions.CONFIGURATIONS[0], []

    def measure(configuration):
        asked.append(configuration)
        if configuration.model == "t5-tiny":
            raise RuntimeError("CUDA error: out of memory")
        promised = Reached(**kept[configuration.name]["9.0"])
        return Reached(promised.allocated_bytes, promised.reserved_bytes + (8 * MIB if configuration == first else 0))

    assert predictions.measure_all(tmp_path, (10, 0), "A GPU", measure) == 1
    assert [one.name for one in asked] == list(kept)
    rows = [json.loads(line) for line in (tmp_path / "cuda-memory.jsonl").read_text().splitlines()]
    promised = kept[first.name]["9.0"]["reserved_bytes"]
    assert rows[0]["allocated_error"] == 0 and rows[0]["reserved_error"] == promised / (promised + 8 * MIB) - 1
    failed = [row for row in rows if "failed" in row]
    assert {row["name"].split(",")[0] for row in failed} == {"t5-tiny"} and "out of memory" in failed[0]["failed"]
    told = Report.load(tmp_path / "cuda-memory.json").markdown()
    assert f"{len(rows) - len(failed)} of {len(rows)}" in told and "A GPU" in told
    said = capsys.readouterr().out
    assert f"{first.name}: allocated +0.00%, reserved {rows[0]['reserved_error']:+.2%} from what was measured" in said


def test_predictions_that_are_kept_make_sense(scripts):
    """Before any GPU has seen them. What is reserved is in segments; a later GPU's differs by cuBLAS's workspaces."""
    _, predictions = scripts
    names = [one.name for one in predictions.CONFIGURATIONS]
    kept = predictions.read()
    assert len(set(names)) == 20 and set(kept) == set(names)
    for found in kept.values():
        for kind in predictions.KINDS:
            allocated, reserved = found[kind]["allocated_bytes"], found[kind]["reserved_bytes"]
            assert reserved >= allocated > 0 and allocated % 512 == 0 and reserved % (2 * MIB) == 0
        assert found["9.0"]["allocated_bytes"] > found["8.0"]["allocated_bytes"]
