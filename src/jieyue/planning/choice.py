"""Chooses the largest micro-batch whose predicted peak fits the budget; the effective batch is never touched.

Exact and cheap comes first: the undivided batch, then pieces as large as fit, then activation checkpointing (exact, a
third more time). The peak is convex in the micro-batch, and a straight line between kernel switches: a line through two
traces proposes, a third trace checks, so that a plan costs a few seconds. Every number in a Plan is a trace of its own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from jieyue.budget import Budget, Cost, Plan, format_bytes
from jieyue.errors import BudgetError, InputError
from jieyue.machine import release_free_memory, resident_bytes

from .prediction import TrainingStep, predict

__all__ = ["choose", "fixed_cost", "largest_fitting"]

_AFFINE = 1e-3  # how far a third trace may lie from the line of the first two, relative to it


def choose(
    step: TrainingStep,
    budget: Budget,
    *,
    effective_batch: int,
    fixed_bytes: int | None = None,
    checkpointing: bool | None = None,
) -> Plan:
    """The Plan that fits ``budget.memory_bytes``, the whole process included, with what was rejected and why.

    ``fixed_bytes``: what the process holds without the model; None measures it now (``fixed_cost``), so call it after
    the data is read. ``checkpointing``: None tries without, then with; True or False allow only that. Without a memory
    limit the whole batch is one piece. Raises ``BudgetError``, which says by how much nothing fits and what would.
    """
    if effective_batch < 1:
        raise InputError(f"effective_batch={effective_batch}: expected at least 1 row")
    fixed = fixed_cost(step.device) if fixed_bytes is None else fixed_bytes
    allowed = float("inf") if budget.memory_bytes is None else budget.memory_bytes - fixed
    rejected: list[tuple[str, str]] = []
    smallest: Cost | None = None
    for checkpointed in (False, True) if checkpointing is None else (checkpointing,):

        def cost(micro_batch: int, checkpointed: bool = checkpointed) -> Cost:
            found = predict(step, effective_batch=effective_batch, micro_batch=micro_batch, checkpointing=checkpointed)
            found = replace(found, fixed_bytes=fixed)
            if found.peak_bytes > allowed:
                rejected.append((_named(micro_batch, checkpointed), _excess(found, budget)))
            return found

        try:
            found = largest_fitting(cost, effective_batch, allowed)
        except InputError as error:  # a model without layers cannot be checkpointed
            if not checkpointed or checkpointing:
                raise
            rejected.append(("checkpointing", str(error)))
            continue
        if isinstance(found, Cost):
            smallest = found
            continue
        micro_batch, predicted = found
        return Plan(
            effective_batch=effective_batch,
            micro_batch=micro_batch,
            checkpointing=checkpointed,
            predicted=predicted,
            rejected=tuple(rejected),
        )
    assert smallest is not None and budget.memory_bytes is not None
    raise BudgetError(_refusal(step, budget.memory_bytes, smallest, checkpointing))


def largest_fitting(cost: Callable[[int], Cost], effective: int, allowed: float) -> tuple[int, Cost] | Cost:
    """(rows, cost) of the largest piece within ``allowed`` bytes, balanced over the pieces; else the cost of one row."""
    whole = cost(effective)
    if whole.peak_bytes <= allowed:
        return effective, whole
    known = {1: whole if effective == 1 else cost(1)}
    if known[1].peak_bytes > allowed:
        return known[1]
    low, high = 1, -(-effective // 2)
    if high > 1:
        known[high] = cost(high)
        if known[high].peak_bytes <= allowed:
            return high, known[high]
    while high - low > 1:
        start, rise = known[low].peak_bytes, known[high].peak_bytes - known[low].peak_bytes
        probe = min(high - 1, max(low + 1, low + int((allowed - start) * (high - low) / rise)))
        span = high - low
        line = start + rise * (probe - low) / span
        known[probe] = cost(probe)
        peak = known[probe].peak_bytes
        low, high = (probe, high) if peak <= allowed else (low, probe)
        if peak <= allowed and abs(peak - line) <= _AFFINE * peak and peak + rise / span > allowed:
            break
    balanced = -(-effective // -(-effective // low))
    return balanced, known[balanced] if balanced in known else cost(balanced)


def fixed_cost(device: str = "cpu") -> int:
    """Bytes that this process (or the GPU's context) holds now, kernels and libraries warmed by a tiny training step."""
    with torch.random.fork_rng():
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).to(device)
        optimizer = torch.optim.AdamW(layer.parameters())
        for _ in range(2):
            layer(torch.zeros(2, 8, 16, device=device)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    del layer, optimizer
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return total - free
    release_free_memory()
    return resident_bytes()


def _named(micro_batch: int, checkpointed: bool) -> str:
    return f"micro-batch {micro_batch}" + (", checkpointing" if checkpointed else "")


def _excess(cost: Cost, budget: Budget) -> str:
    assert budget.memory_bytes is not None
    over = cost.process_bytes - budget.memory_bytes
    return f"needs {format_bytes(cost.process_bytes)}, {format_bytes(over)} too much"


def _refusal(step: TrainingStep, budget_bytes: int, smallest: Cost, checkpointing: bool | None) -> str:
    held = smallest.weight_bytes + smallest.gradient_bytes + smallest.optimizer_bytes
    text = (
        f"budget={format_bytes(budget_bytes)}: one row of {step.length} positions at a time"
        f"{'' if checkpointing is False else ' with checkpointing'} needs {format_bytes(smallest.process_bytes)},"
        f" {format_bytes(smallest.process_bytes - budget_bytes)} too much: fixed {format_bytes(smallest.fixed_bytes)},"
        f" weights, gradients and optimizer {format_bytes(held)},"
        f" activations and temporaries {format_bytes(smallest.peak_bytes - held)}."
    )
    would = [f"a budget of {format_bytes(smallest.process_bytes)}"]
    length = step.length // 2
    while length >= 8:
        shorter = predict(step.at(length), effective_batch=1, micro_batch=1, checkpointing=checkpointing is not False)
        needed = smallest.fixed_bytes + max(shorter.peak_bytes, held)
        if needed <= budget_bytes:
            would.append(f"length {length} ({format_bytes(needed)})")
            break
        length //= 2
    if smallest.fixed_bytes + held - smallest.optimizer_bytes <= budget_bytes < smallest.fixed_bytes + held:
        would.append("an optimizer with less state (SGD, Adafactor)")
    if checkpointing is False:
        would.append("activation checkpointing, perhaps")
    if smallest.fixed_bytes + held > budget_bytes:
        would.append("a smaller model")
    return f"{text} What would fit: {'; '.join(would)}"
