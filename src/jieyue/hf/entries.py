"""What one attention layer computes in place of softmax attention over all keys, and the text that says so.

A model's attention is a comma-separated list of entries tiled over its layers:

    entry = pattern | linear | pattern "+" linear | heads
    linear = "linear(" map ["," "window=" w] ")",     heads = "heads(" number {"," number} ":" pattern ", else:" pattern ")"

Every kind of entry gives the same four things, so that the layers, the cache and the configuration need not know which it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from jieyue.attention import Pattern, parse
from jieyue.errors import InputError
from jieyue.linear import FEATURES, HybridState, LinearState, WindowState, attend_hybrid, attend_linear, attend_window
from jieyue.linear.features import resolve
from jieyue.linear.hybrid import near_window

from .masks import Ask
from .pattern_entries import HeadsEntry, PatternEntry, all_rows, parse_heads

__all__ = [
    "Entry",
    "HeadsEntry",
    "HybridEntry",
    "LinearEntry",
    "Memory",
    "PatternEntry",
    "WindowEntry",
    "parse_entry",
    "refuse_more",
    "split_layers",
]


class Memory(Protocol):
    """What a layer remembers while decoding: ``attention.State``, or one of ``linear``'s states."""

    @property
    def nbytes(self) -> int: ...

    def reorder(self, index: Tensor) -> None: ...

    def crop(self, length: int) -> None: ...


class Entry(Protocol):
    """One kind of attention; ``str(entry)`` is its text, ``croppable`` says whether its memory can take tokens back."""

    croppable: bool

    def causal(self) -> Entry:
        """The same with only the keys at or before the query."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, ask: Ask, *, scale: float | None = None, dropout: float = 0.0
    ) -> Tensor:
        """q [B, H, N, D], k [B, G, M, D], v [B, G, M, V] -> [B, H, N, V], as ``ask`` has it; differentiable.

        Of a causal entry, N <= M queries are the last N of M tokens. First and global tokens count from each row's first kept key.
        """

    def decode(
        self,
        memory: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ask: Ask,
        *,
        scale: float | None,
        dropout: float,
        slack: int,
    ) -> tuple[Tensor, Memory]:
        """A causal entry over the T newest tokens and what ``memory`` has of those before: (out [B, H, T, D], memory after).

        memory None = nothing came before: then it is ``attend``, differentiable. Later steps have no gradient and no dropout.
        ``slack`` tokens and one can be taken back.
        """


@dataclass(frozen=True)
class LinearEntry:
    """Linear attention with a feature map; the model's scale is softmax's, so the map's own is used."""

    features: str
    is_causal: bool = False
    croppable = False

    def __str__(self) -> str:
        return f"linear({self.features})"

    def causal(self) -> LinearEntry:
        _refuse_positions(self, self.features)
        return replace(self, is_causal=True)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, ask: Ask, *, scale: float | None = None, dropout: float = 0.0
    ) -> Tensor:
        _refuse_dropout(self, dropout)
        refuse_more(self, ask.more)
        rows = all_rows(q, k) if self.is_causal else q
        out = attend_linear(rows, k, v, self.features, causal=self.is_causal, key_mask=ask.keys, segments=ask.segments)
        assert isinstance(out, Tensor)
        return out[:, :, rows.shape[2] - q.shape[2] :]

    def decode(
        self,
        memory: LinearState | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ask: Ask,
        *,
        scale: float | None,
        dropout: float,
        slack: int,
    ) -> tuple[Tensor, LinearState]:
        _refuse_dropout(self, dropout)
        refuse_more(self, ask.more)
        if memory is not None and q.shape[2] == 1:
            memory.append(k, v, ask.keys)
            return memory.read(q), memory
        found = attend_linear(q, k, v, self.features, causal=True, key_mask=ask.keys, state=memory, return_state=True)
        assert isinstance(found, tuple)
        out, after = found
        after.sums = after.sums.detach()
        return out, after


@dataclass(frozen=True)
class WindowEntry:
    """A linear map cut to the keys at most ``window`` positions away."""

    features: str
    window: int
    is_causal: bool = False
    croppable = False

    def __str__(self) -> str:
        return f"linear({self.features}, window={self.window})"

    def causal(self) -> WindowEntry:
        return replace(self, is_causal=True)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, ask: Ask, *, scale: float | None = None, dropout: float = 0.0
    ) -> Tensor:
        _refuse_dropout(self, dropout)
        refuse_more(self, ask.more)
        rows = all_rows(q, k) if self.is_causal else q
        out = attend_window(
            rows, k, v, self.features, self.window, causal=self.is_causal, key_mask=ask.keys, segments=ask.segments
        )
        return out[:, :, rows.shape[2] - q.shape[2] :]

    def decode(
        self,
        memory: WindowState | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ask: Ask,
        *,
        scale: float | None,
        dropout: float,
        slack: int,
    ) -> tuple[Tensor, WindowState]:
        out = None if memory else self.attend(q, k, v, ask, scale=scale, dropout=dropout)
        return _continued(memory or WindowState(self.features, self.window), out, q, k, v, ask.keys)


