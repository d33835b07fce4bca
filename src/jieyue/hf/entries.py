"""What one attention layer computes in place of softmax attention over all keys, and the text that says so.

A model's attention is a comma-separated list of entries tiled over its layers; an entry is a pattern ("local(128)+atrous(8)").
Every kind of entry gives the same four things, so that the layers, the cache and the configuration need not know which it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from jieyue.attention import Pattern, State, attend, parse

__all__ = ["SLOT", "Entry", "LayerAttention", "Memory", "PatternEntry", "parse_entry", "split_layers"]


SLOT = "jieyue_attention"  # where an attention module keeps its LayerAttention


class Memory(Protocol):
    """What a layer remembers while decoding, e.g. ``attention.State``."""

    length: int

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

    def begin(self, k: Tensor, v: Tensor, key_mask: Tensor | None, slack: int) -> Any:
        """The memory after a first chunk, of which ``slack`` tokens and one can be taken back."""

    def go_on(
        self, memory: Any, q: Tensor, k: Tensor, v: Tensor, *, key_mask: Tensor | None, scale: float | None
    ) -> Tensor:
        """Adds a chunk to the memory and gives its attention [B, H, T, D] over all that the entry shows of the past."""


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

    def begin(self, k: Tensor, v: Tensor, key_mask: Tensor | None, slack: int) -> State:
        state = State(self.pattern, slack)
        state.append(k, v, key_mask)
        state.crop(state.length)  # a ring lets go of the chunk, which was read elsewhere
        return state

    def go_on(
        self, memory: State, q: Tensor, k: Tensor, v: Tensor, *, key_mask: Tensor | None, scale: float | None
    ) -> Tensor:
        memory.append(k, v, key_mask)
        return memory.read(q, scale)


@dataclass
class LayerAttention:
    """What one attention module got; ``dropout`` None = the model's, ``window`` its own, ``called`` once it ran through here."""

    entry: Entry
    causal_entry: Entry
    cross: bool = False
    dropout: float | None = None
    window: int | None = None
    called: bool = False


def parse_entry(text: str) -> Entry:
    """One entry of the list, e.g. "sparse(32)"; ``InputError`` shows the grammar."""
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
