"""Exact attention over patterns of keys: full, local, atrous and their unions, forward, backward and decoding."""

from .engines import ENGINES, Call, pick, why
from .operator import attend
from .partial import Partial
from .pattern import GRAMMAR, Band, Pattern, atrous, full, local, parse, sparse
from .state import State

__all__ = [
    "ENGINES",
    "GRAMMAR",
    "Band",
    "Call",
    "Partial",
    "Pattern",
    "State",
    "atrous",
    "attend",
    "full",
    "local",
    "parse",
    "pick",
    "sparse",
    "why",
]
