"""transformers' arguments of a run: the plan traces, and training runs, the optimizer that they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jieyue.hf.optimizers import optimizer_named
from jieyue.hf.trainer import training_arguments
from jieyue.json_values import Facts

if TYPE_CHECKING:
    from jieyue.hf.types import Arguments
    from jieyue.tasks.models import ModelSource

    from .config import TrainingConfig

__all__ = ["RATES", "arguments_of", "pace_of"]

_SCHEDULES = {"linear": "linear", "constant": "constant_with_warmup", "cosine": "cosine"}
RATES = {"preset": 1e-3, "checkpoint": 3e-5, "adapter": 3e-4}  # of AdamW; another optimizer's are multiples of them


def pace_of(source: ModelSource) -> str:
    """What a model is trained as, of ``RATES``."""
    if source.is_preset:
        return "preset"
    return "checkpoint" if source.adapter is None else "adapter"


def arguments_of(training: TrainingConfig, *, pace: str, folder: str | Path, steps: int, device: str) -> Arguments:
    """A preset trains at its own pace; a checkpoint, and adapters on one, as is usual for them. ``pace``: of ``RATES``."""
    optimizer = optimizer_named(training.optimizer)
    warmup = training.warmup_steps if training.warmup_steps is not None else min(100, max(1, steps // 10))
    options: Facts = {
        **optimizer.options,
        "learning_rate": training.learning_rate or optimizer.rate * RATES[pace],
        "warmup_steps": warmup,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "save_steps": training.save_steps,
        "seed": training.seed,
        "report_to": [] if training.log is None else [training.log],
    }
    if pace == "preset":  # constant until half time, then falling; a young model forgets its second moments sooner
        decay = steps // 2
        options |= {"adam_beta2": 0.98, "lr_scheduler_type": "warmup_stable_decay"}
        options["lr_scheduler_kwargs"] = {"num_decay_steps": decay, "decay_type": "linear", "min_lr_ratio": 0.02}
    if training.schedule is not None:
        options |= {"lr_scheduler_type": _SCHEDULES[training.schedule], "lr_scheduler_kwargs": {}}
    return training_arguments(folder, steps=steps, device=device, **options)
