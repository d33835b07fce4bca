"""Seconds and peak bytes of a call, and repeats pooled as (n, mean, M2): the pooled value is that of the whole."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Repeats", "median_seconds", "peak_bytes", "take_turns", "timed"]


Timed: TypeAlias = Callable[[], Any]  # what is timed; what it gives is dropped


@dataclass(frozen=True, slots=True)
class Repeats:
    """A measurement's repeats: count, mean, sum of squared deviations. ``a + b`` pools exactly (Chan et al., 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: list[float]) -> Repeats:
        pooled = cls()
        for value in values:
            pooled = pooled + cls(1, value, 0.0)
        return pooled

    def __add__(self, other: Repeats) -> Repeats:
        count = self.count + other.count
        if count == 0:
            return self
        gap = other.mean - self.mean
        return Repeats(
            count,
            self.mean + gap * other.count / count,
            self.squares + other.squares + gap * gap * self.count * other.count / count,
        )

    @property
    def deviation(self) -> float:
        """Sample standard deviation; nan below two repeats."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else math.nan


def timed(call: Timed) -> float:
    """Wall seconds of one call, CUDA waited for."""
    import torch

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def take_turns(
    calls: Mapping[str, Timed],
    repeats: int = 5,
    warmup: int = 1,
    *,
    before: Mapping[str, Timed] | None = None,
    slow_seconds: float = math.inf,
    cold_seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of each call after its warm-up; entry i of all was measured in turn i, so drift hits all alike.

    ``before``: by a call's name, what makes ready for it each time and is not timed. A call that takes longer than
    ``slow_seconds`` is measured once, warm; beyond ``cold_seconds`` its first run counts.
    """

    def once_timed(name: str) -> float:
        if before is not None:
            before[name]()
        return timed(calls[name])

    found: dict[str, list[float]] = {name: [] for name in calls}
    for name in calls:
        for _ in range(warmup):
            seconds = once_timed(name)
            if seconds > slow_seconds:
                once = seconds if seconds > cold_seconds else once_timed(name)
                found[name] = [once] if once > slow_seconds else []
                break
    quick = [name for name in calls if not found[name]]
    for _ in range(repeats):
        for name in quick:
            found[name].append(once_timed(name))
    return found


def median_seconds(calls: Mapping[str, Timed], repeats: int = 5, warmup: int = 1) -> dict[str, list[float]]:
    """``take_turns``, each list sorted: the median is the middle."""
    return {name: sorted(values) for name, values in take_turns(calls, repeats, warmup).items()}


def peak_bytes(call: Timed, device: str = "cpu") -> int:
    """Highest sum of live bytes of torch's allocator during the call, above what was live when it began.

    On the CPU it is read from the profiler's memory events, so it counts every allocation exactly and none of malloc's slack.
    Warm the call up first: caches and lazily made optimizer state would otherwise be counted.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        timed(call)
        return torch.cuda.max_memory_allocated() - before
    os.putenv("KINETO_LOG_LEVEL", "99")  # read by the first profile; else each writes two lines to standard error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as profiled:
        call()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    live = highest = 0
    memory = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        if event.device_type() == torch.autograd.DeviceType.CPU:
            live += event.nbytes()
            highest = max(highest, live)
    return highest
