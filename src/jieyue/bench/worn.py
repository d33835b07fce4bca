"""What first keys, segments, sinks, soft-capping, offset biases and bfloat16 cost: each beside the same call without it.

A row is the rate of one call over that of another, contestants taking turns: operations on visible pairs per second over the same
of the plain call, so that 1 means that what is worn is free. The goals are those of the project's plan for two cores.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from jieyue.attention import attend, parse
from jieyue.report import Section
from jieyue.timer import take_turns

__all__ = ["WornRow", "add_worn", "bench_worn"]

_WARMING = 0.05  # seconds that a first call may take before it counts as a slow one
_SLOW = 30.0

_Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
_Case = tuple[_Attention, list[Tensor]]


@dataclass(frozen=True)
class WornRow:
    """Rates of ``what`` at length n over those of ``beside``, forward and forward + backward; None = no goal."""

    what: str
    beside: str
    n: int
    forward: float
    both: float
    forward_goal: float | None
    both_goal: float | None

    @property
    def reached(self) -> bool:
        pairs = ((self.forward, self.forward_goal), (self.both, self.both_goal))
        return all(goal is None or found >= goal for found, goal in pairs)


@dataclass(frozen=True)
class _Cell:
    what: str
    beside: str
    n: int
    goals: tuple[float | None, float | None]
    make: Callable[[], tuple[_Case, _Case, float]]  # ours, the other, pairs of ours over pairs of the other


def bench_worn(
    *, n: int = 16384, repeats: int = 5, heads: int = 12, depth: int = 64, device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> list[WornRow]:  # fmt: skip
    """Every row, B = 1, float32 on the CPU and bfloat16 on CUDA; ``n`` is the length of most (packed rows: a quarter of it).

    Cost: about a minute on two cores.
    """
    rows = []
    for cell in _cells(n, heads, depth, device):
        say(f"{cell.what} beside {cell.beside} at N = {cell.n}")
        ours, other, work = cell.make()
        ratios = []
        for backward in (False, True):
            calls = {name: _call(*case, backward) for name, case in (("ours", ours), ("other", other))}
            seconds = take_turns(calls, repeats, slow_seconds=_SLOW, cold_seconds=_WARMING)
            pairs = zip(seconds["other"], seconds["ours"], strict=False)  # a slow call has one turn
            ratios.append(statistics.median(other / own * work for other, own in pairs))
        rows.append(WornRow(cell.what, cell.beside, cell.n, ratios[0], ratios[1], *cell.goals))
    return rows


def add_worn(section: Section, rows: tuple[WornRow, ...]) -> None:
    """The table of these rows."""
    section.table(
        [
            "attention",
            "beside",
            "N",
            ("forward", "x"),
            ("goal", "x"),
            ("forward + backward", "x"),
            ("goal ", "x"),
            "reached",
        ],
        [[r.what, r.beside, r.n, r.forward, r.forward_goal, r.both, r.both_goal, r.reached] for r in rows],
        note="Rate on visible pairs over that of the call beside it in the same run, the median of the ratios within repeats.",
    )


def _cells(n: int, heads: int, depth: int, device: str) -> Iterator[_Cell]:
    usual = torch.bfloat16 if device.startswith("cuda") else torch.float32

    def tensors(rows: int, batch: int = 1, dtype: torch.dtype = usual) -> list[Tensor]:
        made = [torch.randn(batch, rows, heads, depth, device=device, dtype=dtype).transpose(1, 2) for _ in range(4)]
        return [*(x.requires_grad_() for x in made[:3]), made[3]]

    def beside(ours: _Attention, other: _Attention, work: float = 1.0) -> Callable[[], tuple[_Case, _Case, float]]:
        return lambda: ((ours, tensors(n)), (other, tensors(n)), work)

    window, window_text, small = "causal(local(256))", "causal local(256)", n // 4
    first = "causal(first(4)+local(256))"
    sinks = torch.randn(heads, device=device, requires_grad=True)
    bias = torch.randn(heads, 2 * n - 1, device=device, requires_grad=True)
    packed = torch.arange(small, device=device)[None] // (small // 8)
    plain = _ours(window)
    work = parse(first).pairs(n, n) / parse(window).pairs(n, n)
    yield _Cell("causal first(4)+local(256)", window_text, n, (0.97, 0.97), beside(_ours(first), plain, work))
    yield _Cell(
        f"segments: 8 of {small // 8} packed, local(128)", "8 separate rows", small, (0.9, 0.9),
        lambda: (
            (_ours("local(128)", segments=packed), tensors(small)), (_ours("local(128)"), tensors(small // 8, 8)), 1.0
        ),
    )  # fmt: skip
    yield _Cell("sinks", window_text, n, (0.95, 0.95), beside(_ours(window, sinks=sinks), plain))
    yield _Cell("softcap", window_text, n, (0.80, 0.80), beside(_ours(window, softcap=50.0), plain))
    yield _Cell("offset_bias", window_text, n, (0.85, 0.70), beside(_ours(window, offset_bias=bias), plain))
    if usual == torch.float32:
        half = torch.bfloat16
        yield _Cell(
            "local(256) in bfloat16", "in float32", n, (1.6, 1.5),
            lambda: ((_ours("local(256)"), tensors(n, dtype=half)), (_ours("local(256)"), tensors(n)), 1.0),
        )  # fmt: skip
        rows = n // 8
        yield _Cell(
            "full() in bfloat16", "SDPA in bfloat16", rows, (1.5, 1.5),
            lambda: (
                (_ours("full()"), tensors(rows, dtype=half)),
                (torch.nn.functional.scaled_dot_product_attention, tensors(rows, dtype=half)),
                1.0,
            ),
        )  # fmt: skip


def _ours(
    text: str,
    segments: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    offset_bias: Tensor | None = None,
) -> _Attention:
    pattern = parse(text)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(q, k, v, pattern, segments=segments, sinks=sinks, softcap=softcap, offset_bias=offset_bias)
        assert isinstance(out, Tensor)
        return out

    return call


def _call(function: _Attention, tensors: list[Tensor], backward: bool) -> Callable[[], object]:
    q, k, v, grad = tensors
    if backward:
        return lambda: torch.autograd.grad(function(q, k, v), (q, k, v), grad)

    def forward() -> Tensor:
        with torch.no_grad():
            return function(q, k, v)

    return forward
