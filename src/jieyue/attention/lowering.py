"""From a pattern and sizes to the bands an engine will run: clipped, empty ones left out, needless bounds taken off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from .pattern import Band, Pattern

__all__ = ["BandLike", "Steps", "in_steps", "lower"]

_WIDEST_HOLE = 15  # offsets between two bands of a step that are worth walking over, so that they are one band


class BandLike(Protocol):
    """i + q_offset - j is a multiple of step within [lo, hi]; None = unbounded."""

    @property
    def step(self) -> int: ...

    @property
    def lo(self) -> int | None: ...

    @property
    def hi(self) -> int | None: ...


class Steps(NamedTuple):
    """A band as kernels take it: finite ends, counted in steps, perhaps with a hole; hole_lo > hole_hi where there is none."""

    step: int
    lo: int
    hi: int
    hole_lo: int = 1
    hole_hi: int = 0

    @property
    def holed(self) -> bool:
        return self.hole_lo <= self.hole_hi


def lower(pattern: Pattern, n: int, m: int, q_offset: int = 0) -> tuple[Band, ...]:
    """The bands that show something to n queries of m keys; an end that cuts nothing off becomes None.

    >>> from .pattern import local, sparse
    >>> lower(local(512), 100, 100), lower(sparse(64, 8).causal(), 50, 50)
    ((Band(step=1, lo=None, hi=None),), (Band(step=1, lo=0, hi=8),))
    """
    found = []
    for band in pattern.bands:
        clipped = band.clip_to(n, m, q_offset)
        if clipped is None:
            continue
        assert clipped.lo is not None and clipped.hi is not None
        lo = None if clipped.lo - clipped.step < q_offset - (m - 1) else clipped.lo
        hi = None if clipped.hi + clipped.step > q_offset + n - 1 else clipped.hi
        found.append(Band(clipped.step, lo, hi) if clipped.lo < clipped.hi else clipped)
    return tuple(found)


def in_steps(bands: Iterable[BandLike], n: int, m: int, q_offset: int = 0) -> list[Steps]:
    """Disjoint bands with their offsets counted in steps and clipped to those that exist; two of one step with a narrow
    gap between them become one with a hole.

    >>> from .pattern import sparse
    >>> in_steps(sparse(8, 11).bands, 100, 100)
    [Steps(step=1, lo=-11, hi=11, hole_lo=1, hole_hi=0), Steps(step=8, lo=-12, hi=12, hole_lo=-1, hole_hi=1)]
    """
    lowest, highest = q_offset - (m - 1), q_offset + n - 1
    found: list[tuple[int, int, int]] = []
    for band in bands:
        lo = lowest if band.lo is None else max(lowest, band.lo)
        hi = highest if band.hi is None else min(highest, band.hi)
        step = band.step
        if step > max(abs(lowest), abs(highest)):  # 0 is its only multiple here
            step, lo, hi = 1, max(lo, 0), min(hi, 0)
        lo, hi = -(-lo // step), hi // step
        if lo <= hi:
            found.append((step, lo, hi))
    lowered: list[Steps] = []
    for step, lo, hi in sorted(found):
        last = lowered[-1] if lowered else None
        if last is not None and last.step == step and not last.holed and lo - last.hi <= _WIDEST_HOLE + 1:
            lowered[-1] = last._replace(hi=hi, hole_lo=last.hi + 1, hole_hi=lo - 1)
        else:
            lowered.append(Steps(step, lo, hi))
    return lowered
