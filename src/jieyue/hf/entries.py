"""What one attention layer computes in place of softmax attention over all keys, and the text that says so.

A model's attention is a comma-separated list of entries tiled over its layers:

    entry = pattern | linear | pattern "+" linear,      linear = "linear(" map ["," "window=" w] ")"

Every kind of entry gives the same four things, so that the layers, the cache and the configuration need not know which it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from jieyue.attention import Call, Pattern, State, attend, local, parse, why
from jieyue.errors import InputError
from jieyue.linear import FEATURES, HybridState, LinearState, WindowState, attend_hybrid, attend_linear, attend_window
from jieyue.linear.features import resolve
from jieyue.linear.hybrid import near_window

from .masks import Ask

__all__ = [
    "SLOT",
    "Entry",
    "HybridEntry",
    "LayerAttention",
    "LinearEntry",
    "Memory",
    "PatternEntry",
    "Watch",
    "WindowEntry",
    "parse_entry",
    "split_layers",
]


SLOT = "jieyue_attention"  # where an attention module keeps its LayerAttention


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
        self, q: Tensor, k: Tensor, v: Tensor, *, key_mask: Tensor | None, scale: float | None, dropout: float
    ) -> Tensor:
        """q [B, H, N, D], k and v [B, G, M, D], key_mask [B, M] True = keep -> [B, H, N, D]; differentiable."""

    def decode(
        self,
        memory: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None,
        scale: float | None,
        dropout: float,
        slack: int,
    ) -> tuple[Tensor, Memory]:
        """A causal entry over the T newest tokens and what ``memory`` has of those before: (out [B, H, T, D], memory after).

        memory None = nothing came before: then it is ``attend``, differentiable. Later steps have no gradient and no dropout.
        ``slack`` tokens and one can be taken back.
        """


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
        self, q: Tensor, k: Tensor, v: Tensor, *, key_mask: Tensor | None, scale: float | None, dropout: float
    ) -> Tensor:
        out = attend(q, k, v, self.pattern, key_mask=key_mask, scale=scale, dropout=dropout)
        assert isinstance(out, Tensor)
        return out

    def decode(
        self,
        memory: State | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None,
        scale: float | None,
        dropout: float,
        slack: int,
    ) -> tuple[Tensor, State]:
        if memory is not None:
            memory.append(k, v, key_mask)
            return memory.read(q, scale), memory
        memory = State(self.pattern, slack)
        memory.append(k.detach(), v.detach(), key_mask)
        memory.crop(k.shape[2])  # a ring lets go of the chunk, which is read here
        return self.attend(q, k, v, key_mask=key_mask, scale=scale, dropout=dropout), memory


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
        self, q: Tensor, k: Tensor, v: Tensor, *, key_mask: Tensor | None, scale: float | None, dropout: float
    ) -> Tensor:
        _refuse_dropout(self, dropout)
        out = attend_linear(q, k, v, self.features, causal=self.is_causal, key_mask=key_mask)
        assert isinstance(out, Tensor)
        return out

    def decode(
        self,
        memory: LinearState | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None,
        scale: float | None,
        dropout: float,
        slack: int,
    ) -> tuple[Tensor, LinearState]:
        _refuse_dropout(self, dropout)
        if memory is not None and q.shape[2] == 1:
            memory.append(k, v, key_mask)
            return memory.read(q), memory
        found = attend_linear(q, k, v, self.features, causal=True, key_mask=key_mask, state=memory, return_state=True)
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
        self, q: Tensor, k: Tensor, v: Tensor, *, key_mask: Tensor | None, scale: float | None, dropout: float
    ) -> Tensor:
        _refuse_dropout(self, dropout)
        return attend_window(q, k, v, self.features, self.window, causal=self.is_causal, key_mask=key_mask)

    def decode(
        self,
        memory: WindowState | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None,
        scale: float | None,
        dropout: float,
        slack: int,
    ) -> tuple[Tensor, WindowState]:
        out = None if memory else self.attend(q, k, v, key_mask=key_mask, scale=scale, dropout=dropout)
        return _continued(memory or WindowState(self.features, self.window), out, q, k, v, key_mask)


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
        self, q: Tensor, k: Tensor, v: Tensor, *, key_mask: Tensor | None, scale: float | None, dropout: float
    ) -> Tensor:
        _refuse_dropout(self, dropout)
        return attend_hybrid(
            q, k, v, self.near, self.features, causal=self.is_causal, key_mask=key_mask, near_scale=scale
        )

    def decode(
        self,
        memory: HybridState | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        key_mask: Tensor | None,
        scale: float | None,
        dropout: float,
        slack: int,
    ) -> tuple[Tensor, HybridState]:
        out = None if memory else self.attend(q, k, v, key_mask=key_mask, scale=scale, dropout=dropout)
        return _continued(memory or HybridState(self.near, self.features, near_scale=scale), out, q, k, v, key_mask)


class Watch(Protocol):
    """Computes a call in an entry's place, [B, H, N, D] -> [B, H, N, V], while ``use`` looks at what a model asks for."""

    def __call__(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, ask: Ask, scale: float | None) -> Tensor: ...


@dataclass
class LayerAttention:
    """What one attention module got; ``dropout`` None = the model's, ``called`` once it ran through ours.

    ``window``: the model's own, which ``entry`` is unless ``named`` (a list names every layer); ``seen``: whether causality and
    window were seen, else the first call tells them; ``by_sdpa``: whether the model runs under SDPA too.
    ``engines``: what ``attention.why`` said at its first forward pass, for a pattern; the first without a reason ran.
    """

    entry: Entry
    cross: bool = False
    dropout: float | None = None
    window: int | None = None
    causal: bool = False
    named: bool = False
    seen: bool = False
    by_sdpa: bool = True
    called: bool = False
    engines: tuple[tuple[str, str | None], ...] = ()
    watch: Watch | None = None
    _causal: Entry | None = None

    def hear(self, name: str, ask: Ask) -> None:
        """Compares what a call asks for with what ``use`` saw; the first call of a layer that it could not see tells it."""
        if self.cross or self.named:
            return
        if not self.seen:
            self.seen = True
            self.keep_window(ask.window)
        if ask.window != self.window:
            raise InputError(
                f"{name}: asks for a window of {ask.window} to each side, where use() saw {self.window}; expected the same "
                "window in every call"
            )

    def keep_window(self, window: int | None) -> None:
        """The model's own window takes the place of the entry."""
        self.window = window
        if window is not None:
            self.entry, self._causal = PatternEntry(local(window)), None

    def note_call(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Remembers that the module ran, and the first time by which engine, and why by no other."""
        if not self.called and isinstance(self.entry, PatternEntry) and not torch.compiler.is_compiling():
            self.engines = tuple(why(Call(q, k, v, self.entry.pattern)))
        self.called = True

    def entry_for(self, causal: bool) -> Entry:
        if not causal:
            return self.entry
        if self._causal is None:
            self._causal = self.entry.causal()
        return self._causal


def parse_entry(text: str) -> Entry:
    """One entry of the list; ``InputError`` shows the grammar.

    >>> parse_entry(" linear( elu )"), str(parse_entry("local(2) + atrous(3)"))
    (LinearEntry(features='elu', is_causal=False), 'local(2)+atrous(3)')
    >>> str(parse_entry("linear(relu,window=64)")), str(parse_entry("local(128) + linear(elu)"))
    ('linear(relu, window=64)', 'local(128)+linear(elu)')
    """
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