@dataclass(frozen=True)
class HybridEntry:
    """Softmax over the keys that a local pattern shows and a linear map over all others, with one normaliser."""

    near: Pattern
    features: str
    is_causal: bool = False
    croppable = False

    def __str__(self) -> str:
        return f"{self.near}+linear({self.features})"

    def causal(self) -> HybridEntry:
        return replace(self, near=self.near.causal(), is_causal=True)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, ask: Ask, *, scale: float | None = None, dropout: float = 0.0
    ) -> Tensor:
        _refuse_dropout(self, dropout)
        refuse_more(self, ask.more)
        rows = all_rows(q, k) if self.is_causal else q
        segments = ask.segments
        if segments is None and ask.keys is not None and (self.near.first or self.near.first_past):
            segments = (ask.keys.cumsum(1) > 0).long() - 1  # -1 for the padding in front
        out = attend_hybrid(
            rows,
            k,
            v,
            self.near,
            self.features,
            causal=self.is_causal,
            key_mask=ask.keys,
            near_scale=scale,
            segments=segments,
        )
        return out[:, :, rows.shape[2] - q.shape[2] :]

    def decode(
        self,
        memory: HybridState | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ask: Ask,
        *,
        scale: float | None,
        dropout: float,
        slack: int,
    ) -> tuple[Tensor, HybridState]:
        out = None if memory else self.attend(q, k, v, ask, scale=scale, dropout=dropout)
        memory = memory or HybridState(self.near, self.features, near_scale=scale, from_kept=True)
        return _continued(memory, out, q, k, v, ask.keys)


def parse_entry(text: str) -> Entry:
    """One entry of the list; ``InputError`` shows the grammar.

    >>> parse_entry(" linear( elu )"), str(parse_entry("local(2) + atrous(3)"))
    (LinearEntry(features='elu', is_causal=False), 'local(2)+atrous(3)')
    >>> str(parse_entry("linear(relu,window=64)")), str(parse_entry("local(128) + linear(elu)"))
    ('linear(relu, window=64)', 'local(128)+linear(elu)')
    """
    if text.lstrip().startswith("heads"):
        return parse_heads(text)
    terms = split_layers(text, "+")
    found = [(term, re.fullmatch(r"linear\s*\(\s*([\w-]*)\s*(?:,\s*window\s*=\s*(\d+)\s*)?\)", term)) for term in terms]
    maps = [match for _, match in found if match]
    if not maps and "linear" not in text:
        return PatternEntry(parse(text))
    rest = "+".join(term for term, match in found if not match)
    window = maps[0][2] if len(maps) == 1 else None
    if len(maps) != 1 or "linear" in rest or (rest and window):
        raise InputError(
            f"attention={text!r}: expected linear(map), linear(map, window=w) or local(w)+linear(map), map one of "
            f"{', '.join(FEATURES)}"
        )
    features = resolve(maps[0][1]).name
    if not rest and not window:
        return LinearEntry(features)
    entry = WindowEntry(features, int(window)) if window else HybridEntry(parse(rest), features)
    _refuse_positions(entry, features)
    if isinstance(entry, HybridEntry):
        near_window(entry.near)
    return entry


def split_layers(text: str, separator: str = ",") -> list[str]:
    """Splits a list at the commas (or other separators) outside parentheses.

    >>> split_layers("sparse(32, 8), full()")
    ['sparse(32, 8)', 'full()']
    """
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def refuse_more(entry: Entry, asked: Sequence[str]) -> None:
    """``InputError`` for an entry with a linear map where a model asks for what only softmax has; ``asked``: ``Ask.more``."""
    found = [name for name in asked if name != "segments"]
    if found and not isinstance(entry, PatternEntry | HeadsEntry):
        raise InputError(
            f"use(attention='{entry}'): the model asks for {', '.join(found)}, which only exact softmax attention has; expected a "
            "pattern without linear(...)"
        )


def _refuse_dropout(entry: Entry, dropout: float) -> None:
    if dropout:
        raise InputError(
            f"{entry}: found an attention dropout of {dropout}, but linear attention forms no weights that could be dropped; "
            "expected use(model, attention=..., dropout=0.0)"
        )


def _refuse_positions(entry: Entry, features: str) -> None:
    if resolve(features).over_positions:
        raise InputError(
            f"use(attention='{entry}'): the layer is causal or reads a part of the keys, but this map normalises each key over "
            "all positions, so later keys would change what earlier queries see; expected linear(elu), linear(relu), "
            "linear(cosine) or linear(taylor2)"
        )


def _continued(
    memory: Any, out: Tensor | None, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None
) -> tuple[Tensor, Any]:
    """The newest tokens appended and, where ``out`` is None, read; then only what later tokens need is kept."""
    memory.append(k.detach(), v.detach(), key_mask)
    out = memory.read(q) if out is None else out
    memory.settle()
    return out, memory
