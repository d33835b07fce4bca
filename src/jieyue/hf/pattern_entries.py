"""Entries of exact softmax attention: one pattern for all heads, or one for some key-value heads and another for the rest.

    heads(0,2: full(), else: first(4)+local(512))

Key-value heads are counted from 0; the query heads that read a key-value head wear its pattern. The two groups of heads are two
calls of ``attend``, each with a memory of its own while decoding, so that a head costs what its own pattern costs.
Source: Xiao et al. 2024, DuoAttention (arXiv 2410.10819), for full heads beside heads with first and near keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from jieyue.attention import Call, Pattern, State, attend, full, parse
from jieyue.attention.segments import runs_of
from jieyue.errors import InputError

from .masks import Ask

__all__ = ["HeadsEntry", "HeadsMemory", "PatternEntry", "all_rows", "kept_share", "parse_heads"]

_TEXT = re.compile(r"heads\s*\(\s*(\d+(?:\s*,\s*\d+)*)\s*:(.+),\s*else\s*:(.+)\)\s*", re.DOTALL)


def kept_share(pattern: Pattern, n: int, *, is_causal: bool = True) -> float:
    """Of all pairs of query and key in a row of ``n`` tokens (``is_causal``: of those up to the query), the share that is shown.

    >>> kept_share(parse("local(1)"), 4, is_causal=False), kept_share(parse("local(3)"), 4)
    (0.625, 1.0)
    """
    if not is_causal:
        return pattern.pairs(n, n) / n**2
    return pattern.causal().pairs(n, n) / full().causal().pairs(n, n)


@dataclass(frozen=True)
class PatternEntry:
    """Exact softmax attention over a pattern's keys."""

    pattern: Pattern
    croppable = True

    def __str__(self) -> str:
        return str(self.pattern)

    def causal(self) -> PatternEntry:
        return PatternEntry(self.pattern.causal())

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, ask: Ask, *, scale: float | None = None, dropout: float = 0.0
    ) -> Tensor:
        segments = self._segments(ask)
        rows = all_rows(q, k) if segments is not None else q
        out = attend(
            rows, k, v, self.pattern, key_mask=ask.keys, scale=scale, dropout=dropout, q_offset=max(0, k.shape[2] - rows.shape[2]),
            segments=segments, sinks=ask.sinks, softcap=ask.softcap, offset_bias=ask.offset_bias,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out[:, :, rows.shape[2] - q.shape[2] :]

    def calls(self, q: Tensor, k: Tensor, v: Tensor, ask: Ask, dropout: float = 0.0) -> list[Call]:
        """What ``attend`` asks an engine for; its seed is not drawn yet."""
        segments = self._segments(ask)
        rows = all_rows(q, k) if segments is not None else q
        call = Call(
            rows, k, v, self.pattern, ask.keys, dropout=dropout, q_offset=max(0, k.shape[2] - rows.shape[2]),
            runs=None if segments is None else runs_of(segments), sinks=ask.sinks, softcap=ask.softcap or 0.0,
            offset_bias=ask.offset_bias,
        )  # fmt: skip
        return [call]

    def _segments(self, ask: Ask) -> Tensor | None:
        """The document of each token; where the pattern counts from a row's first kept key, -1 for the padding in front."""
        counts = bool(self.pattern.first or self.pattern.first_past or self.pattern.global_rows)
        if counts and ask.segments is None and ask.keys is not None:
            return (ask.keys.cumsum(1) > 0).long() - 1
        return ask.segments

    def decode(
        self,
        memory: State | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ask: Ask,
        *,
        scale: float | None,
        dropout: float,
        slack: int,
    ) -> tuple[Tensor, State]:
        if memory is not None:
            memory.append(k, v, ask.keys)
            out = memory.read(q, scale, sinks=ask.sinks, softcap=ask.softcap, offset_bias=ask.offset_bias)
            return out, memory
        memory = State(self.pattern, slack, from_kept=True)
        memory.append(k.detach(), v.detach(), ask.keys)
        memory.crop(k.shape[2])  # a ring lets go of the chunk, which is read here
        return self.attend(q, k, v, ask, scale=scale, dropout=dropout), memory


class HeadsMemory:
    """What both groups of heads remember, the named heads first."""

    def __init__(self, parts: tuple[State, State]) -> None:
        self.parts = parts

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def reorder(self, index: Tensor) -> None:
        for part in self.parts:
            part.reorder(index)

    def crop(self, length: int) -> None:
        for part in self.parts:
            part.crop(length)


@dataclass(frozen=True)
class HeadsEntry:
    """Exact softmax attention in which the key-value heads ``heads`` (ascending, from 0) wear ``named`` and all others ``other``."""

    heads: tuple[int, ...]
    named: PatternEntry
    other: PatternEntry
    croppable = True

    def __str__(self) -> str:
        return f"heads({','.join(map(str, self.heads))}: {self.named}, else: {self.other})"

    def causal(self) -> HeadsEntry:
        return replace(self, named=self.named.causal(), other=self.other.causal())

    def check(self, num_heads: int) -> None:
        """``InputError`` where a layer with so many key-value heads has not all that are named, or no other."""
        if self.heads[-1] >= num_heads or len(self.heads) == num_heads:
            found = f"a layer with {num_heads} key-value head{'s' if num_heads > 1 else ''}"
            allowed = f"some heads of 0 to {num_heads - 1}, not all" if num_heads > 1 else "a layer with several"
            raise InputError(f"use(attention='{self}')", found, allowed, "write one pattern for a whole layer")

    def groups(self, num_heads: int) -> tuple[tuple[PatternEntry, list[int]], tuple[PatternEntry, list[int]]]:
        """(pattern, its key-value heads) of both groups, for a layer of so many."""
        self.check(num_heads)
        rest = [head for head in range(num_heads) if head not in self.heads]
        return (self.named, list(self.heads)), (self.other, rest)

    def mask(self, num_heads: int, n: int, m: int, q_offset: int = 0, device: torch.device | None = None) -> Tensor:
        """The definition as a boolean [G, n, m], True = sees, for so many key-value heads. Memory G·n·m: for small sizes."""
        self.check(num_heads)
        entries = [self.named if head in self.heads else self.other for head in range(num_heads)]
        return torch.stack([entry.pattern.mask(n, m, q_offset, device=device) for entry in entries])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, ask: Ask, *, scale: float | None = None, dropout: float = 0.0
    ) -> Tensor:
        outs = [
            entry.attend(*_of_heads(heads, q, k, v, ask), scale=scale, dropout=dropout)
            for entry, heads in self.groups(k.shape[1])
        ]
        return self._in_order(outs, k.shape[1])

    def calls(self, q: Tensor, k: Tensor, v: Tensor, ask: Ask, dropout: float = 0.0) -> list[Call]:
        """What ``attend`` asks engines for."""
        return [
            call
            for entry, heads in self.groups(k.shape[1])
            for call in entry.calls(*_of_heads(heads, q, k, v, ask), dropout)
        ]

    def decode(
        self,
        memory: HeadsMemory | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ask: Ask,
        *,
        scale: float | None,
        dropout: float,
        slack: int,
    ) -> tuple[Tensor, HeadsMemory]:
        known = (None, None) if memory is None else memory.parts
        (one, own), (two, rest) = (
            entry.decode(past, *_of_heads(heads, q, k, v, ask), scale=scale, dropout=dropout, slack=slack)
            for past, (entry, heads) in zip(known, self.groups(k.shape[1]), strict=True)
        )
        return self._in_order([one, two], k.shape[1]), HeadsMemory((own, rest)) if memory is None else memory

    def _in_order(self, outs: Sequence[Tensor], num_heads: int) -> Tensor:
        """The outputs [B, H', N, V] of both groups as [B, H, N, V], in memory as [B, N, H, V]."""
        share = (outs[0].shape[1] + outs[1].shape[1]) // num_heads
        named, rest = (iter(out.transpose(1, 2).split(share, 2)) for out in outs)
        placed = [next(named if head in self.heads else rest) for head in range(num_heads)]
        return torch.cat(placed, 2).transpose(1, 2)


