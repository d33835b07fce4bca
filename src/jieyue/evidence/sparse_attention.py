"""Article 1: are atrous, local and sparse attention faster and leaner than full attention, and by how much?

Forward and backward pass of one layer's attention, B = 1, H = 2, D = 64, float32. Contestants take turns in one process:

- ours: ``attend`` with the pattern
- the matrix: full attention as the article has it, softmax of an N × N matrix
- the kernel: full attention by torch's dense flash kernel, which keeps no such matrix: the harder rival
- gathered (local alone): every query's window of keys and values copied out, as the article's code does it

Seconds are medians of a cell's repeats, bytes the peak beside the inputs; factors are paired by seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jieyue.attention import attend, parse
from jieyue.json_values import Facts
from jieyue.report import Estimate, Picture
from jieyue.timer import median_seconds, peak_bytes

from .claims import Cell, Claim, Pairs, Place, Scale, Verdict
from .judging import by_seed, decide, factor, mean

__all__ = ["CLAIMS"]

HEADS, DEPTH, REPEATS = 2, 64, 3
LENGTHS: dict[Scale, tuple[int, ...]] = {
    "minutes": (1024, 2048, 4096),
    "hour": (1024, 2048, 4096, 8192),
    "full": (1024, 2048, 4096, 8192),
}
OURS, MATRIX, KERNEL, GATHERED = "ours", "the matrix", "the kernel", "gathered"
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def _cells(key: str, pattern: str) -> Callable[[Scale, Sequence[int]], list[Cell]]:
    def cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
        return [Cell(key, {"pattern": pattern, "n": n}, seed) for seed in seeds for n in LENGTHS[scale]]

    return cells


def _measure(cell: Cell, place: Place) -> Facts:
    text, n = str(cell.settings["pattern"]), int(str(cell.settings["n"]))
    torch.manual_seed(cell.seed)
    q, k, v, grad = (torch.randn(1, n, HEADS, DEPTH).transpose(1, 2) for _ in range(4))
    inputs = tuple(x.requires_grad_() for x in (q, k, v))
    calls = {name: _backward(function, inputs, grad) for name, function in _contestants(text).items()}
    seconds = median_seconds(calls, repeats=REPEATS)
    numbers: Facts = {}
    for name, call in calls.items():
        numbers[f"{name} seconds"] = statistics.median(seconds[name])
        numbers[f"{name} bytes"] = peak_bytes(call)
    return numbers


def _backward(function: Attention, inputs: tuple[Tensor, ...], grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def _contestants(text: str) -> dict[str, Attention]:
    pattern = parse(text)
    found: dict[str, Attention] = {
        OURS: lambda q, k, v: _first(attend(q, k, v, pattern)),
        MATRIX: lambda q, k, v: torch.softmax(q @ k.mT * DEPTH**-0.5, -1) @ v,
        KERNEL: torch.nn.functional.scaled_dot_product_attention,
    }
    if text.startswith("local("):
        window = int(text[len("local(") : -1])
        found[GATHERED] = lambda q, k, v: gathered(q, k, v, window)
    return found


def _first(out: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    assert isinstance(out, Tensor)
    return out


def gathered(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Local attention as the article computes it: [B, H, N, D] -> the same, by copies [B, H, N, 2·window + 1, D].

    Cost: O(N·window·D) time and memory. Keys beyond the ends are left out (the article's code lets them in).
    """
    n = q.shape[2]
    places = torch.arange(n)[:, None] + torch.arange(-window, window + 1)
    inside = (places >= 0) & (places < n)
    places = places.clamp(0, n - 1)
    logits = torch.einsum("bhnd,bhnwd->bhnw", q, k[:, :, places]) * q.shape[3] ** -0.5
    weights = torch.softmax(logits.masked_fill(~inside, float("-inf")), -1)
    return torch.einsum("bhnw,bhnwd->bhnd", weights, v[:, :, places])


def _judge(rate: int | None) -> Callable[[Pairs], Verdict]:
    """Faster and leaner than both at the longest N; ``rate``: by half of it at least, against the matrix."""

    def judge(results: Pairs) -> Verdict:
        lengths = sorted({int(str(cell.settings["n"])) for cell, _ in results})
        rows = [_row(results, n) for n in lengths]
        faster, last = {row.n: row.faster_than_matrix for row in rows}, rows[-1]
        least = rate / 2 if rate else 1.0
        measured = {
            f"at {lengths[-1]:,} tokens, times as fast as the matrix": (last.faster_than_matrix, least),
            "times as fast as the kernel": (last.faster_than_kernel, 1.0),
            "times as lean as the matrix": (last.leaner_than_matrix, least),
            "times as lean as the kernel": (last.leaner_than_kernel, 1.0),
        }
        gains = {name: gain for name, (gain, _) in measured.items()}
        borders = {name: border for name, (_, border) in measured.items()}
        columns: list[str | tuple[str, str]] = [
            "N", ("ours", "seconds"), ("peak", "bytes"), ("faster than the matrix", "x"), ("than the kernel", "x"),
            ("leaner than the matrix", "x"), ("than the kernel ", "x"), ("gathered, times the matrix's seconds", "x"),
        ]  # fmt: skip
        picture = Picture.lines(
            "Times as fast as full attention by the matrix", {"ours": faster}, x=("N", "tokens"), y=("factor", "x"), log="xy",
            rules={"rate": float(rate)} if rate else {"equal": 1.0},
        )  # fmt: skip
        return decide(gains, borders, unit="x", columns=columns, rows=rows, lines=picture)

    return judge


class _Row(NamedTuple):
    """A row of the table: ours, and how many times the others' seconds and bytes are ours."""

    n: int
    seconds: Estimate
    num_bytes: float
    faster_than_matrix: Estimate
    faster_than_kernel: Estimate
    leaner_than_matrix: Estimate
    leaner_than_kernel: Estimate
    gathered: Estimate | None


def _row(results: Pairs, n: int) -> _Row:
    def of(name: str) -> dict[int, float]:
        return by_seed(results, name, n=n)

    def times(other: str, what: str) -> Estimate:
        return factor(of(f"{other} {what}"), of(f"{OURS} {what}"))

    gathered_too = any(f"{GATHERED} seconds" in numbers for _, numbers in results)
    return _Row(
        n, mean(of(f"{OURS} seconds")), statistics.mean(of(f"{OURS} bytes").values()),
        times(MATRIX, "seconds"), times(KERNEL, "seconds"), times(MATRIX, "bytes"), times(KERNEL, "bytes"),
        factor(of(f"{GATHERED} seconds"), of(f"{MATRIX} seconds")) if gathered_too else None,
    )  # fmt: skip


def _claim(key: str, pattern: str, sentence: str, number: str, rate: int | None = None) -> Claim:
    return Claim(
        key=key,
        article=1,
        sentence=sentence,
        articles_number=number,
        cells=_cells(key, pattern),
        measure=_measure,
        judge=_judge(rate),
        full=("jieyue bench attention --device cuda --out reproduction",),
    )


CLAIMS = (
    _claim(
        "atrous-faster",
        "atrous(8)",
        "Atrous attention is faster and leaner than full attention, by about its rate (half of it) or more against the matrix",
        "faster, no number given",
        rate=8,
    ),
    _claim(
        "local-faster",
        "local(32)",
        "Local attention is faster and leaner than full attention",
        "slightly slower in the article's code, which gathers every window; no number given",
    ),
    _claim(
        "sparse-faster",
        "sparse(32)",
        "Sparse attention (near all, far every 32nd) is faster and leaner than full attention",
        "slightly slower in the article's code; no number given",
    ),
)
