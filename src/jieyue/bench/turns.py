"""Seconds of calls that take turns, so that what disturbs the machine disturbs all alike; slow calls are made once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["take_turns", "timed"]

SLOW_SECONDS = 1.0  # a call that takes longer is measured once
_NO_WARMUP = 30.0  # and one that takes this long is measured cold


def take_turns(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call after a warm-up, in order of the repeats: entry i of all was measured in turn i."""
    slow: dict[str, list[float]] = {}
    for name, call in calls.items():
        seconds = timed(call)
        if SLOW_SECONDS < seconds < _NO_WARMUP:
            seconds = timed(call)
        if seconds > SLOW_SECONDS:
            slow[name] = [seconds]
    found: dict[str, list[float]] = {name: slow.get(name, []) for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            if name not in slow:
                found[name].append(timed(call))
    return found


def timed(call: Callable[[], Any]) -> float:
    """Wall seconds of a call, CUDA waited for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
