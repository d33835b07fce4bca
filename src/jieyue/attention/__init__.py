"""Exact attention over patterns of keys: full, local, atrous and their unions, forward, backward and decoding."""

from .engines import ENGINES, Call, pick, why
from .grammar import GRAMMAR, parse
from .operator import attend
from .partial import Partial
from .pattern import Band, Pattern, atrous, first, full, global_tokens, local, sparse
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
    "first",
    "full",
    "global_tokens",
    "local",
    "parse",
    "pick",
    "sparse",
    "why",
]