def parse_heads(text: str) -> HeadsEntry:
    """The entry that a text names; ``InputError`` shows the grammar.

    >>> str(parse_heads("heads( 0, 2 : full() , else: first(4) + local(512))"))
    'heads(0,2: full(), else: first(4)+local(512))'
    """
    found = _TEXT.fullmatch(text.strip())
    form = "heads(0,2: full(), else: first(4)+local(512)): numbers of key-value heads, a pattern for them and one for the others"
    if found is None:
        raise InputError("attention", repr(text), form)
    heads = [int(number) for number in found[1].split(",")]
    if len(set(heads)) < len(heads):
        raise InputError("attention", f"a head twice in {text!r}", form)
    if "linear" in text:
        do = "give whole layers a linear map, in a list of entries"
        raise InputError("attention", f"{text!r}, heads with a linear map", "patterns alone inside heads(...)", do)
    return HeadsEntry(tuple(sorted(heads)), *(PatternEntry(parse(found[place].strip())) for place in (2, 3)))


def _of_heads(heads: Sequence[int], q: Tensor, k: Tensor, v: Tensor, ask: Ask) -> tuple[Tensor, Tensor, Tensor, Ask]:
    """q, k, v and what is asked, of these key-value heads and the query heads that read them."""
    share = q.shape[1] // k.shape[1]
    readers = [head * share + place for head in heads for place in range(share)]
    sinks = None if ask.sinks is None else ask.sinks[readers]
    bias = ask.offset_bias
    if bias is not None and bias.shape[0] > 1:
        bias = bias[readers]
    return _taken(q, readers), _taken(k, heads), _taken(v, heads), replace(ask, sinks=sinks, offset_bias=bias)


def _taken(x: Tensor, heads: Sequence[int]) -> Tensor:
    """x [B, H, ...] with these heads: a view where they lie side by side, else a copy."""
    if heads[-1] - heads[0] + 1 == len(heads):
        return x[:, heads[0] : heads[-1] + 1]
    return x[:, list(heads)]


def all_rows(q: Tensor, k: Tensor) -> Tensor:
    """The last queries behind zeros for those before, so that there is one for each key."""
    missing = k.shape[2] - q.shape[2]
    return F.pad(q, (0, 0, missing, 0)) if missing > 0 else q
