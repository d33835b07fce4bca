"""One way to train, as a row of the plan's table names it, and whether its update is the undivided batch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from jieyue.budget import Plan
from jieyue.errors import InputError, message

__all__ = ["DTYPES", "OPTIMIZERS", "OptimizerChoice", "Setting"]


@dataclass(frozen=True)
class OptimizerChoice:
    """``make(model)`` builds it; ``exact``: its update is that of AdamW, which a plan compares with."""

    make: Callable[[nn.Module], torch.optim.Optimizer]
    exact: bool
    fewer_bytes: str = ""


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), fused=True)


def _adafactor(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(p for p in model.parameters() if p.requires_grad)


def _momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-3, momentum=0.9, fused=True)


OPTIMIZERS = {
    "adamw": OptimizerChoice(_adamw, exact=True),
    "adafactor": OptimizerChoice(_adafactor, exact=False, fewer_bytes="a row and a column of moments a matrix"),
    "momentum": OptimizerChoice(_momentum, exact=False, fewer_bytes="one moment in place of two"),
}
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}  # of matrix products; None: the weights' own


@dataclass(frozen=True, kw_only=True)
class Setting:
    """``micro_batch``: rows a piece; ``attention``: a pattern in place of the model's own; ``chunked``: the vocabulary loss
    in chunks; ``dtype``: of matrix products (bfloat16: autocast); ``optimizer``: of ``OPTIMIZERS``."""

    micro_batch: int
    checkpointing: bool = False
    chunked: bool = False
    attention: str | None = None
    optimizer: str = "adamw"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for what, value, known in (("optimizer", self.optimizer, OPTIMIZERS), ("dtype", self.dtype, DTYPES)):
            if value not in known:
                raise InputError(message(what, repr(value), f"one of {', '.join(known)}"))

    @property
    def exact(self) -> bool:
        """Whether the update equals that of AdamW on the undivided batch with full attention, up to rounding."""
        return OPTIMIZERS[self.optimizer].exact and self.dtype == "float32" and self.attention in (None, "full()")

    def plan(self, effective_batch: int) -> Plan:
        """What ``accumulate`` obeys."""
        return Plan(
            effective_batch=effective_batch,
            micro_batch=min(self.micro_batch, effective_batch),
            checkpointing=self.checkpointing,
            exact=self.exact,
        )
