"""The engines: who computes a band. One literal tuple, tried in order; each answers ``refuses(call)`` with None or why.

An engine never hears local, atrous or causal, only bands. ``forward`` gives (out, lse) over one band, ``backward`` the
gradients given lse and delta of the *merged* softmax; an engine with ``forward_union`` and ``backward_union`` takes
several disjoint bands in one go. Asking for an engine by name never falls back to another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jieyue.attention.lowering import lower
from jieyue.attention.pattern import Band, Pattern
from jieyue.errors import InputError

from .composed import COMPOSED
from .dense import DENSE
from .fused import FUSED
from .native import NATIVE

__all__ = ["ENGINES", "Call", "named", "pick", "why"]


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of an engine: the tensors of ``attend`` and its settings, validated; scale 0 = not asked yet."""

    q: Tensor
    k: Tensor
    v: Tensor
    pattern: Pattern
    key_mask: Tensor | None = None
    scale: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    q_offset: int = 0

    @property
    def bands(self) -> tuple[Band, ...]:
        """The bands that show something to these queries."""
        return lower(self.pattern, self.q.shape[2], self.k.shape[2], self.q_offset)

    @property
    def lifted(self) -> Call:
        """The call as engines get it: half precision on the CPU in float32, to be rounded once, at the end."""
        if self.q.device.type != "cpu" or self.q.dtype not in (torch.float16, torch.bfloat16):
            return self
        return replace(self, q=self.q.float(), k=self.k.float(), v=self.v.float())

    @property
    def options(self) -> dict[str, Any]:
        """The settings as every engine's passes take them."""
        return {name: getattr(self, name) for name in ("key_mask", "scale", "dropout", "seed", "q_offset")}


ENGINES: tuple[Any, ...] = (NATIVE, FUSED, DENSE, COMPOSED)


def named(name: str) -> Any:
    """The engine of that name; ``InputError`` lists the names."""
    for engine in ENGINES:
        if engine.name == name:
            return engine
    raise InputError(f"engine={name!r}: expected one of {', '.join(engine.name for engine in ENGINES)}, or None")


def why(call: Call) -> list[tuple[str, str | None]]:
    """Each engine's name with None where it can run the call, else the sentence that says why not; in order of preference."""
    call = call.lifted
    return [(engine.name, engine.refuses(call)) for engine in ENGINES]


def pick(call: Call, name: str | None = None) -> Any:
    """The engine of that name, or the first that does not refuse. ``InputError`` with every reason otherwise."""
    reasons = []
    for engine in ENGINES if not name else (named(name),):
        reason = engine.refuses(call)
        if reason is None:
            return engine
        reasons.append(reason)
    raise InputError(f"attend(pattern={str(call.pattern)!r}, engine={name!r}): {'; '.join(reasons)}")
