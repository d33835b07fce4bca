"""One way to train, as a row of the plan's table names it, and whether its update is the undivided batch's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from jieyue.budget import Plan
from jieyue.errors import InputError
from jieyue.hf.entries import parse_entry, split_layers
from jieyue.hf.optimizers import OPTIMIZERS
from jieyue.training.techniques import EXACT, UPDATES, Technique, technique

AUTO = "auto"  # of an optimizer or dtype that the run chooses (run.ways)

__all__ = ["AUTO", "DTYPES", "FOLDED", "OPTIMIZERS", "Setting", "dtype_named"]

DTYPES = {"float32": None, "bfloat16": torch.bfloat16}  # of matrix products; None: the weights' own

FOLDED = {
    "momentum": "update in backward (SGD with momentum)",
    "adamw": "update in backward approx (AdamA)",
    "tiger": "update in backward (Tiger, another optimizer)",
}


def dtype_named(name: str) -> torch.dtype | None:
    """What autocast is given, None for none; ``InputError`` for an unknown name."""
    if name not in DTYPES:
        raise InputError("dtype", repr(name), f"one of {', '.join(DTYPES)}")
    return DTYPES[name]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """``micro_batch``: rows a piece; ``attention``: a pattern in place of the model's own; ``chunked``: the vocabulary loss
    in chunks; ``dtype``: of matrix products (bfloat16: autocast); ``optimizer``: of ``OPTIMIZERS``; ``in_backward``: its update
    is folded into the backward pass (momentum, adamw, tiger), in a loop of one's own; ``adapter``, ``base``: as ``RunConfig`` has them,
    such as lora:16 and nf4; ``moving``: each weight moves in the backward pass of a batch that is one piece, in any loop."""

    micro_batch: int
    checkpointing: bool = False
    chunked: bool = False
    attention: str | None = None
    optimizer: str = "adamw"
    dtype: str = "float32"
    in_backward: bool = False
    adapter: str | None = None
    base: str | None = None
    moving: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError("optimizer", repr(self.optimizer), f"one of {', '.join(OPTIMIZERS)}")
        dtype_named(self.dtype)
        for text in () if self.attention is None else split_layers(self.attention):
            parse_entry(text)
        if self.in_backward and self.optimizer not in FOLDED:
            raise InputError("update in backward", repr(self.optimizer), f"one of {', '.join(FOLDED)}")

    @property
    def optimizer_text(self) -> str:
        """As a table names it."""
        return f"{self.optimizer}, in backward" if self.in_backward else self.optimizer

    @property
    def techniques(self) -> tuple[Technique, ...]:
        """What it does to save memory, besides its micro-batch."""
        names = []
        if self.chunked:
            names.append("chunked vocabulary loss")
        if self.checkpointing:
            names.append("activation checkpointing")
        if self.dtype != "float32":
            names.append("bf16 autocast (approx)")
        if self.attention not in (None, "full()"):
            names.append("attention pattern (approx)")
        if self.adapter is not None:
            names.append("low-rank adapters (approx)")
        if self.base is not None:
            names.append("four-bit base (approx)")
        if self.moving:
            names.append("step in backward (one piece)")
        if self.in_backward:
            names.append(FOLDED[self.optimizer])
        found = [technique(name) for name in names]
        own = OPTIMIZERS[self.optimizer].technique
        return (*found, own) if own is not None else tuple(found)

    @property
    def update(self) -> str:
        """Of ``UPDATES``: what the farthest of its techniques leaves of AdamW's update on the undivided batch."""
        return max((one.update for one in self.techniques), key=UPDATES.index, default=EXACT)

    @property
    def exact(self) -> bool:
        """Whether the update equals that of AdamW on the undivided batch with full attention, up to rounding."""
        return self.update == EXACT

    def plan(self, effective_batch: int) -> Plan:
        """What ``accumulate`` obeys."""
        return Plan(
            effective_batch=effective_batch,
            micro_batch=min(self.micro_batch, effective_batch),
            checkpointing=self.checkpointing,
            exact=self.exact,
        )
