"""Some of many, drawn at random: the same ones whatever the run's seed, so that runs of several seeds see the same data."""

from __future__ import annotations

from random import Random

__all__ = ["drawn"]


def drawn(count: int, limit: int, salt: str) -> list[int]:
    """``limit`` different numbers below ``count``, in order; all where there are no more. ``salt``: names the draw.

    >>> drawn(8, 3, "train")
    [3, 4, 7]
    """
    if count <= limit:
        return list(range(count))
    return sorted(Random(f"sample {salt}").sample(range(count), limit))
