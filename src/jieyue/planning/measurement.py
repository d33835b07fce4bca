"""Measures what prediction.py predicts, with the same yardstick: live bytes of torch's allocator in one warm step.

``measure_alone`` does it in a process of its own, so that the process's highest resident set can be told as well.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

from jieyue.budget import Plan
from jieyue.errors import BudgetError
from jieyue.machine import fix_malloc_threshold, peak_resident_bytes
from jieyue.timer import peak_bytes
from jieyue.training.accumulation import accumulate
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import Objective

from .choice import fixed_cost
from .prediction import _state_tensors, _storage_bytes
from .setting import Setting
from .subject import Subject

__all__ = ["Measured", "live_bytes", "measure_alone", "measure_step"]

STEPS = 3  # updates before the profiler looks; the first is slow and makes the optimizer's state


@dataclass(frozen=True, kw_only=True)
class Measured:
    """``fixed_bytes``: resident before the model; ``peak_bytes``: of torch's allocator in one update; ``process_bytes``: the
    highest resident set (VmHWM) before the profiler; ``seconds``: of an update, the fastest after the first."""

    fixed_bytes: int
    peak_bytes: int
    process_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_alone(subject: Subject, setting: Setting, effective_batch: int) -> Measured:
    """Trains a few updates of fresh weights in a new process with glibc's mmap threshold at 64 KiB from its start.

    Raises ``BudgetError`` where the system ends the process, as it does when memory runs out.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, subject, setting, effective_batch, torch.get_num_threads()).result()
        except BrokenProcessPool as error:
            raise BudgetError(f"measuring {setting}: the system ended the process; is there enough memory?") from error


def _measure(subject: Subject, setting: Setting, effective_batch: int, threads: int) -> Measured:
    fix_malloc_threshold()
    torch.set_num_threads(threads)
    step = subject.step(setting)
    fixed = fixed_cost(subject.device)
    model = step.build_model().to(subject.device).train()
    optimizer = step.make_optimizer(model)
    batch = step.example_batch(effective_batch, step.length)
    plan, seconds = setting.plan(effective_batch), []
    for _ in range(STEPS):
        started = time.perf_counter()
        accumulate(step.objective, model, batch, micro_batch=plan)
        if step.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), step.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    highest = peak_resident_bytes()
    peak = measure_step(step.objective, model, batch, optimizer, micro_batch=plan, max_grad_norm=step.max_grad_norm)
    return Measured(fixed_bytes=fixed, peak_bytes=peak, process_bytes=highest, seconds=min(seconds[1:]))


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
