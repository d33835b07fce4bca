"""Dropout that is a function of (seed, batch, head, i, j), so that every engine, pass and recomputation draws alike.

    mix(x):  x ^= x >> 16;  x *= 0x7feb352d;  x ^= x >> 15;  x *= 0x846ca68b;  x ^= x >> 16          (uint32 arithmetic)
    row  = mix(mix(seed_low ^ mix(seed_high + b·H + h)) + i),      i counted from the start of the keys (q_offset included)
    keep = mix(row ^ (j · 0x9E3779B9)) ≥ ⌊p·2³²⌋

A counter-based generator: no state, no order, nothing to store. ``mix`` is a permutation of the 32-bit words found by
search for low bias (C. Wellons, "lowbias32", 2018); the native kernel computes the same in C.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draw_seed", "kept", "row_keys"]

_WORD = 0xFFFFFFFF


def draw_seed() -> Tensor:
    """A fresh seed, int64 scalar on the CPU, from torch's default generator (so ``manual_seed`` fixes the dropout)."""
    return torch.randint(0, 2**63 - 1, (), dtype=torch.int64)


def row_keys(seed: int, heads: Tensor, i: Tensor) -> Tensor:
    """One word per head and query: int64 [..., len(i)] for ``heads`` = b·H + h of any shape."""
    return _mix((_mix((seed & _WORD) ^ _mix(((seed >> 32) + heads) & _WORD))[..., None] + i) & _WORD)


def kept(rows: Tensor, j: Tensor, dropout: float) -> Tensor:
    """Boolean [..., rows, len(j)]: True where the weight of key j stays, which happens with probability 1 − dropout."""
    return _mix(rows[..., None] ^ (j * 0x9E3779B9 & _WORD)) >= int(dropout * 2**32)


def _mix(x: Tensor) -> Tensor:
    """uint32 arithmetic on int64: a product may wrap, its low 32 bits are right all the same."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _WORD
    x = (x ^ (x >> 15)) * 0x846CA68B & _WORD
    return x ^ (x >> 16)
