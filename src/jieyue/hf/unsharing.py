"""A change to the model in the middle of training: ALBERT's layers part after some updates, the optimizer is told.

A checkpoint from before the change has shared weights, one from after it has its own ones; so a resumed run looks at the
checkpoint's step first, and changes the model before its weights are read where that is due.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .checkpoints import intact_checkpoint

__all__ = ["Unsharing"]


class Unsharing(TrainerCallback):
    """Calls ``change(model, optimizer=...)`` once ``after`` updates are done; ``change`` None = never."""

    def __init__(self, change: Callable[..., object] | None, after: int, checkpoints: Path, resume: bool) -> None:
        self.change, self.after = change, after
        last = intact_checkpoint(checkpoints) if resume and change is not None else None
        self.done = last is not None and int(last.name.rpartition("-")[2]) >= after

    def before(self, model: nn.Module) -> None:
        """Before training: changes a model whose checkpoint was written after the change."""
        if self.change is not None and self.done:
            self.change(model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: object
    ) -> TrainerControl:
        if self.change is not None and not self.done and state.global_step >= self.after:
            self.done = True
            self.change(given["model"], optimizer=given["optimizer"])
        return control
