"""The one search of planning, for the largest pieces that fit, and the one refusal where none do."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from jieyue.budget import Cost, format_bytes
from jieyue.machine import resident_bytes
from jieyue.malloc import release_free_memory

from .alike import predict_by_depth
from .prediction import TrainingStep, predict

BY_LINE = 3  # probes that a line proposes; further ones halve what is left

__all__ = ["fixed_cost", "largest_fitting", "refusal", "step_costs", "traced", "whole_or_nothing"]


def traced(step: TrainingStep, *, effective_batch: int, micro_batch: int, checkpointing: bool = False) -> Cost:
    """``predict``, once for each update of a step: a search that begins again, and what is told of a run, ask for the same ones."""
    asked = (effective_batch, micro_batch, checkpointing)
    if asked not in step.known:
        tell = predict if step.depth is None else predict_quickly
        step.known[asked] = tell(
            step, effective_batch=effective_batch, micro_batch=micro_batch, checkpointing=checkpointing
        )
    return step.known[asked]


def predict_quickly(step: TrainingStep, *, effective_batch: int, micro_batch: int, checkpointing: bool) -> Cost:
    """``predict``, by a shallower model where its layers are alike (``predict_by_depth``)."""
    found = predict_by_depth(
        step, effective_batch=effective_batch, micro_batch=micro_batch, checkpointing=checkpointing
    )
    if found is not None:
        return found
    return predict(step, effective_batch=effective_batch, micro_batch=micro_batch, checkpointing=checkpointing)


def step_costs(
    step: TrainingStep, effective_batch: int, checkpointing: bool, fixed_bytes: int
) -> Callable[[int], Cost]:
    """What an update costs by the rows of a piece, each a trace of its own."""

    def cost(rows: int) -> Cost:
        found = traced(step, effective_batch=effective_batch, micro_batch=rows, checkpointing=checkpointing)
        return replace(found, fixed_bytes=fixed_bytes)

    return cost


def largest_fitting(cost: Callable[[int], Cost], effective: int, allowed: float) -> tuple[int, Cost] | Cost:
    """(rows, cost) of the largest piece within ``allowed`` bytes, balanced over the pieces; else the cost of one row.

    The peak is convex in the rows and nearly straight, but for the undivided batch, which keeps no gradient between pieces: a
    line through two traces proposes, the next one checks, until no smaller number of pieces is left to try. About four traces.
    """
    whole = cost(effective)
    if whole.peak_bytes <= allowed:
        return effective, whole
    known = {1: whole if effective == 1 else cost(1)}
    if known[1].peak_bytes > allowed:
        return known[1]
    low, high, tried = 1, effective, 0
    known[high] = whole
    while (fewer := _rows(effective, _pieces(effective, low) - 1)) < high:  # the least that makes one piece less
        start, rise = known[low].peak_bytes, known[high].peak_bytes - known[low].peak_bytes
        line = low + int((allowed - start) * (high - low) / rise)
        wanted = line if tried < BY_LINE else (fewer + high) // 2
        probe = _balanced(effective, min(high - 1, max(fewer, wanted)))
        known[probe] = cost(probe)
        low, high = (probe, high) if known[probe].peak_bytes <= allowed else (low, probe)
        tried += 1
    rows = _balanced(effective, low)
    return rows, known[rows] if rows in known else cost(rows)


def whole_or_nothing(cost: Callable[[int], Cost], effective: int, allowed: float) -> tuple[int, Cost] | Cost:
    """The same for an update that takes its batch in one piece."""
    whole = cost(effective)
    return (effective, whole) if whole.peak_bytes <= allowed else whole


def _pieces(effective: int, rows: int) -> int:
    return -(-effective // rows)


def _rows(effective: int, pieces: int) -> int:
    return -(-effective // pieces)


def _balanced(effective: int, rows: int) -> int:
    """The fewest rows a piece that need no more pieces."""
    return _rows(effective, _pieces(effective, rows))


def fixed_cost(device: str = "cpu") -> int:
    """Bytes that this process (or the GPU's context) holds now, kernels and libraries warmed by a tiny training step."""
    with torch.random.fork_rng():
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        model = nn.Sequential(nn.Embedding(64, 16), layer, nn.Linear(16, 64)).to(device)
        optimizer = torch.optim.AdamW(model.parameters())
        ids = torch.zeros(4, 32, dtype=torch.long, device=device)
        for _ in range(2):
            nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    del layer, model, optimizer
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return total - free
    release_free_memory()
    return resident_bytes()


def refusal(
    budget_bytes: int, floors: Sequence[tuple[str, TrainingStep, Cost]], *, could_checkpoint: bool = False
) -> str:
    """What the leanest of ``floors`` still needs, part by part, and what would fit.

    ``floors``: (what it is, its step, the cost of one row at a time).
    """
    what, step, least = min(floors, key=lambda floor: floor[2].process_bytes)
    held = least.weight_bytes + least.gradient_bytes + least.optimizer_bytes
    text = (
        f"budget={format_bytes(budget_bytes)}: the leanest of {len(floors)} settings ({what}, {_at_a_time(step)}) needs"
        f" {format_bytes(least.process_bytes)}, {format_bytes(least.process_bytes - budget_bytes)} too much:"
        f" fixed {format_bytes(least.fixed_bytes)}, weights {format_bytes(least.weight_bytes)}, gradients"
        f" {format_bytes(least.gradient_bytes)}, optimizer {format_bytes(least.optimizer_bytes)}, activations and temporaries"
        f" {format_bytes(least.peak_bytes - held)}."
    )
    would = [f"a budget of {format_bytes(least.process_bytes)}"]
    floor = least.fixed_bytes + held
    if floor > budget_bytes:
        text += f" Floor for any batch and length: {format_bytes(floor)}."
        would.append("a smaller model (fewer layers or a smaller vocabulary: half the weights halve all three)")
    elif step.in_backward:
        would.append("pieces, without updates in backward")
    else:
        would.append(_shorter(step, budget_bytes, least, held, could_checkpoint))
    if least.optimizer_bytes > least.weight_bytes // 2:
        would.append("an optimizer with less state (adafactor)")
    if could_checkpoint:
        would.append("activation checkpointing, perhaps")
    return f"{text} What would fit: {'; '.join(would)}"


def _at_a_time(step: TrainingStep) -> str:
    rows = "the whole batch of rows" if step.in_backward else "one row"
    return f"{rows} of {step.length} positions at a time"


def _shorter(step: TrainingStep, budget_bytes: int, least: Cost, held: int, plain: bool) -> str:
    """The longest of the halved lengths that fits."""
    length = step.length // 2
    while length >= 8:
        shorter = predict(step.at(length), effective_batch=1, micro_batch=1, checkpointing=not plain)
        needed = least.fixed_bytes + max(shorter.peak_bytes, held)
        if needed <= budget_bytes:
            return f"shorter rows, of length {length} ({format_bytes(needed)})"
        length //= 2
    return "shorter rows, or an attention pattern"
