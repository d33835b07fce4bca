"""Which keys a query may read: a pattern is a frozen set of disjoint bands over the offset d = i − j.

    Band(step, lo, hi) = {d : d mod step = 0, lo ≤ d ≤ hi},      query i sees key j  ⇔  i + q_offset − j lies in a band

so every pattern is a few integers, and its causal form, its union with another, its mask and its number of visible pairs
are arithmetic on them. Text is the same thing: ``parse(str(pattern)) == pattern``.

    pattern = term {"+" term}
    term    = "full()" | "local(window[, step])" | "atrous(rate)" | "sparse(rate[, window])"
            | "band(step, lo, hi)" | "causal(" pattern ")"

Source: J. Su, "Less is more: from standard to sparse attention" (kexue.fm 6853, 2019), which names atrous, local, sparse.

Letters: N queries, M keys, i a query, j a key, d = i + q_offset − j.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jieyue.errors import InputError

__all__ = ["GRAMMAR", "Band", "Pattern", "atrous", "full", "local", "parse", "shown", "sparse"]

GRAMMAR = (
    "a pattern is term+term+..., a term one of full(), local(window), local(window, step), atrous(rate), "
    "sparse(rate), sparse(rate, window), band(step, lo, hi), causal(pattern)"
)


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


@dataclass(frozen=True, slots=True)
class Pattern:
    """A frozen set of disjoint bands: what one softmax reads. Two patterns are equal when their bands are.

    Build one with ``full``, ``local``, ``atrous``, ``sparse`` or ``parse``; ``a | b`` unites, ``.causal()`` keeps j ≤ i.
    Refuses overlapping bands, and unions that are no set of bands (steps of which neither divides the other).

    >>> (local(4) | atrous(8)).causal().bands
    (Band(step=1, lo=0, hi=4), Band(step=8, lo=8, hi=None))
    >>> str(local(64) | atrous(32)), parse("causal(sparse(8))").pairs(1000, 1000)
    ('local(64)+atrous(32)', 69972)
    """

    bands: tuple[Band, ...]
    text: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.bands:
            raise InputError(f"pattern {self.text!r}: found no offset that it shows, expected at least one")
        for position, band in enumerate(self.bands):
            if Band.tidy(band.step, band.lo, band.hi) != band:
                raise InputError(f"pattern: found {band}, expected ends that are multiples of the step, lo ≤ hi")
            for other in self.bands[:position]:
                if _common(band, other) is not None:
                    raise InputError(f"pattern: found {other} and {band}, which share offsets; expected disjoint bands")
        if not self.text:
            object.__setattr__(self, "text", "+".join(_band_text(band) for band in self.bands))

    def __str__(self) -> str:
        return self.text

    def __contains__(self, d: int) -> bool:
        return any(d in band for band in self.bands)

    def __or__(self, other: Pattern) -> Pattern:
        """The union, again disjoint: of two bands the one with the coarser step gives up what the finer one shows."""
        if not isinstance(other, Pattern):
            return NotImplemented
        bands = _disjoint(self.bands + other.bands)
        for whole in (self, other):
            if bands == whole.bands:
                return whole
        return Pattern(bands, self.text + "+" + other.text)  # not formatted: torch.compile (2.11) must see a constant

    def causal(self) -> Pattern:
        """The pattern with only the keys at or before the query."""
        bands = tuple(kept for band in self.bands if (kept := band.clip(0, None)) is not None)
        return self if bands == self.bands else Pattern(_disjoint(bands), f"causal({self})")

    def mask(self, n: int, m: int, q_offset: int = 0, device: torch.device | str | None = None) -> Tensor:
        """The definition as a boolean [n, m], True = sees. Memory n·m: for small sizes, tests and pictures.

        >>> sparse(3, window=1).mask(4, 6).int().tolist()
        [[1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 1], [1, 0, 1, 1, 1, 0]]
        """
        return shown(self.bands, torch.arange(q_offset, q_offset + n, device=device), torch.arange(m, device=device))

    def pairs(self, n: int, m: int, q_offset: int = 0) -> int:
        """The number of True in ``mask(n, m, q_offset)``, in O(1)."""
        return sum(band.pairs(n, m, q_offset) for band in self.bands)


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


def _one_band(step: int, lo: int | None, hi: int | None) -> Pattern:
    _check("band", "step", step, 1)
    band = Band.tidy(step, lo, hi)
    if band is None:
        raise InputError(f"band({step}, {lo}, {hi}): found no multiple of {step} between {lo} and {hi}, expected one")
    return Pattern((band,))


_TERMS: dict[str, tuple[Callable[..., Pattern], tuple[str, ...]]] = {
    "full": (full, ()),
    "local": (local, ("window", "step")),
    "atrous": (atrous, ("rate",)),
    "sparse": (sparse, ("rate", "window")),
    "band": (_one_band, ("step", "lo", "hi")),
}


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Pattern:
    """The pattern that a text names; the grammar is in this module's docstring, spaces are free.

    >>> parse("sparse(32)") == parse("local(31) + atrous(32)")
    True
    >>> parse("locl(64)")
    Traceback (most recent call last):
    jieyue.errors.InputError: attention pattern 'locl(64)': found the name 'locl', did you mean local? ...
    """
    if not isinstance(text, str):
        raise InputError(f"parse(text): found {text!r} of type {type(text).__name__}, expected text: {GRAMMAR}")
    terms = _split(text, text)
    pattern = _term(terms[0], text)
    for term in terms[1:]:
        pattern = pattern | _term(term, text)
    return pattern


def _wrong(whole: str, what: str) -> InputError:
    return InputError(f"attention pattern {whole!r}: found {what}; {GRAMMAR}")


def _split(text: str, whole: str) -> list[str]:
    """The terms between the plus signs that stand outside parentheses."""
    terms, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if depth < 0:
            raise _wrong(whole, "a ) without its (")
        if char == "+" and depth == 0:
            terms.append("")
        else:
            terms[-1] += char
    if depth:
        raise _wrong(whole, "a ( without its )")
    return terms


def _term(text: str, whole: str) -> Pattern:
    match = re.fullmatch(r"\s*([^\W\d]\w*)\s*(?:\((.*)\))?\s*", text, flags=re.DOTALL)
    if match is None:
        raise _wrong(whole, f"{text.strip()!r} where a term should be" if text.strip() else "an empty term")
    name, inside = match[1], match[2] or ""
    if name == "causal":
        return _united(_split(inside, whole), whole).causal()
    if name not in _TERMS:
        near = difflib.get_close_matches(name.lower(), [*_TERMS, "causal"], n=1, cutoff=0.0)[0]
        raise _wrong(whole, f"the name {name!r}, did you mean {near}?")
    make, names = _TERMS[name]
    return make(**_arguments(name, inside, names, whole))


def _united(terms: list[str], whole: str) -> Pattern:
    return functools.reduce(Pattern.__or__, [_term(term, whole) for term in terms])


def _arguments(name: str, inside: str, names: tuple[str, ...], whole: str) -> dict[str, int | None]:
    given: dict[str, int | None] = {}
    for position, piece in enumerate(inside.split(",") if inside.strip() else []):
        match = re.fullmatch(r"\s*(?:([a-z_]+)\s*=)?\s*([+-]?\d+|[+-]?inf)\s*", piece)
        key = (match[1] or (names[position] if position < len(names) else None)) if match else None
        if match is None or key not in names or key in given or (match[2].endswith("inf") and key not in ("lo", "hi")):
            raise _wrong(whole, f"{piece.strip()!r} in {name}({', '.join(names)}), where whole numbers should be")
        given[key] = None if match[2].endswith("inf") else int(match[2])
    required = names[: 3 if name == "band" else 1]
    if missing := [key for key in required if key not in given]:
        raise _wrong(whole, f"no {missing[0]} in {name}({', '.join(names)})")
    return given


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
