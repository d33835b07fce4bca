"""The optimizers that trainings and plans know by name: what the Trainer builds for a name, a plan traces.

adamw        two moments a weight                          what the others are compared with
adafactor    a row and a column of moments a matrix        another optimizer
momentum     SGD, one moment a weight                      another optimizer
tiger        one moment a weight, of which the sign counts   another optimizer (kexue.fm 9512)
muon         one moment a matrix; AdamW's two of the rest   another optimizer, torch's own and AdamW
adam-mini    one moment a weight, and a number a block      another optimizer (arXiv 2406.16793)
adamw-8bit   two moments of a byte each, in blocks         AdamW's moments rounded: an approximation
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D

from jieyue.errors import InputError, MissingExtra, near
from jieyue.training.adam_mini import AdamMini
from jieyue.training.muon import MuonAdamW, hidden_matrices
from jieyue.training.techniques import Technique, technique
from jieyue.training.tiger import Tiger

__all__ = ["OPTIMIZERS", "OptimizerChoice", "make_optimizer", "optimizer_named"]

EIGHT_BIT_EXTRA = "eight-bit"
_QUERIES_AND_KEYS = ("query", "key", "q_proj", "k_proj", "q_lin", "k_lin", "q", "k")


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
    def own(self) -> str | None:
        """The name in ``optim_args`` of an optimizer that transformers does not build."""
        return _own_name(self.optim_args)

    @property
    def exact(self) -> bool:
        """Whether its update is that of AdamW."""
        return self.technique is None

    @property
    def installed(self) -> bool:
        return self.package is None or find_spec(self.package) is not None

    @property
    def options(self) -> dict[str, str | None]:
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
    "tiger": OptimizerChoice(
        optim="sgd", optim_args="jieyue=tiger", technique=technique("Tiger (another optimizer)"), rate=2.0
    ),
    "muon": OptimizerChoice(
        optim="sgd", optim_args="jieyue=muon", technique=technique("Muon with AdamW (another optimizer)")
    ),
    "adam-mini": OptimizerChoice(
        optim="sgd", optim_args="jieyue=adam-mini", technique=technique("Adam-mini (another optimizer)")
    ),
    "adamw-8bit": OptimizerChoice(
        optim="adamw_bnb_8bit", technique=technique("8-bit AdamW (approx)"), package="bitsandbytes"
    ),
}


def optimizer_named(name: str) -> OptimizerChoice:
    """The choice of that name; ``InputError`` for an unknown one, ``MissingExtra`` for one whose package is not installed."""
    if name not in OPTIMIZERS:
        raise InputError("optimizer", repr(name), f"one of {', '.join(OPTIMIZERS)}{near(name, OPTIMIZERS)}")
    choice = OPTIMIZERS[name]
    if choice.package is not None and not choice.installed:
        raise MissingExtra(choice.package, EIGHT_BIT_EXTRA)
    return choice


def make_optimizer(model: nn.Module, args: TrainingArguments) -> torch.optim.Optimizer:
    """The optimizer that ``args.optim`` names; weight decay on matrices only, not on biases and norms.

    With little state: ``adafactor``; ``adamw_bnb_8bit`` (bitsandbytes) and ``adamw_torch_8bit`` (torchao) where installed.
    ``optim_args="jieyue=tiger"`` (or muon, adam-mini): ours, which transformers has no name for.
    """
    if name := _own_name(args.optim_args):
        return _own_optimizer(name, model, args)
    try:
        kind, keywords = Trainer.get_optimizer_cls_and_kwargs(args, cast(Any, model))
    except ImportError as error:
        package = next((name for name in ("bitsandbytes", "torchao") if name in str(error)), None)
        if package is None:
            raise
        raise MissingExtra(package, EIGHT_BIT_EXTRA) from error
    if "optimizer_dict" in keywords or "params" in keywords:
        raise InputError("optim", str(args.optim), "one that updates all weights in one step")
    return kind(_groups(model, args.weight_decay), **keywords)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, object]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _own_name(optim_args: object) -> str | None:
    """``tiger`` of "jieyue=tiger"; None where the arguments are another optimizer's."""
    name, _, value = str(optim_args or "").partition("=")
    return value.strip() if name.strip() == "jieyue" else None


def _own_optimizer(name: str, model: nn.Module, args: TrainingArguments) -> torch.optim.Optimizer:
    if name == "tiger":
        return Tiger(_groups(model, args.weight_decay), lr=args.learning_rate)
    if name == "muon":
        matrices = hidden_matrices(model)
        inside = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in inside]
        betas = (args.adam_beta1, args.adam_beta2)
        return MuonAdamW(matrices, rest, lr=args.learning_rate, weight_decay=args.weight_decay, betas=betas)
    if name == "adam-mini":
        betas = (args.adam_beta1, args.adam_beta2)
        return AdamMini(_blocks(model, args.weight_decay), lr=args.learning_rate, betas=betas, eps=args.adam_epsilon)
    raise InputError("optim_args", f"jieyue={name}", "jieyue=tiger, jieyue=muon or jieyue=adam-mini")


def _blocks(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Groups of weights whose blocks are alike (``AdamMini``): a head of queries or keys is one, another output row is one."""
    width, seen = _head_width(model), set[int]()
    found: dict[tuple[float, int, bool], list[nn.Parameter]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            matrix = parameter.ndim >= 2
            by_head = matrix and width is not None and name.rpartition(".")[2] in _QUERIES_AND_KEYS
            rows = width if by_head and width and len(parameter) % width == 0 else 1
            key = (weight_decay if matrix else 0.0, rows, matrix and isinstance(module, Conv1D))
            found.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "rows": rows, "columns": columns}
        for (decay, rows, columns), parameters in found.items()
    ]


def _head_width(model: nn.Module) -> int | None:
    """Rows of a query matrix that are one head's, as the configuration has it."""
    config = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):  # none, or one a stage
        return None
    own = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    hidden = getattr(config, "hidden_size", None)
    return own if isinstance(own, int) else hidden // heads if isinstance(hidden, int) and hidden % heads == 0 else None
