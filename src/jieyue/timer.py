"""Seconds and peak bytes of a call, and repeats pooled as (n, mean, M2): the pooled value is that of the whole."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Repeats", "median_seconds", "peak_bytes"]


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


def median_seconds(calls: dict[str, Callable[[], Any]], repeats: int = 5, warmup: int = 1) -> dict[str, list[float]]:
    """Wall seconds of each call, ``repeats`` times, alternating between the calls so that drift hits all alike.

    Returns name -> sorted list of seconds (the median is the middle). CUDA is synchronised around each call.
    """
    import torch

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    for call in calls.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: sorted(values) for name, values in seconds.items()}


def peak_bytes(call: Callable[[], Any]) -> int:
    """Highest sum of live bytes of torch's CPU allocator during the call, above what was live when it began.

    Read from the profiler's memory events, so it counts every allocation exactly and none of malloc's slack.
    Warm the call up first: caches and lazily made optimizer state would otherwise be counted.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

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
