"""Seconds and bytes of ``attend`` on this machine, beside torch's dense kernel and the other ways to compute a pattern.

Share: the rate of multiplications and additions on *visible* pairs (4·H·D each forward, 10·H·D backward) over the rate of
the dense flash kernel at N = 2048, as the median over repeats of the ratio within a repeat; every repeat runs all
contestants in turn, so that what disturbs the machine disturbs all alike. Tensors lie in [B, N, H, D] memory, as
transformers hands them over. Peak bytes are those beside q, k, v and the gradient of out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

import torch
from torch import Tensor

from jieyue.attention import Call, attend, parse, pick
from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.run.devices import check_device
from jieyue.timer import Timed, peak_bytes, take_turns, timed

from .attention_rows import (
    CELLS,
    CUDA_CELLS,
    TITLES,
    AttentionBench,
    Cell,
    LongRow,
    ShareRow,
)
from .linear_attention import bench_linear
from .linear_rivals import LINEAR_CURVES
from .rival_rows import COLD_SECONDS, SLOW_SECONDS, RivalRow
from .rivals import RIVALS, Attention, Rival, sdpa
from .worn import bench_worn

__all__ = ["CELLS", "CUDA_CELLS", "AttentionBench", "Cell", "bench_attention"]

HEADS, DEPTH, DENSE_ROWS, WORN_ROWS = 12, 64, 2048, 16384
PARTS = tuple(TITLES)
LENGTHS = tuple(2**power for power in range(6, 17))
CURVES = ("full()", "local(128)", "atrous(16)", "sparse(64)")
RIVAL_CELLS = (("local(128)", 8192), ("local(256)", 16384))
CUDA_RIVAL_CELLS = (("local(2048)", 32768), ("causal(sparse(64, 256))", 32768))
LONG = ("local(256)", 131072, 6 * 2**30)
_MOST_FORECAST = 12.0  # seconds, forward and backward, that a point of a curve is worth
_MOST_WORK = 3.0e12  # operations of a rival's call that is worth waiting for on a CPU: about 25 seconds on two cores


def bench_attention(
    *,
    parts: Sequence[str] = PARTS,
    repeats: int = 5,
    device: str = "cpu",
    lengths: Sequence[int] = LENGTHS,
    rivals: Sequence[Rival] = (),
    say: Callable[[str], None] = lambda text: None,
) -> AttentionBench:
    """Measures the named parts: shares (the goals), small (N = 512), rivals, curves (time and memory of every pattern and map
    against N), long, worn (what first keys, segments, sinks, soft-capping, offset biases and bfloat16 cost), linear (goals, rivals,
    crossover and decoding of linear attention).
    Curves have at most 3 repeats, calls longer than a second one; a point that would take much longer is left out.

    ``rivals`` join those of ``rivals.RIVALS``; ``say`` hears what is being measured. Threads: torch's own count.
    Cost: about 12 minutes with everything on two cores, 1 minute for "shares" alone. ``InputError`` for unknown parts.
    """
    check_device(device, must_exist=True)
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or repeats < 1:
        raise InputError(
            f"parts={list(parts)}, repeats={repeats}: expected some of {', '.join(PARTS)}, at least 1 repeat"
        )
    run = _Run(device, repeats, (*RIVALS, *rivals), say)
    return AttentionBench(
        f"B = 1, H = {HEADS}, D = {DEPTH}, {str(_dtype(device)).removeprefix('torch.')}",
        device,
        torch.get_num_threads(),
        repeats,
        date.today().isoformat(),
        long=run.long() if "long" in parts else None,
        shares=tuple(run.shares()) if "shares" in parts else (),
        small=tuple(run.small()) if "small" in parts else (),
        rivals=tuple(run.rivals()) if "rivals" in parts else (),
        curves=tuple(run.curves(lengths)) if "curves" in parts else (),
        worn=tuple(bench_worn(n=WORN_ROWS, repeats=repeats, device=device, say=say)) if "worn" in parts else (),
        linear=bench_linear(repeats=repeats, device=device, say=say) if "linear" in parts else None,
    )


@dataclass(frozen=True)
class _Contest:
    """Functions of (q, k, v) by name, each with its tensors, timed in turn."""

    functions: dict[str, tuple[Attention, list[Tensor]]]

    def seconds(self, repeats: int, backward: bool) -> dict[str, list[float]]:
        """Seconds of each, in order of the repeats; slow ones are measured once."""
        calls = {name: _call(function, tensors, backward) for name, (function, tensors) in self.functions.items()}
        return take_turns(calls, repeats, slow_seconds=SLOW_SECONDS, cold_seconds=COLD_SECONDS)


@dataclass(frozen=True)
class _Run:
    device: str
    repeats: int
    others: tuple[Rival, ...]
    say: Callable[[str], None]

    def shares(self) -> list[ShareRow]:
        cuda = self.device.startswith("cuda")
        return [self._share(cell, cuda) for cell in (CUDA_CELLS if cuda else CELLS)]

    def _share(self, cell: Cell, cuda: bool) -> ShareRow:
        self.say(f"{cell.pattern} at N = {cell.n}")
        pattern = parse(cell.pattern)
        causal = cuda and pattern == pattern.causal()
        dense_rows = cell.n if cuda else DENSE_ROWS
        q, k, v, _ = tensors = _tensors(cell.n, self.device)
        contest = _Contest(
            {"dense": (sdpa(causal), _tensors(dense_rows, self.device)), "ours": (_ours(cell.pattern), tensors)}
        )
        ratio = 1.0 if cuda else pattern.pairs(cell.n, cell.n) / dense_rows**2
        seconds = [contest.seconds(self.repeats, backward) for backward in (False, True)]
        shares = [
            statistics.median(dense / ours * ratio for dense, ours in zip(s["dense"], s["ours"], strict=False))
            for s in seconds
        ]
        medians = [statistics.median(s["ours"]) for s in seconds]
        return ShareRow(cell, pick(Call(q, k, v, pattern)).name, *medians, *shares)

    def small(self) -> list[RivalRow]:
        """N = 512: every pattern against torch's dense kernel, in one contest."""
        self.say("N = 512")
        n, texts = 512, list(CURVES) + [f"causal({text})" for text in CURVES]
        functions = {"SDPA, full": sdpa(), "SDPA, causal": sdpa(True)} | {text: _ours(text) for text in texts}
        contest = _Contest({name: (function, _tensors(n, self.device)) for name, function in functions.items()})
        repeats = max(self.repeats, 15)
        seconds = [contest.seconds(repeats, backward) for backward in (False, True)]
        return [
            RivalRow(name, n, "SDPA" if name.startswith("SDPA") else "jieyue", **_medians(seconds, name, "SDPA, full"))
            for name in functions
        ]

    def rivals(self) -> list[RivalRow]:
        rows = []
        for text, n in CUDA_RIVAL_CELLS if self.device.startswith("cuda") else RIVAL_CELLS:
            rows += self._beside(text, n, self.others)
        return rows

    def curves(self, lengths: Sequence[int]) -> list[RivalRow]:
        """Each pattern and map of ours and torch's dense kernels, all keys, in one contest for each N."""
        ours = {text: _ours(text) for text in CURVES} | LINEAR_CURVES
        dense = [rival for rival in self.others if rival.name.startswith("SDPA")]
        taken: dict[str, dict[int, float]] = {name: {} for name in (*(rival.name for rival in dense), *ours)}
        rows = []
        for n in sorted(lengths):
            made = {rival.name: rival.make(parse("local(128)"), n, self.device) for rival in dense} | ours
            notes = {name: f"not measured: {found}" for name, found in made.items() if isinstance(found, str)}
            for name, before in taken.items():
                if _forecast(before, n) > _MOST_FORECAST:
                    notes[name] = f"left out: about {_forecast(before, n):.0f} seconds by the shorter ones"
            rows += [RivalRow(name, n, name, note=note) for name, note in notes.items()]
            self.say(f"N = {n}, {len(made) - len(notes)} contestants")
            tensors = _tensors(n, self.device)
            contest = _Contest({name: (made[name], tensors) for name in made if name not in notes})  # type: ignore[misc]
            seconds = [contest.seconds(min(self.repeats, 3), backward) for backward in (False, True)]
            for name, (function, _) in contest.functions.items():
                row = RivalRow(name, n, name, **_medians(seconds, name), peak_bytes=self._peak(function, tensors))
                taken[name][n] = row.both_seconds or 0.0
                rows.append(row)
        return rows

    def _beside(self, text: str, n: int, others: Sequence[Rival], name: str = "jieyue") -> list[RivalRow]:
        """Ours and the others at one pattern and length. What another's code raises is told in its row."""
        self.say(f"{text} at N = {n}, {1 + len(others)} contestants")
        tensors, ours = _tensors(n, self.device), _ours(text)
        rows = [self._contestant(text, n, name, ours, True, tensors, ours)]
        for rival in others:
            self.say(f"  {rival.name}")
            made = self._made(rival, text, n)
            if isinstance(made, str):
                rows.append(RivalRow(text, n, rival.name, note=f"not measured: {made}"))
            else:
                rows.append(self._contestant(text, n, rival.name, made, rival.trains(self.device), tensors, ours))
        return rows

    def _takes_minutes(self, visited: int) -> bool:
        return self.device == "cpu" and 14 * HEADS * DEPTH * visited > _MOST_WORK

    def _made(self, rival: Rival, text: str, n: int) -> Attention | str:
        visited = n * n if rival.name.startswith("SDPA") else parse(text).pairs(n, n)
        if self._takes_minutes(visited):
            return "it would take minutes"
        try:
            made = rival.make(parse(text), n, self.device)
            if not isinstance(made, str) and not rival.name.startswith("SDPA"):
                made(*(x.detach() for x in _tensors(n, self.device)[:3]))
            return made
        except Exception as error:  # another project's code: its failure is a finding, not ours to judge
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    def _contestant(
        self, text: str, n: int, name: str, made: Attention, trains: bool, tensors: list[Tensor], ours: Attention
    ) -> RivalRow:
        contest = _Contest(
            {"ours": (ours, tensors), name + " ": (made, tensors)} if made is not ours else {"ours": (ours, tensors)}
        )
        key = name + " " if made is not ours else "ours"
        seconds = [contest.seconds(self.repeats, backward) for backward in ((False, True) if trains else (False,))]
        peak = self._peak(made, tensors, trains)
        note = "" if trains else "it has no backward pass on this device"
        return RivalRow(text, n, name, **_medians(seconds, key, "ours"), peak_bytes=peak, note=note)

    def long(self) -> LongRow:
        text, n, allowed = LONG
        self.say(f"{text} at N = {n}")
        tensors = _tensors(n, self.device)
        call = _call(_ours(text), tensors, True)
        call()
        peak = self._peak(_ours(text), tensors)
        held = sum(x.numel() * x.element_size() for x in tensors)
        return LongRow(text, n, timed(call), held + peak, allowed)

    def _peak(self, function: Attention, tensors: list[Tensor], backward: bool = True) -> int:
        call = _call(function, tensors, backward)
        if self.device != "cpu":
            call()
        return peak_bytes(call, self.device)


