"""From a pattern and sizes to the bands an engine will run: clipped, empty ones left out, needless bounds taken off."""

from __future__ import annotations

from .pattern import Band, Pattern

__all__ = ["lower"]


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
