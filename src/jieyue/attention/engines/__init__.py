"""The engines: who computes a call. One literal tuple, tried in order; each answers ``refuses(call)`` with None or why.

An engine never hears local, atrous or causal, only bands, first columns and global rows (``call``). ``attend`` gives (out, lse),
``differentiate`` the gradients given lse and delta of the *whole* softmax. Asking for an engine by name never falls back to
another.
"""

from __future__ import annotations

from jieyue.attention.call import Call, Engine, Gradients, Upstream
from jieyue.errors import InputError

from .composed import COMPOSED
from .dense import DENSE
from .fused import FUSED
from .native import NATIVE

__all__ = ["ENGINES", "Call", "Engine", "Gradients", "Upstream", "named", "pick", "why"]


ENGINES: tuple[Engine, ...] = (NATIVE, FUSED, DENSE, COMPOSED)


def named(name: str) -> Engine:
    """The engine of that name; ``InputError`` lists the names."""
    for engine in ENGINES:
        if engine.name == name:
            return engine
    raise InputError(f"engine={name!r}: expected one of {', '.join(engine.name for engine in ENGINES)}, or None")


def why(call: Call) -> list[tuple[str, str | None]]:
    """Each engine's name with None where it can run the call, else the sentence that says why not; in order of preference."""
    return [(engine.name, engine.refuses(call.taken_by(engine))) for engine in ENGINES]


def pick(call: Call, name: str | None = None) -> Engine:
    """The engine of that name, or the first that does not refuse. ``InputError`` with every reason otherwise."""
    reasons = []
    for engine in ENGINES if not name else (named(name),):
        reason = engine.refuses(call.taken_by(engine))
        if reason is None:
            return engine
        reasons.append(reason)
    raise InputError(f"attend(pattern={str(call.pattern)!r}, engine={name!r}): {'; '.join(reasons)}")
