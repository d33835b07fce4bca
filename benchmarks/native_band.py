"""Share of the dense flash kernel's rate that the native engine reaches, per pattern: rates of visible pairs in one run.

    PYTHONPATH=src python benchmarks/native_band.py [--threads 2] [--repeats 7] [--rank 0] [--only local]

B = 1, H = 12, D = 64, float32, [B, N, H, D] memory. The dense flash kernel runs at n = 2048 between any two runs of the
native engine; a share is the median over repeats of the ratio of the two rates within a repeat.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from jieyue.attention.engines.native import Native, builds

HEADS, DEPTH, DENSE_ROWS = 12, 64, 2048


class Band(NamedTuple):
    step: int
    lo: int | None
    hi: int | None


def local(window: int) -> list[Band]:
    return [Band(1, -window, window)]


def atrous(rate: int) -> list[Band]:
    return [Band(rate, None, None)]


def sparse(rate: int) -> list[Band]:
    return [Band(1, 1 - rate, rate - 1), Band(rate, None, -rate), Band(rate, rate, None)]


def causal(bands: list[Band]) -> list[Band]:
    return [Band(b.step, max(b.lo or 0, 0), b.hi) for b in bands if b.hi is None or b.hi >= 0]


CELLS: dict[str, tuple[list[Band], int, float, float]] = {  # bands, n, goals forward and forward + backward
    "local(128)": (local(128), 8192, 0.80, 0.77),
    "local(256)": (local(256), 16384, 0.90, 0.86),
    "atrous(16)": (atrous(16), 16384, 0.92, 0.90),
    "sparse(64)": (sparse(64), 16384, 0.75, 0.70),
    "causal local(128)": (causal(local(128)), 8192, 0.70, 0.67),
    "causal local(256)": (causal(local(256)), 16384, 0.80, 0.76),
    "causal atrous(16)": (causal(atrous(16)), 16384, 0.82, 0.80),
    "causal sparse(64)": (causal(sparse(64)), 16384, 0.65, 0.60),
    "full": ([Band(1, None, None)], 2048, 0.0, 0.0),
    "causal full": ([Band(1, 0, None)], 2048, 0.0, 0.0),
}


def pairs(bands: list[Band], n: int) -> int:
    """Visible pairs of one head."""
    total = 0
    for band in bands:
        lo = 1 - n if band.lo is None else band.lo
        hi = n - 1 if band.hi is None else band.hi
        total += sum(n - abs(d) for d in range(-(-lo // band.step) * band.step, hi + 1, band.step))
    return total


def inputs(n: int, count: int) -> list[torch.Tensor]:
    return [torch.randn(1, n, HEADS, DEPTH).transpose(1, 2) for _ in range(count)]


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def dense_calls() -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward and backward of the stock kernel."""
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    q, k, v, grad = inputs(DENSE_ROWS, 4)
    out, lse = forward(q, k, v, 0.0, False)
    return lambda: forward(q, k, v, 0.0, False), lambda: backward(grad, q, k, v, out, lse, 0.0, False)


def native_calls(engine: Native, bands: list[Band], n: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same of ours; what autograd would add, delta, is part of the backward."""
    q, k, v, grad = inputs(n, 4)
    scale = DEPTH**-0.5
    out, lse = engine.forward_union(q, k, v, bands, scale=scale)

    def backward() -> Any:
        return engine.backward_union(grad, q, k, v, lse, engine.delta(grad, out), bands, scale=scale)

    return lambda: engine.forward_union(q, k, v, bands, scale=scale), backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rank", type=int, default=0, help="which build, 0 = the fastest")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    engine, dense, dense_pairs = Native(options.rank), dense_calls(), DENSE_ROWS**2
    say = sys.stdout.write
    say(f"build {builds()[options.rank]}, {options.threads} threads, {options.repeats} repeats\n")
    say(
        "| cell | n | forward GF/s | share | goal | forward+backward GF/s | share | goal |\n|---|---|---|---|---|---|---|---|\n"
    )
    for name, (bands, n, *goals) in CELLS.items():
        if options.only not in name:
            continue
        native, visible = native_calls(engine, bands, n), pairs(bands, n)
        repeats = [
            [seconds(run) for run in (dense[0], native[0], dense[1], native[1])] for _ in range(options.repeats + 1)
        ]
        del repeats[0]
        ratio = visible / dense_pairs
        forward = statistics.median(r[0] / r[1] * ratio for r in repeats)
        both = statistics.median((r[0] + r[2]) / (r[1] + r[3]) * ratio for r in repeats)
        rates = [4 * HEADS * DEPTH * visible / statistics.median(r[1] for r in repeats) / 1e9]
        rates += [14 * HEADS * DEPTH * visible / statistics.median(r[1] + r[3] for r in repeats) / 1e9]
        say(
            f"| {name} | {n} | {rates[0]:.0f} | {forward:.2f} | {goals[0]:.2f} | {rates[1]:.0f} | {both:.2f} | {goals[1]:.2f} |\n"
        )


if __name__ == "__main__":
    main()
