"""Measures what prediction.py predicts, with the same yardstick: live bytes of torch's allocator in one warm step."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jieyue.budget import Plan
from jieyue.timer import peak_bytes
from jieyue.training.accumulation import accumulate
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import Objective

from .prediction import _state_tensors, _storage_bytes

__all__ = ["live_bytes", "measure_step"]


def measure_step(
    objective: Objective,
    model: nn.Module,
    batch: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    micro_batch: int | Plan | MicroBatch,
    max_grad_norm: float = 1.0,
) -> int:
    """Peak bytes of one update on this model and optimizer, weights, state and batch included.

    CPU: highest sum of live bytes of torch's allocator (profiler memory events) above what the weights, the optimizer's
    state and the batch hold; GPU: ``max_memory_allocated``. Call it once the optimizer has state, that is after a first
    update, with gradients None. The learning rates are zero meanwhile, so the weights stay bit for bit; the optimizer's
    moments and the random state move on. The profiler's own events need memory: read a process peak before, not after.
    """

    def step() -> None:
        model.train()
        accumulate(objective, model, batch, micro_batch=micro_batch)
        if max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
    try:
        gc.collect()
        if next(model.parameters()).device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            step()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        return live_bytes(model, batch, optimizer) + peak_bytes(step)
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def live_bytes(model: nn.Module, batch: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> int:
    """What is alive between two updates: weights, buffers, optimizer state, the batch."""
    waiting = [value for value in batch.values() if isinstance(value, Tensor)]
    return _storage_bytes([*model.parameters(), *model.buffers(), *_state_tensors(optimizer), *waiting])