def _forecast(before: dict[int, float], n: int) -> float:
    """Seconds at ``n`` by a power law through the last two shorter lengths, at most quadratic; 0 where there are none."""
    if not before:
        return 0.0
    *others, last = sorted(before)
    power = math.log(before[last] / before[others[-1]], last / others[-1]) if others else 2.0
    return before[last] * (n / last) ** min(max(power, 1.0), 2.0)


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def _tensors(n: int, device: str) -> list[Tensor]:
    """q, k, v that want gradients, and the gradient of out, [1, H, n, D] in [1, n, H, D] memory."""
    made = [torch.randn(1, n, HEADS, DEPTH, device=device, dtype=_dtype(device)).transpose(1, 2) for _ in range(4)]
    return [*(x.requires_grad_() for x in made[:3]), made[3]]


def _ours(text: str) -> Attention:
    pattern = parse(text)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(q, k, v, pattern)
        assert isinstance(out, Tensor)
        return out

    return call


def _call(function: Attention, tensors: list[Tensor], backward: bool) -> Timed:
    q, k, v, grad = tensors
    if backward:
        return lambda: torch.autograd.grad(function(q, k, v), (q, k, v), grad)
    plain = [x.detach() for x in (q, k, v)]
    return lambda: function(*plain)


def _medians(seconds: list[dict[str, list[float]]], name: str, base: str | None = None) -> Facts:
    """Median seconds forward and both, and as multiples of ``base``'s: medians of the ratios within repeats."""
    found = {}
    for which, passes in zip(("forward", "both"), seconds, strict=False):
        found[f"{which}_seconds"] = statistics.median(passes[name])
        if base is None:
            continue
        others = (
            passes[base] if len(passes[name]) > 1 else [statistics.median(passes[base])]
        )  # a slow call has one turn
        ratios = [one / other for one, other in zip(passes[name], others, strict=False)]
        found[f"{which}_times"] = statistics.median(ratios)
    return found
