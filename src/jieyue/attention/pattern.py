"""Which keys a query may read: a pattern is a frozen set of disjoint bands over the offset d = i − j, first keys and global rows.

    Band(step, lo, hi) = {d : d mod step = 0, lo ≤ d ≤ hi}
    query i sees key j  ⇔  d = i + q_offset − j lies in a band,  or j < first,  or j < first_past and d ≥ 0,
                           or i + q_offset < global_rows

so every pattern is a few integers, and its causal form, its union with another, its mask and its number of visible pairs
are arithmetic on them. ``grammar`` reads and writes the same thing as text: ``parse(str(pattern)) == pattern``.

Sources: J. Su, "Less is more: from standard to sparse attention" (kexue.fm 6853, 2019), which names atrous, local, sparse;
global rows as in Longformer (Beltagy et al. 2020) and BigBird (Zaheer et al. 2020); first keys as in G. Xiao et al., "Efficient
streaming language models with attention sinks" (2024).

Letters: N queries, M keys, i a query, j a key, d = i + q_offset − j.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from jieyue.errors import InputError

__all__ = ["Band", "Part", "Pattern", "atrous", "first", "full", "global_tokens", "local", "shown", "sparse"]


@dataclass(frozen=True, slots=True)
class Band:
    """The offsets d with d mod step = 0 and lo ≤ d ≤ hi; ``None`` is an end without bound.

    Finite ends are multiples of ``step`` (``Band.tidy`` makes them so); ``d in band`` asks for one offset.
    """

    step: int
    lo: int | None
    hi: int | None

    @staticmethod
    def tidy(step: int, lo: int | None, hi: int | None) -> Band | None:
        """The band with its ends drawn in to multiples of step, or None where no offset is left.

        >>> Band.tidy(4, -6, 9), Band.tidy(4, 1, 3)
        (Band(step=4, lo=-4, hi=8), None)
        """
        lo = None if lo is None else -(-lo // step) * step
        hi = None if hi is None else hi // step * step
        if lo is not None and hi is not None:
            if lo > hi:
                return None
            if lo == hi:
                step = 1  # one offset: any step describes it, so the plainest does
        return Band(step, lo, hi)

    def __contains__(self, d: int) -> bool:
        return d % self.step == 0 and (self.lo is None or self.lo <= d) and (self.hi is None or d <= self.hi)

    def clip(self, lo: int | None, hi: int | None) -> Band | None:
        """The part of this band with lo ≤ d ≤ hi."""
        return Band.tidy(self.step, _upper(self.lo, lo), _lower(self.hi, hi))

    def clip_to(self, n: int, m: int, q_offset: int = 0) -> Band | None:
        """The band's offsets that occur between n queries and m keys, both ends finite; None where there are none."""
        return self.clip(q_offset - (m - 1), q_offset + n - 1)

    def pairs(self, n: int, m: int, q_offset: int = 0) -> int:
        """How many (i, j) with 0 ≤ i < n, 0 ≤ j < m this band shows, in O(1).

        The number of pairs at e = i − j is a trapezoid: m + e rising, min(n, m) flat, n − e falling; an arithmetic series each.
        """
        clipped = self.clip_to(n, m, q_offset) if n > 0 and m > 0 else None
        if clipped is None:
            return 0
        assert clipped.lo is not None and clipped.hi is not None
        first, last, step = clipped.lo - q_offset, clipped.hi - q_offset, clipped.step
        top = min(n, m)
        return (
            _series(first, last, step, 1 - m, top - m - 1, lambda e: m + e)
            + _series(first, last, step, top - m, n - top, lambda e: top)
            + _series(first, last, step, n - top + 1, n - 1, lambda e: n - e)
        )


