"""Seconds, bytes and errors of every GELU on this machine, against torch's own kernels and against the formula written out.

Forward runs without gradients; forward + backward is one call of each. Saved bytes are those of the distinct tensors that
autograd keeps between the two, counted by its own hooks; the input is among them. The peak is what the forward and
backward pass allocate beyond input and upstream gradient. Errors are against x·Φ(x) in float64 at the same inputs, so
float32 and bfloat16 rounding is inside: in bfloat16 the exact function errs as much as the approximations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jieyue.activations import NAMED, gelu
from jieyue.activations.operator import Variant
from jieyue.errors import InputError
from jieyue.machine import describe
from jieyue.report import Picture, Report
from jieyue.run.devices import check_device
from jieyue.timer import median_seconds, peak_bytes

__all__ = ["ActivationBench", "ActivationTiming", "bench_activation", "saved_bytes"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
EXACT, TANH = "torch exact", "torch tanh"
_SAME = 1.05  # within this factor two timings are called equal


@dataclass(frozen=True)
class ActivationTiming:
    """One activation in one dtype: median seconds, bytes, and the largest error against float64's exact GELU."""

    name: str
    dtype: str
    forward_seconds: float
    both_seconds: float
    saved_bytes: int
    peak_bytes: int | None
    largest_error: float


@dataclass(frozen=True)
class ActivationBench:
    """What ``bench_activation`` measured, with the two kernels of torch that everything is compared with."""

    rows: tuple[ActivationTiming, ...]
    elements: int
    device: str

    def against(self, row: ActivationTiming, other: str) -> float:
        """How many times the forward + backward time of ``other`` in the same dtype ``row`` takes."""
        base = next(each for each in self.rows if each.name == other and each.dtype == row.dtype)
        return row.both_seconds / base.both_seconds

    def verdict(self, row: ActivationTiming) -> str:
        """ "slower than torch exact, faster than torch tanh": said plainly, also where we lose."""
        said = []
        for other in (EXACT, TANH):
            if row.name == other:
                continue
            ratio = self.against(row, other)
            said.append(
                f"{'slower than' if ratio > _SAME else 'faster than' if ratio < 1 / _SAME else 'as fast as'} {other}"
            )
        return ", ".join(said)

    def report(self) -> Report:
        """One table a dtype, and a picture of the forward + backward seconds."""
        report = Report("GELU on this machine", about=f"{self.elements:,} elements, {self.device}")
        facts = report.section("Machine")
        for what, value in describe().items():
            facts.fact(what, value, "bytes" if what.endswith("_bytes") else "")
        for dtype in dict.fromkeys(row.dtype for row in self.rows):
            section, found = report.section(dtype), [row for row in self.rows if row.dtype == dtype]
            section.table(
                ["activation", ("forward", "seconds"), ("forward + backward", "seconds"), ("of torch exact", "x"),
                 ("of torch tanh", "x"), ("saved", "bytes"), ("peak", "bytes"), "max error", "forward + backward is"],
                [[row.name, row.forward_seconds, row.both_seconds, self.against(row, EXACT), self.against(row, TANH),
                  row.saved_bytes, row.peak_bytes, row.largest_error, self.verdict(row)] for row in found],
                note="Medians. Saved: what autograd keeps for the backward pass, the input included.",
            )  # fmt: skip
            bars = {"forward": {row.name: row.forward_seconds for row in found},
                    "forward + backward": {row.name: row.both_seconds for row in found}}  # fmt: skip
            section.picture(Picture.bars(f"Seconds of each GELU, {dtype}", bars, value=("median", "seconds")))
        return report


def bench_activation(
    variants: Sequence[Variant] = ("none", *NAMED),
    *,
    elements: int = 2**22,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    repeats: int = 9,
    device: str = "cpu",
    seed: int = 0,
) -> ActivationBench:
    """Times ``variants`` beside torch's kernels and the written formula, on ``elements`` normally distributed inputs × 2.

    Cost: about (variants + 3) × dtypes × repeats × 0.2 s for 4 million elements. ``InputError`` for unknown dtypes or no elements.
    """
    check_device(device, must_exist=True)
    unknown = [name for name in dtypes if name not in DTYPES]
    if unknown or not dtypes:
        raise InputError(f"dtypes={list(dtypes)}: expected one or more of {', '.join(DTYPES)}")
    if elements < 1 or repeats < 1:
        raise InputError(f"elements={elements}, repeats={repeats}: expected at least 1 of each")
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        EXACT: F.gelu,
        TANH: lambda x: F.gelu(x, approximate="tanh"),
        "tanh written out": _written_out,
    }
    for each in variants:
        calls[f"jieyue {each}"] = _named(each)
    generator = torch.Generator().manual_seed(seed)
    source = 2 * torch.randn(elements, generator=generator, dtype=torch.float64)
    upstream = torch.randn(elements, generator=generator, dtype=torch.float64)
    rows = []
    for name in dtypes:
        x = source.to(DTYPES[name]).to(device).requires_grad_()
        rows += _measured(name, calls, x, upstream.to(DTYPES[name]).to(device), repeats)
    return ActivationBench(tuple(rows), elements, device)


def _named(each: Variant) -> Callable[[Tensor], Tensor]:
    return lambda x: gelu(x, each)


def _written_out(x: Tensor) -> Tensor:
    """The formula as many models write it: each factor becomes a tensor that autograd keeps."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def _measured(
    dtype: str, calls: dict[str, Callable[[Tensor], Tensor]], x: Tensor, upstream: Tensor, repeats: int
) -> list[ActivationTiming]:
    plain = x.detach()

    def forward(call: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        return lambda: call(plain)

    def both(call: Callable[[Tensor], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(call(x), x, upstream)

    once = median_seconds({name: forward(call) for name, call in calls.items()}, repeats, warmup=2)
    twice = median_seconds({name: both(call) for name, call in calls.items()}, repeats, warmup=2)
    wide = plain.double()
    exact = wide * torch.special.ndtr(wide)
    found = []
    for name, call in calls.items():
        peak = peak_bytes(both(call)) if x.device.type == "cpu" else None
        error = float((call(plain).double() - exact).abs().max())
        middle = repeats // 2
        found.append(
            ActivationTiming(name, dtype, once[name][middle], twice[name][middle], saved_bytes(call, x), peak, error)
        )
    return found


def saved_bytes(call: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes of the distinct tensors that autograd keeps for the backward pass of ``call(x)``."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = call(x)
    del out
    return sum(kept.values())
