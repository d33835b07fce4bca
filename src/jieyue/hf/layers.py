"""What one attention module of a model got from ``use``: its entry, and what is known of what the model asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from jieyue.attention import local, why
from jieyue.errors import InputError

from .entries import Entry, HeadsEntry, PatternEntry
from .masks import Ask

__all__ = ["SLOT", "LayerAttention", "Waiting", "Watch"]

SLOT = "jieyue_attention"  # where an attention module keeps its LayerAttention


class Watch(Protocol):
    """Computes a call in an entry's place, [B, H, N, D] -> [B, H, N, V], while ``use`` looks at what a model asks for."""

    def __call__(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, ask: Ask, scale: float | None) -> Tensor: ...


class Waiting(Protocol):
    """A cache's layer that waits to be read."""

    def keep_as_given(self) -> None: ...


@dataclass
class LayerAttention:
    """What one attention module got; ``dropout`` None = the model's, ``called`` once it ran through ours.

    ``window``: the model's own, which ``entry`` is unless ``named`` (a list names every layer); ``seen``: whether causality and
    window were seen, else the first call tells them; ``by_sdpa``: whether the model runs under SDPA too.
    ``heads``: how many key-value heads were seen. ``engines``: what ``attention.why`` said at its first forward pass of each call
    of softmax attention; the first without a reason ran.
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
    heads: int | None = None
    engines: tuple[tuple[tuple[str, str | None], ...], ...] = ()
    watch: Watch | None = None
    waiting: Waiting | None = None  # a cache that handed this layer keys and was not read yet
    _causal: Entry | None = None

    def hear(self, name: str, ask: Ask) -> None:
        """Compares what a call asks for with what ``use`` saw; the first call of a layer that it could not see tells it."""
        if self.cross or self.named:
            return
        if not self.seen:
            if ask.window is not None and str(self.entry) != "full()":
                raise InputError(
                    f"{name}: has a window of its own, {ask.window} to each side, which use() could not see, and was given "
                    f"{self.entry}; expected a list with an entry for every layer, which takes the window's place, or full()"
                )
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
            self.put(PatternEntry(local(window)))

    def put(self, entry: Entry) -> None:
        """Another entry from the next call on; ``use`` alone proves that a model can have it."""
        self.entry, self._causal = entry, None

    def pass_by(self) -> None:
        """The keys are not those that a cache handed out: the model changes them, and the cache keeps what it was given."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.keep_as_given()

    def note_call(self, q: Tensor, k: Tensor, v: Tensor, ask: Ask, dropout: float = 0.0) -> None:
        """Remembers that the module ran, and the first time by which engine, and why by no other."""
        if not self.called and not torch.compiler.is_compiling():
            entry = self.entry_for(ask.causal and not self.cross)
            if isinstance(entry, PatternEntry | HeadsEntry):
                self.engines = tuple(tuple(why(call)) for call in entry.calls(q, k, v, ask, dropout))
        self.called = True

    def entry_for(self, causal: bool) -> Entry:
        if not causal:
            return self.entry
        if self._causal is None:
            self._causal = self.entry.causal()
        return self._causal