class Part(NamedTuple):
    """Disjoint bands between the queries start..stop and the keys start..stop: a rectangle of the whole."""

    rows: tuple[int, int]
    keys: tuple[int, int]
    bands: tuple[Band, ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A frozen set of disjoint bands, with first keys and global rows: what one softmax reads.

    ``first``: keys j < first are seen by every query; ``first_past``: keys j < first_past by the queries from them on (the causal
    form of first); ``global_rows``: the queries at positions below it see every key. Two patterns are equal when all of these are.

    Build one with ``full``, ``local``, ``atrous``, ``sparse``, ``first``, ``global_tokens`` or ``parse``; ``a | b`` unites,
    ``.causal()`` keeps j ≤ i. Refuses overlapping bands, and unions that are no set of bands (steps of which neither divides the
    other).

    >>> (local(4) | atrous(8)).causal().bands
    (Band(step=1, lo=0, hi=4), Band(step=8, lo=8, hi=None))
    >>> str(local(64) | atrous(32)), (first(4) | local(512)).causal().pairs(1000, 1000)
    ('local(64)+atrous(32)', 383614)
    """

    bands: tuple[Band, ...]
    text: str = field(default="", compare=False)
    first: int = 0
    first_past: int = 0
    global_rows: int = 0

    def __post_init__(self) -> None:
        if not self.bands and not max(self.first, self.first_past, self.global_rows):
            raise InputError(f"pattern {self.text!r}: found no offset that it shows, expected at least one")
        for position, band in enumerate(self.bands):
            if Band.tidy(band.step, band.lo, band.hi) != band:
                raise InputError(f"pattern: found {band}, expected ends that are multiples of the step, lo ≤ hi")
            for other in self.bands[:position]:
                if _common(band, other) is not None:
                    raise InputError(f"pattern: found {other} and {band}, which share offsets; expected disjoint bands")
        self._leave_out_what_is_shown_already()
        if not self.text:
            object.__setattr__(self, "text", "+".join(self._terms()))

    def _leave_out_what_is_shown_already(self) -> None:
        """So that one set is one value: global rows need no more first keys, first keys no first_past, full() neither."""
        every = any(band.step == 1 and band.lo is None and band.hi is None for band in self.bands)
        past = every or any(
            band.step == 1 and (band.lo is None or band.lo <= 0) and band.hi is None for band in self.bands
        )
        object.__setattr__(self, "global_rows", 0 if every else self.global_rows)
        object.__setattr__(self, "first", 0 if every else max(self.first, self.global_rows))
        object.__setattr__(self, "first_past", 0 if past or self.first_past <= self.first else self.first_past)

    def _terms(self) -> list[str]:
        terms = [_band_text(band) for band in self.bands]
        if self.first > self.global_rows:
            terms.append(f"first({self.first})")
        if self.first_past:
            terms.append(f"causal(first({self.first_past}))")
        if self.global_rows:
            terms.append(f"global({self.global_rows})")
        return terms

    def __str__(self) -> str:
        return self.text

    def __contains__(self, d: int) -> bool:
        """Whether a query sees the key at offset d wherever it stands: first keys and global rows aside."""
        return any(d in band for band in self.bands)

    def __or__(self, other: Pattern) -> Pattern:
        """The union, again disjoint: of two bands the one with the coarser step gives up what the finer one shows."""
        if not isinstance(other, Pattern):
            return NotImplemented
        bands = _disjoint(self.bands + other.bands)
        ends = [max(a, b) for a, b in zip(self._ends, other._ends, strict=True)]
        text = self.text + "+" + other.text  # not formatted: torch.compile (2.11) must see a constant
        united = Pattern(bands, text, *ends)
        for whole in (self, other):
            if united.bands == whole.bands and united._ends == whole._ends:
                return whole
        return united

    @property
    def _ends(self) -> tuple[int, int, int]:
        return self.first, self.first_past, self.global_rows

    @property
    def is_causal(self) -> bool:
        """Whether no query sees a key after it."""
        return not self.first and not self.global_rows and all(b.lo is not None and b.lo >= 0 for b in self.bands)

    def causal(self) -> Pattern:
        """The pattern with only the keys at or before the query."""
        if self.is_causal:
            return self
        bands = tuple(kept for band in self.bands if (kept := band.clip(0, None)) is not None)
        return Pattern(_disjoint(bands), "causal(" + self.text + ")", 0, max(self.first, self.first_past), 0)

    def mask(self, n: int, m: int, q_offset: int = 0, device: torch.device | str | None = None) -> Tensor:
        """The definition as a boolean [n, m], True = sees. Memory n·m: for small sizes, tests and pictures.

        >>> sparse(3, window=1).mask(4, 6).int().tolist()
        [[1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 1], [1, 0, 1, 1, 1, 0]]
        """
        if min(n, m) < 0:
            raise InputError(f"mask(n={n}, m={m}): expected sizes of at least 0")
        return self.sees(torch.arange(q_offset, q_offset + n, device=device), torch.arange(m, device=device))

    def sees(self, i: Tensor, j: Tensor) -> Tensor:
        """Boolean [..., len(i), len(j)]: whether a query at position i sees the key at j."""
        found = shown(self.bands, i, j)
        i, j = i[..., :, None], j[..., None, :]
        if self.first:
            found |= j < self.first
        if self.first_past:
            found |= (j < self.first_past) & (i >= j)
        if self.global_rows:
            found |= i < self.global_rows
        return found

    def parts(self, n: int, m: int, q_offset: int = 0) -> list[Part]:
        """The visible pairs cut into at most four disjoint rectangles of bands: global rows, first keys (two), and the rest.

        Within a part, query rows.start + a sees key keys.start + b where a − b + (q_offset + rows.start − keys.start) is in a band.
        """
        everything = (Band(1, None, None),)
        top = min(max(self.global_rows - q_offset, 0), n) if self.global_rows else 0
        end = min(self.first, m)
        past = max(end, min(self.first_past, m))
        ahead = tuple(kept for band in self.bands if (kept := band.clip(None, -1)) is not None)
        found = [
            Part((0, top), (0, m), everything),
            Part((top, n), (0, end), everything),
            Part((top, n), (end, past), (Band(1, 0, None), *ahead)),
            Part((top, n), (past, m), self.bands),
        ]
        return [part for part in found if part.rows[0] < part.rows[1] and part.keys[0] < part.keys[1] and part.bands]

    def pairs(self, n: int, m: int, q_offset: int = 0) -> int:
        """The number of True in ``mask(n, m, q_offset)``, in O(1)."""
        return sum(
            band.pairs(rows[1] - rows[0], keys[1] - keys[0], q_offset + rows[0] - keys[0])
            for rows, keys, bands in self.parts(n, m, q_offset)
            for band in bands
        )


def shown(bands: Iterable[Band], i: Tensor, j: Tensor) -> Tensor:
    """Boolean [..., len(i), len(j)]: whether a query at the (absolute) position i sees the key at j in one of the bands."""
    d = i[..., :, None] - j[..., None, :]
    sees = torch.zeros_like(d, dtype=torch.bool)
    for band in bands:
        inside = d % band.step == 0 if band.step > 1 else torch.ones_like(sees)
        if band.lo is not None:
            inside &= d >= band.lo
        if band.hi is not None:
            inside &= d <= band.hi
        sees |= inside
    return sees


def full() -> Pattern:
    """Every query sees every key."""
    return Pattern((Band(1, None, None),), "full()")


def local(window: int, step: int = 1) -> Pattern:
    """|i − j| ≤ window·step, in multiples of step: window keys on either side and the query's own.

    >>> str(local(128)), local(2, step=3).bands
    ('local(128)', (Band(step=3, lo=-6, hi=6),))
    """
    _check("local", "window", window, 0)
    _check("local", "step", step, 1)
    band = Band.tidy(step, -window * step, window * step)
    assert band is not None
    return Pattern((band,), f"local({window})" if step == 1 else f"local({window}, step={step})")


def atrous(rate: int) -> Pattern:
    """(i − j) mod rate = 0: every rate-th key, through the query's own; n/rate keys per query."""
    _check("atrous", "rate", rate, 1)
    return Pattern((Band(rate, None, None),), f"atrous({rate})")


def sparse(rate: int, window: int | None = None) -> Pattern:
    """The union of local(window) and atrous(rate) in one softmax; window = rate − 1 unless given.

    >>> sparse(32) == local(31) | atrous(32)
    True
    """
    _check("sparse", "rate", rate, 1)
    near = rate - 1 if window is None else window
    _check("sparse", "window", near, 0)
    return Pattern(
        (local(near) | atrous(rate)).bands, f"sparse({rate})" if window is None else f"sparse({rate}, {near})"
    )


def first(count: int) -> Pattern:
    """Keys j < count for every query; causal, for the queries that come after them.

    >>> str((first(4) | local(512)).causal())
    'causal(first(4)+local(512))'
    """
    _check("first", "count", count, 1)
    return Pattern((), f"first({count})", first=count)


def global_tokens(count: int) -> Pattern:
    """The first ``count`` tokens see every key and are seen by every query; text ``global(count)``.

    >>> global_tokens(2).mask(3, 4).int().tolist(), global_tokens(2).causal() == first(2).causal()
    ([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]], True)
    """
    _check("global_tokens", "count", count, 1)
    return Pattern((), f"global({count})", global_rows=count)


def _band_text(band: Band) -> str:
    lo, hi = ("-inf" if band.lo is None else band.lo), ("inf" if band.hi is None else band.hi)
    return f"band({band.step}, {lo}, {hi})"


def _check(name: str, argument: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}({argument}={value!r}): expected a whole number, at least {least}")


def _upper(a: int | None, b: int | None) -> int | None:
    """The greater of two lower ends."""
    return b if a is None else a if b is None else max(a, b)


def _lower(a: int | None, b: int | None) -> int | None:
    """The smaller of two upper ends."""
    return b if a is None else a if b is None else min(a, b)


def _common(x: Band, y: Band) -> Band | None:
    return Band.tidy(math.lcm(x.step, y.step), _upper(x.lo, y.lo), _lower(x.hi, y.hi))


def _key(band: Band) -> tuple[float, float, float]:
    """Finer steps first; single offsets, which fit into any step, last."""
    lo, hi = (-math.inf if band.lo is None else band.lo), (math.inf if band.hi is None else band.hi)
    return (math.inf if lo == hi else band.step), lo, hi


def _disjoint(bands: tuple[Band, ...]) -> tuple[Band, ...]:
    """The same offsets, each in one band: finer steps first, the coarser bands lose what is already shown."""
    todo = sorted(bands, key=_key)
    done: list[Band] = []
    while todo:
        band = todo.pop(0)
        for other in done:
            if _common(band, other) is None:
                continue
            if band.step % other.step and not (band.lo is not None and band.lo == band.hi):
                raise InputError(
                    f"union of a pattern with step {other.step} and one with step {band.step}: found offsets that both "
                    f"show, expected steps of which one divides the other"
                )
            todo = sorted([*todo, *_minus(band, other)], key=_key)
            break
        else:
            done.append(band)
    return _joined(done)


def _minus(band: Band, other: Band) -> list[Band]:
    """The offsets of band outside other, whose step divides band's."""
    below = None if other.lo is None else band.clip(None, other.lo - 1)
    above = None if other.hi is None else band.clip(other.hi + 1, None)
    return [part for part in (below, above) if part is not None]


def _joined(bands: list[Band]) -> tuple[Band, ...]:
    """Neighbours with one step become one band."""
    joined: list[Band] = []
    for band in sorted(bands, key=lambda band: (band.step, *_key(band)[1:])):
        last = joined[-1] if joined else None
        if last and last.step == band.step and last.hi is not None and band.lo == last.hi + band.step:
            joined[-1] = Band(band.step, last.lo, band.hi)
        else:
            joined.append(band)
    return tuple(joined)


def _series(first: int, last: int, step: int, start: int, stop: int, value: Callable[[int], int]) -> int:
    """The sum of a linear value(e) over e = first, first + step, ... ≤ last that lie within start..stop."""
    lo = first + max(0, -(-(start - first) // step)) * step
    hi = first + (min(last, stop) - first) // step * step
    if lo > hi:
        return 0
    count = (hi - lo) // step + 1
    return count * (value(lo) + value(hi)) // 2
