"""The benchmark of linear attention at toy sizes: its arithmetic, its rivals and the text of its report."""

import pytest
import torch

from jieyue.bench.attention_rows import AttentionBench
from jieyue.bench.linear_attention import bench_linear, operations
from jieyue.bench.linear_rivals import LINEAR_RIVALS, linear
from jieyue.bench.rival_rows import RivalRow, crossing
from jieyue.report import Report


def test_operations_are_counted_as_the_module_says():
    forward, both = operations(1000, causal=False)
    assert (forward, both) == (2 * 1000 * 12 * 2 * 64 * 64, 3 * forward)
    forward, both = operations(1000, causal=True)
    assert forward == 1000 * 12 * (2 * 64 * 128 + 4 * 64 * 64)
    assert both - forward == 1000 * 12 * (2 * 64 * 5 * 64 + 8 * 64 * 64)


@pytest.mark.parametrize("causal", [True, False])
def test_rivals_compute_the_same_thing(causal):
    q, k, v = (torch.randn(1, 2, 50, 8, dtype=torch.float64) for _ in range(3))
    ours = linear("elu", causal)(q, k, v)
    found = {}
    for rival in LINEAR_RIVALS:
        made = rival.make(causal, 50, "cpu")
        if not isinstance(made, str) and rival.name != "SDPA, full":
            found[rival.name] = made(q, k, v)
    assert set(found) == ({"einsum", "cumsum"} if causal else {"einsum"})
    assert all(torch.allclose(x, ours, atol=1e-12) for x in found.values())


def test_the_crossover_lies_between_the_points():
    assert crossing({100: 1.0, 400: 4.0}, {100: 2.0, 400: 2.0}) == pytest.approx(200, abs=1)
    assert crossing({100: 1.0}, {100: 2.0}) is None
    assert crossing({100: 3.0, 200: 9.0}, {100: 2.0, 200: 2.0}) == 100


def test_the_report_of_a_small_run():
    found = bench_linear(
        repeats=1,
        goal_length=128,
        lengths=(64,),
        state_contexts=(64, 128),
        model_contexts={"linear(elu)": (8, 400), "full()": (8, 400)},
    )
    report = Report("toy")
    found.add_to(report.section("Linear attention"))
    text = report.text()
    for part in ("matrix product", "within 4 GiB", "einsum", "cumsum", "flash-linear-attention", "runs on CUDA only"):
        assert part in text, part
    held = {(r.what.split(",")[0], r.context): r.held_bytes for r in found.decoding if "model" in r.what}
    assert held["linear(elu)", 8] == held["linear(elu)", 400] and held["full()", 8] < held["full()", 400]


def test_when_each_pays_is_read_off_the_curves():
    rows = [RivalRow("local(8)", n, "SDPA, full", both_seconds=n**2 * 1e-6) for n in (100, 400)]
    rows += [RivalRow("local(8)", n, "local(8)", both_seconds=n * 2e-4) for n in (100, 400)]
    rows += [RivalRow("linear(elu)", n, "linear(elu)", both_seconds=n * 1e-5) for n in (100, 400)]
    text = AttentionBench("toy", "cpu", 1, 1, curves=tuple(rows)).report().markdown()
    assert "| local(8) | 200 | 400 | 2×" in text and "| linear(elu) | ≤ 100 | 400 | 40×" in text
