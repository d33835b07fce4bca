"""The optimizers that trainings and plans know by name: what the Trainer builds for a name, a plan traces.

adamw        two moments a weight                          what the others are compared with
adafactor    a row and a column of moments a matrix        another optimizer
momentum     SGD, one moment a weight                      another optimizer
adamw-8bit   two moments of a byte each, in blocks         AdamW's moments rounded: an approximation
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from jieyue.errors import InputError, MissingExtra, message
from jieyue.training.techniques import Technique, technique

__all__ = ["OPTIMIZERS", "OptimizerChoice", "make_optimizer", "optimizer_named"]

EIGHT_BIT_EXTRA = "eight-bit"


@dataclass(frozen=True, kw_only=True)
class OptimizerChoice:
    """``optim``, ``optim_args``: as ``TrainingArguments`` take them; ``technique``: of ``TECHNIQUES``, None: nothing is saved.

    ``rate``: its usual learning rate, as a multiple of AdamW's; ``package``: what has to be installed for it.
    """

    optim: str
    optim_args: str | None = None
    technique: Technique | None = None
    rate: float = 1.0
    package: str | None = None

    @property
    def exact(self) -> bool:
        """Whether its update is that of AdamW."""
        return self.technique is None

    @property
    def installed(self) -> bool:
        return self.package is None or find_spec(self.package) is not None

    @property
    def options(self) -> dict[str, Any]:
        """Options of ``training_arguments``."""
        return {"optim": self.optim, "optim_args": self.optim_args}


OPTIMIZERS = {
    "adamw": OptimizerChoice(optim="adamw_torch_fused"),
    "adafactor": OptimizerChoice(optim="adafactor", technique=technique("Adafactor (another optimizer)")),
    "momentum": OptimizerChoice(
        optim="sgd",
        optim_args="momentum=0.9",
        technique=technique("SGD with momentum (another optimizer)"),
        rate=100.0,
    ),
    "adamw-8bit": OptimizerChoice(
        optim="adamw_bnb_8bit", technique=technique("8-bit AdamW (approx)"), package="bitsandbytes"
    ),
}


def optimizer_named(name: str) -> OptimizerChoice:
    """The choice of that name; ``InputError`` for an unknown one, ``MissingExtra`` for one whose package is not installed."""
    if name not in OPTIMIZERS:
        raise InputError(message("optimizer", repr(name), f"one of {', '.join(OPTIMIZERS)}"))
    choice = OPTIMIZERS[name]
    if choice.package is not None and not choice.installed:
        raise MissingExtra(choice.package, EIGHT_BIT_EXTRA)
    return choice


def make_optimizer(model: nn.Module, args: TrainingArguments) -> torch.optim.Optimizer:
    """The optimizer that ``args.optim`` names; weight decay on matrices only, not on biases and norms.

    With little state: ``adafactor``; ``adamw_bnb_8bit`` (bitsandbytes) and ``adamw_torch_8bit`` (torchao) where installed.
    """
    try:
        kind, keywords = Trainer.get_optimizer_cls_and_kwargs(args, cast(Any, model))
    except ImportError as error:
        package = next((name for name in ("bitsandbytes", "torchao") if name in str(error)), None)
        if package is None:
            raise
        raise MissingExtra(package, EIGHT_BIT_EXTRA) from error
    if "optimizer_dict" in keywords or "params" in keywords:
        raise InputError(message("optim", str(args.optim), "one that updates all weights in one step"))
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return kind([group for group in groups if group["params"]], **keywords)
