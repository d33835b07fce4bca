"""What one attention layer computes in place of softmax attention over all keys, and the text that says so.

A model's attention is a comma-separated list of entries tiled over its layers; an entry is a pattern ("local(128)+atrous(8)").
Every kind of entry gives the same four things, so that the layers, the cache and the configuration need not know which it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from jieyue.attention import Pattern, State, attend, parse
from jieyue.errors import InputError
from jieyue.linear import FEATURES, LinearState, attend_linear
from jieyue.linear.features import resolve

__all__ = ["SLOT", "Entry", "LayerAttention", "LinearEntry", "Memory", "PatternEntry", "parse_entry", "split_layers"]


SLOT = "jieyue_attention"  # where an attention module keeps its LayerAttention


class Memory(Protocol):
    """What a layer remembers while decoding: ``attention.State``, ``linear.LinearState``."""

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
        if resolve(self.features).over_positions:
            raise InputError(
                f"use(attention='{self}'): the layer is causal, but this map normalises each key over all positions, so later "
                "keys would change what earlier queries see; expected linear(elu), linear(relu), linear(cosine) or linear(taylor2)"
            )
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


@dataclass
class LayerAttention:
    """What one attention module got; ``dropout`` None = the model's, ``window`` its own, ``called`` once it ran through ours."""

    entry: Entry
    cross: bool = False
    dropout: float | None = None
    window: int | None = None
    called: bool = False
    _causal: Entry | None = None

    def entry_for(self, causal: bool) -> Entry:
        if not causal:
            return self.entry
        if self._causal is None:
            self._causal = self.entry.causal()
        return self._causal


def parse_entry(text: str) -> Entry:
    """One entry of the list: a pattern or ``linear(map)``; ``InputError`` shows the grammar.

    >>> parse_entry(" linear( elu )"), str(parse_entry("local(2) + atrous(3)"))
    (LinearEntry(features='elu', is_causal=False), 'local(2)+atrous(3)')
    """
    found = re.fullmatch(r"\s*linear\s*\(\s*([\w-]*)\s*\)\s*", text)
    if found:
        return LinearEntry(resolve(found[1]).name)
    if "linear" in text:
        raise InputError(f"attention={text!r}: expected linear(map) alone, map one of {', '.join(FEATURES)}")
    return PatternEntry(parse(text))


def split_layers(text: str) -> list[str]:
    """Splits a list at the commas outside parentheses.

    >>> split_layers("sparse(32, 8), full()")
    ['sparse(32, 8)', 'full()']
    """
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
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
