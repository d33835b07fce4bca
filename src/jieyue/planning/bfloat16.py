"""What bfloat16 costs on this processor: one matrix product of it against float32's, timed in turn.

A processor without instructions for it (AVX512-BF16, AMX, NEON's BFMMLA) computes it by way of float32: it then saves memory and
takes longer (pytorch #146508).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from jieyue.timer import take_turns

__all__ = ["Bfloat16Price", "bfloat16_price"]

SHAPE = (256, 768, 768)  # rows, columns in, columns out: a layer's product
TURNS = 7


@dataclass(frozen=True)
class Bfloat16Price:
    """``ratio``: seconds of a matrix product in bfloat16 over those in float32, on this processor."""

    ratio: float

    @property
    def text(self) -> str:
        """As a report says it."""
        how = f"{self.ratio:.2f} times the time of float32's matrix products, measured now"
        return f"slower: {how}; emulated on this processor" if self.ratio > 1 else f"faster: {how}"


def bfloat16_price() -> Bfloat16Price:
    """Times both products, the fastest of ``TURNS`` turns each. Cost: some hundredths of a second."""
    rows, width, out = SHAPE
    left, right = torch.ones(rows, width), torch.ones(width, out)
    narrow = (left.bfloat16(), right.bfloat16())
    found = take_turns({"float32": partial(torch.mm, left, right), "bfloat16": partial(torch.mm, *narrow)}, TURNS)
    return Bfloat16Price(min(found["bfloat16"]) / min(found["float32"]))
