"""What a run tells after each update: where it is, how fast, how long it will take; on the first process alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from jieyue.training.microbatch import MicroBatch
from jieyue.training.ranks import Ranks

from .interrupts import Interrupts

__all__ = ["Clock", "Progress", "Running", "StepEnd"]


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
    """Steps, rows (of all processes), tokens and seconds of this run, for the progress line and the run's speed."""

    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    rows: int = 0
    tokens: int = 0
    loss: float = float("nan")

    def count(self, batch: Mapping[str, Tensor], rows: int, loss: float) -> None:
        counted = batch.get("attention_mask", batch.get("input_ids"))
        if isinstance(counted, Tensor):
            self.tokens += int(counted.sum()) if "attention_mask" in batch else counted.numel()
        self.steps, self.rows, self.loss = self.steps + 1, self.rows + rows, loss


@dataclass
class Running:
    """A run under way, as far as its progress needs it: its clock, its Ctrl-C, its pieces, its processes, its rate."""

    clock: Clock
    interrupts: Interrupts
    micro: MicroBatch
    ranks: Callable[[], Ranks]
    learning_rate: Callable[[], float]


class StepEnd(TrainerCallback):
    """Tells the progress, and turns a Ctrl-C that waited for the end of the update into a checkpoint and a stop."""

    def __init__(self, running: Running, progress: Callable[[Progress], None] | None) -> None:
        self.running, self.progress = running, progress

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        running = self.running
        asked = running.ranks().highest([float(running.interrupts.asked)], torch.device(args.device))
        if asked[0]:
            running.interrupts.asked = True
            control.should_save = control.should_training_stop = True
        if self.progress is not None and state.is_world_process_zero:
            clock = running.clock
            elapsed = time.perf_counter() - clock.started
            left = state.max_steps - state.global_step
            self.progress(
                Progress(
                    step=state.global_step,
                    steps=state.max_steps,
                    loss=clock.loss,
                    learning_rate=running.learning_rate(),
                    tokens_per_second=clock.tokens * args.world_size / elapsed,
                    remaining_seconds=elapsed / max(1, clock.steps) * left,
                    micro_batch=running.micro.rows,
                )
            )
        return control
