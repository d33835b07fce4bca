"""A change to the model in the middle of training: ALBERT's layers part after some updates, the optimizer is told.

A checkpoint from before the change has shared weights, one from after it has its own ones; so a resumed run looks at the
checkpoint's step first, and changes the model before its weights are read where that is due.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

__all__ = ["Unsharing"]


class Unsharing(TrainerCallback):
    """Calls ``change(model, optimizer=...)`` once ``after`` updates are done; ``change`` None = never."""

    def __init__(self, change: Callable[..., Any] | None, after: int, checkpoints: Path, resume: bool) -> None:
        self.change, self.after = change, after
        last = get_last_checkpoint(str(checkpoints)) if resume and checkpoints.is_dir() else None
        self.done = last is not None and int(last.rpartition("-")[2]) >= after

    def before(self, model: Any) -> None:
        """Before training: changes a model whose checkpoint was written after the change."""
        if self.change is not None and self.done:
            self.change(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.change is not None and not self.done and state.global_step >= self.after:
            self.done = True
            self.change(kwargs["model"], optimizer=kwargs["optimizer"])
        return control
