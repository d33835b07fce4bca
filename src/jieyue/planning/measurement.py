"""Measures what prediction.py predicts, with the same yardstick: live bytes of torch's allocator in one warm step.

``measure_alone`` does it in a process of its own, so that the process's highest resident set can be told as well, and
measures seconds in another one.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD

from jieyue.budget import Plan
from jieyue.errors import BudgetError
from jieyue.machine import peak_resident_bytes
from jieyue.malloc import give_back_freed_memory
from jieyue.timer import peak_bytes
from jieyue.training.accumulation import accumulate
from jieyue.training.in_backward import update_in_backward, update_in_backward_approx
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import Objective
from jieyue.training.tiger import Tiger
from jieyue.training.weightwise import PreviousNorm, step_in_backward

from .prediction import TrainingStep, _state_tensors, _storage_bytes
from .search import fixed_cost
from .setting import Setting
from .subject import Subject

__all__ = ["Measured", "live_bytes", "measure_alone", "measure_step", "seconds_alone", "update_of"]

Found = TypeVar("Found")
Weigh = Callable[[Mapping[str, Tensor]], float]
STEPS = 2  # updates before the profiler looks; the first makes the optimizer's state, the second is like all later ones
TIMED_STEPS = 4  # the first one is slow


@dataclass(frozen=True, kw_only=True)
class Measured:
    """``fixed_bytes``: resident before the model; ``peak_bytes``: of torch's allocator in one update; ``process_bytes``: the
    highest resident set (VmHWM) before the profiler; ``seconds``: of an update, the fastest after the first (None: not timed)."""

    fixed_bytes: int
    peak_bytes: int
    process_bytes: int
    seconds: float | None = None

    def to_dict(self) -> dict[str, int | float | None]:
        return asdict(self)


def measure_alone(subject: Subject, setting: Setting, effective_batch: int, *, timed: bool = True) -> Measured:
    """Trains a few updates of fresh weights in new processes: one for memory, another for time.

    The one for memory has glibc's mmap threshold at 64 KiB from its start, so that its resident set follows the tensors;
    every larger tensor is then a system call and its pages are touched anew, which takes up to twice the time of an ordinary
    process. Raises ``BudgetError`` where the system ends a process, as it does when memory runs out.
    """
    found: Measured = _alone(_measure_bytes, subject, setting, effective_batch)
    if not timed:
        return found
    return replace(found, seconds=seconds_alone(subject, setting, effective_batch))


def seconds_alone(subject: Subject, setting: Setting, effective_batch: int) -> float:
    """Seconds of one update, the fastest after the first, in a new process as it is."""
    found: float = _alone(_measure_seconds, subject, setting, effective_batch)
    return found


def _alone(
    measure: Callable[[Subject, Setting, int, int], Found], subject: Subject, setting: Setting, effective_batch: int
) -> Found:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, subject, setting, effective_batch, torch.get_num_threads()).result()
        except BrokenProcessPool as error:
            raise BudgetError(f"measuring {setting}: the system ended the process; is there enough memory?") from error


def _measure_bytes(subject: Subject, setting: Setting, effective_batch: int, threads: int) -> Measured:
    give_back_freed_memory()
    torch.set_num_threads(threads)
    step = subject.step(setting)
    fixed = fixed_cost(subject.device)
    model, optimizer, update = update_of(step, setting, effective_batch)
    for _ in range(STEPS):
        update()
    highest = peak_resident_bytes()
    batch, plan = step.example_batch(effective_batch, step.length), setting.plan(effective_batch)
    options: dict[str, Any] = {"micro_batch": plan, "max_grad_norm": step.max_grad_norm, "weigh": step.weigh}
    peak = measure_step(step.objective, model, batch, optimizer, **options)
    return Measured(fixed_bytes=fixed, peak_bytes=peak, process_bytes=highest)


def _measure_seconds(subject: Subject, setting: Setting, effective_batch: int, threads: int) -> float:
    torch.set_num_threads(threads)
    *_, update = update_of(subject.step(setting), setting, effective_batch)
    seconds = []
    for _ in range(TIMED_STEPS):
        started = time.perf_counter()
        update()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def update_of(
    step: TrainingStep, setting: Setting, effective_batch: int
) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    """A fresh model, its optimizer, and one whole update of them on rows of the step's length."""
    model = step.build_model().to(step.device).train()
    optimizer = step.make_optimizer(model)
    batch, plan = step.example_batch(effective_batch, step.length), setting.plan(effective_batch)

    def update() -> None:
        _update(step.objective, model, batch, optimizer, plan, step.max_grad_norm, step.weigh)
        if step.device.startswith("cuda"):
            torch.cuda.synchronize()

    return model, optimizer, update


def measure_step(
    objective: Objective,
    model: nn.Module,
    batch: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    micro_batch: int | Plan | MicroBatch,
    max_grad_norm: float = 1.0,
    weigh: Weigh | None = None,
    in_backward: bool = False,
) -> int:
    """Peak bytes of one update on this model and optimizer, weights, state and batch included.

    CPU: highest sum of live bytes of torch's allocator (profiler memory events) above what the weights, the optimizer's
    state and the batch hold; GPU: ``max_memory_allocated``. Call it once the optimizer has state, that is after a first
    update, with gradients None. The learning rates are zero meanwhile, so the weights stay bit for bit; the optimizer's
    moments and the random state move on. ``weigh``, ``in_backward``: as in ``TrainingStep``.
    The profiler's own events need memory: read a process peak before, not after.
    """

    def step() -> None:
        model.train()
        if in_backward:
            clip = PreviousNorm(max_grad_norm) if max_grad_norm > 0 else None
            step_in_backward(objective, model, batch, optimizer, micro_batch=micro_batch, clip=clip)
            return
        _update(objective, model, batch, optimizer, micro_batch, max_grad_norm, weigh)

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


def _update(
    objective: Objective,
    model: nn.Module,
    batch: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    micro_batch: int | Plan | MicroBatch,
    max_grad_norm: float,
    weigh: Weigh | None,
) -> None:
    """One whole update."""
    if weigh is not None:
        fold: Any = update_in_backward if isinstance(optimizer, SGD | Tiger) else update_in_backward_approx
        fold(objective, model, batch, optimizer, weight=weigh(batch), micro_batch=micro_batch)
        return
    accumulate(objective, model, batch, micro_batch=micro_batch)
    if max_grad_norm > 0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def live_bytes(model: nn.Module, batch: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    """What is alive between two updates: weights, buffers, optimizer state, the batch."""
    waiting = [value for value in batch.values() if isinstance(value, Tensor)]
    return _storage_bytes([*model.parameters(), *model.buffers(), *_state_tensors(optimizer), *waiting])
