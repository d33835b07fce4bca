"""transformers' arguments of a run: the plan traces, and training runs, the optimizer that they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jieyue.hf.optimizers import optimizer_named
from jieyue.hf.trainer import training_arguments
from jieyue.json_values import Facts

if TYPE_CHECKING:
    from jieyue.hf.types import Arguments

    from .config import TrainingConfig

__all__ = ["arguments_of"]

_SCHEDULES = {"linear": "linear", "constant": "constant_with_warmup", "cosine": "cosine"}
PRESET_RATE, CHECKPOINT_RATE = 1e-3, 3e-5  # of AdamW; another optimizer's are multiples of them


def arguments_of(
    training: TrainingConfig, *, is_preset: bool, folder: str | Path, steps: int, device: str
) -> Arguments:
    """A preset trains at its own pace; a checkpoint as is usual for one."""
    optimizer = optimizer_named(training.optimizer)
    warmup = training.warmup_steps if training.warmup_steps is not None else min(100, max(1, steps // 10))
    options: Facts = {
        **optimizer.options,
        "learning_rate": training.learning_rate or optimizer.rate * (PRESET_RATE if is_preset else CHECKPOINT_RATE),
        "warmup_steps": warmup,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "save_steps": training.save_steps,
        "seed": training.seed,
    }
    if is_preset:  # constant until half time, then falling; a young model forgets its second moments sooner
        decay = steps // 2
        options |= {"adam_beta2": 0.98, "lr_scheduler_type": "warmup_stable_decay"}
        options["lr_scheduler_kwargs"] = {"num_decay_steps": decay, "decay_type": "linear", "min_lr_ratio": 0.02}
    if training.schedule is not None:
        options |= {"lr_scheduler_type": _SCHEDULES[training.schedule], "lr_scheduler_kwargs": {}}
    return training_arguments(folder, steps=steps, device=device, **options)
