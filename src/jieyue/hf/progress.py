"""What a run tells after each update: where it is, how fast, how long it will take; on the first process alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import TrainerCallback

from jieyue.training.ranks import Ranks

if TYPE_CHECKING:
    from .trainer import EffectiveBatchTrainer

__all__ = ["Clock", "Progress", "StepEnd"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is, after each update. ``loss``: this update's; ``tokens_per_second`` and ``remaining_seconds``: from
    the steps of this run so far (tokens of other processes are taken to be as many as this one's)."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    remaining_seconds: float
    micro_batch: int


@dataclass
class Clock:
    """Steps, tokens and seconds of this run, for the progress line."""

    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    tokens: int = 0
    loss: float = float("nan")

    def count(self, batch: Mapping[str, Any], loss: float) -> None:
        counted = batch.get("attention_mask", batch.get("input_ids"))
        if isinstance(counted, Tensor):
            self.tokens += int(counted.sum()) if "attention_mask" in batch else counted.numel()
        self.steps, self.loss = self.steps + 1, loss


class StepEnd(TrainerCallback):
    """Tells the progress, and turns a Ctrl-C that waited for the end of the update into a checkpoint and a stop."""

    def __init__(self, trainer: EffectiveBatchTrainer, progress: Callable[[Progress], None] | None) -> None:
        self.trainer, self.progress = trainer, progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        trainer = self.trainer
        ranks = Ranks(trainer.model_wrapped)
        if ranks.highest([float(trainer._interrupts.asked)], args.device)[0]:
            trainer._interrupts.asked = True
            control.should_save = control.should_training_stop = True
        if self.progress is not None and state.is_world_process_zero:
            clock = trainer._clock
            elapsed = time.perf_counter() - clock.started
            left = state.max_steps - state.global_step
            self.progress(
                Progress(
                    step=state.global_step,
                    steps=state.max_steps,
                    loss=clock.loss,
                    learning_rate=trainer._get_learning_rate(),
                    tokens_per_second=clock.tokens * args.world_size / elapsed,
                    remaining_seconds=elapsed / max(1, clock.steps) * left,
                    micro_batch=trainer.micro.rows,
                )
            )
        return control
