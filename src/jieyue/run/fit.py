"""Trains as planned: the updates, with checkpoints, progress and a curve; then the folder that is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from jieyue import __version__
from jieyue.budget import Plan
from jieyue.errors import InputError
from jieyue.hf.checkpoints import intact_checkpoint
from jieyue.hf.loading import quiet, save
from jieyue.hf.optimizers import make_optimizer
from jieyue.hf.trained_part import merged_weights
from jieyue.hf.trainer import EffectiveBatchTrainer, Progress, Work
from jieyue.hf.types import Control
from jieyue.hf.unsharing import Unsharing
from jieyue.listener import SILENT, ProgressListener, Update
from jieyue.machine import peak_resident_bytes
from jieyue.malloc import give_back_beyond
from jieyue.tasks import Facts, Settings

from .arguments import arguments_of, pace_of
from .aside import AsideLoss
from .batches import Visited, num_positions, seconds_per_position, staged_batches, updates_within, visits
from .best import BestWeights
from .config import TrainingConfig
from .course import Course
from .packing import packed_run
from .plan import RunPlan
from .prepare import Prepared
from .resume import check_resumed, decided_updates, write_resolved

__all__ = ["Curve", "Trained", "fit", "set_aside_curve", "store"]

CURVE_POINTS = 8
Curve = Callable[[nn.Module, Prepared], float]


def set_aside_curve(model: nn.Module, prepared: Prepared) -> float:
    """The task's deciding score on the examples set aside."""
    return prepared.task.measure(model, prepared.model.tokenizer, prepared.sources.set_aside, prepared.settings)


@dataclass(frozen=True)
class Trained:
    """A trained model and what training it took; ``optimizer``: torch's own, inside what wraps it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    course: Course
    facts: Facts
    is_first_process: bool = True


def fit(
    prepared: Prepared,
    planned: RunPlan,
    training: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    listener: ProgressListener = SILENT,
    curve: Curve | None = set_aside_curve,
) -> Trained:
    """Trains as planned and writes checkpoints under ``folder/checkpoints``; Ctrl-C leaves one that ``resume`` continues.

    ``curve``: what is measured now and then, None = nothing; beside the task's own score, the loss of the same examples, where
    one process trains.
    """
    quiet()
    checkpoints = folder / "checkpoints"
    if resume:
        check_resumed(folder, training, prepared)
    model = prepared.model.build()
    later = Unsharing(prepared.model.unshare, prepared.unshare_after, checkpoints, resume)
    later.before(model)
    micro, pace = prepared.micro_batch(planned.plan), pace_of(prepared.model)
    arguments = arguments_of(training, steps=1, pace=pace, folder=checkpoints, device=device)
    steps = decided_updates(folder) if resume else None
    batches = _batches(prepared, training, planned.plan, model, arguments, steps)
    if not resume:
        write_resolved(folder, training, prepared, len(batches))
    arguments = arguments_of(training, steps=len(batches), pace=pace, folder=checkpoints, device=device)
    _check_patience(training, arguments.world_size)
    packed = packed_run(prepared, training, model.to(arguments.device), batches, micro)
    last = intact_checkpoint(checkpoints) if resume else None
    done_before = 0 if last is None else int(last.name.rpartition("-")[2])
    best = _best(prepared, training, checkpoints, done_before)
    watched = _Watched(prepared, listener, curve, best, training.evaluate_every or max(1, len(batches) // CURVE_POINTS))
    watched.keep_to(planned, device, is_one=arguments.world_size == 1)
    watched.course = Course.begun(checkpoints, done_before) if arguments.process_index == 0 else Course()
    with listener.progress("training") as watched.update:
        work = Work(
            objective=packed.objective(prepared, training),
            rows=Visited(prepared.rows),
            collate=prepared.collate,
            batches=visits([batch.tolist() for batch in batches], len(prepared.rows)),
            micro_batch=micro,
            in_backward=training.in_backward,
            wall_bytes=planned.wall_bytes,
        )
        trainer = EffectiveBatchTrainer(model, arguments, work, progress=watched, callbacks=[later])
        watched.model, watched.control = model, trainer.control
        watched.begin()
        trainer.train(resume_from_checkpoint=resume)
    packed.end()
    done = batches[: trainer.state.global_step]
    tokens = [sum(int(prepared.lengths[number]) for number in batch) for batch in done]
    facts: Facts = {
        "steps": len(done),
        "rows": sum(len(batch) for batch in done),
        "tokens": sum(tokens),
        "seconds": watched.course.seconds,
        "tokens_per_second": watched.speed(tokens),
        "process_peak_bytes": peak_resident_bytes(),
        "micro_batch": micro.rows,
        "halvings": micro.halvings,
        "learning_rate": arguments.learning_rate,
        "warmup_steps": arguments.warmup_steps,
        "schedule": str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)),
        "evaluate_every": watched.every,
        **packed.facts,
    }
    if training.chooses and best.best is not None and trainer.is_world_process_zero():
        facts |= {"best_step": best.best[0], "best_score": best.best[1], "stopped_early": len(done) < len(batches)}
        facts["kept"] = "best" if trainer.model is not None and best.restore(trainer.model) else "last"
    assert trainer.model is not None and trainer.optimizer is not None
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate's wrapper has torch's own inside
    return Trained(trainer.model, inner, watched.course, facts, trainer.is_world_process_zero())


def _check_patience(training: TrainingConfig, world_size: int) -> None:
    if training.patience is not None and world_size > 1:
        raise InputError("patience: found several processes, which would stop at different updates; expected none")


class _Watched:
    """Hears of every update: notes the course, tells the listener, and measures the deciding score now and then."""

    def __init__(
        self, prepared: Prepared, listener: ProgressListener, measure: Curve | None, best: BestWeights, every: int
    ) -> None:
        self.prepared, self.listener, self.measure = prepared, listener, measure
        self.best, self.every = best, every
        self.course = Course()
        self.since, self.before = time.perf_counter(), 0.0
        self.measure_loss: AsideLoss | None = None
        self.model: nn.Module | None = None
        self.control: Control | None = None
        self.process_bytes: int | None = None  # what was predicted, to be kept
        self.update: Update = lambda done, total, facts: None

    def keep_to(self, planned: RunPlan, device: str, *, is_one: bool) -> None:
        """The memory that was predicted is kept; where one process trains (``is_one``), the loss of the examples set aside is told."""
        if planned.plan.predicted is not None and device == "cpu":
            self.process_bytes = planned.plan.predicted.process_bytes
        if self.measure is set_aside_curve and is_one:
            self.measure_loss = AsideLoss.of(self.prepared, planned.plan)

    def begin(self) -> None:
        """From here on seconds count, beside those of the starts before."""
        self.since, self.before = time.perf_counter(), self.course.seconds

    def speed(self, tokens: Sequence[int]) -> float:
        """Tokens a second over the updates whose seconds are known; ``tokens``: of each update."""
        known = sum(count for step, count in enumerate(tokens, 1) if step in self.course.updates)
        return known / max(self.course.seconds, 1e-9)

    def __call__(self, state: Progress) -> None:
        seconds = self.before + time.perf_counter() - self.since
        if self.process_bytes is not None:
            give_back_beyond(self.process_bytes)
        facts = {
            "loss": state.loss,
            "tokens_per_second": state.tokens_per_second,
            "remaining_seconds": state.remaining_seconds,
        }
        self.update(state.step, state.steps, facts)
        score = loss = None
        due = state.step % self.every == 0 or (state.step == state.steps and bool(self.best.scores))
        if due and self.model is not None and self.measure is not None:
            score = self.measure(self.model, self.prepared)
            loss = None if self.measure_loss is None else self.measure_loss(self.model)
            chooses = self.best.keeps or self.best.patience is not None
            if chooses and state.step >= self.prepared.unshare_after:  # before, its layers have other weights
                self.best.take(state.step, score, self.model)
            if self.best.is_over and self.control is not None:
                self.control.should_training_stop = True
        if score is not None and math.isnan(score):  # of no row at all: no curve, rather than an empty one
            score = None
        self.course.note(state.step, seconds, loss=state.loss, rate=state.learning_rate, score=score, aside=loss)
        self.since, self.before = time.perf_counter(), seconds


def _best(prepared: Prepared, training: TrainingConfig, checkpoints: Path, done_before: int) -> BestWeights:
    """What is known of the best weights before the first update of this start."""
    higher = prepared.task.deciding.higher_is_better
    found = BestWeights(checkpoints, higher, training.keep == "best", training.patience)
    if training.chooses and done_before:
        found.resumed(done_before)
    return found


def store(trained: Trained, prepared: Prepared, settings: Settings, folder: Path, record: Facts) -> None:
    """The trained model as a plain transformers folder, with what jieyue needs to use it."""
    contents = {
        "recipe": prepared.task.name,  # the file's own word since its first version
        "version": __version__,
        "settings": settings.to_dict(),
        **record,
    }
    save(trained.model, prepared.model.tokenizer, folder, contents, weights=merged_weights(trained.model))


def _batches(
    prepared: Prepared,
    training: TrainingConfig,
    plan: Plan,
    model: nn.Module,
    arguments: Any,
    decided: int | None,
) -> list[numpy.ndarray]:
    """Every update's rows, decided here; a resumed run takes the number of updates that was decided first."""

    def batches(steps: int) -> list[numpy.ndarray]:
        return staged_batches(prepared.lengths, prepared.stages, plan.effective_batch, steps=steps, seed=training.seed)

    if decided is not None or training.steps is not None:
        return batches(decided or training.steps or 1)
    if training.seconds is not None:
        if arguments.world_size > 1:
            raise InputError(
                "time: found several processes, which would measure different speeds; expected steps or epochs"
            )
        tried = [prepared.batch(batch) for batch in batches(400)[40::60]]
        micro = prepared.micro_batch(plan)
        rate = seconds_per_position(
            model, lambda twin: make_optimizer(twin, arguments), prepared.objective, tried, micro
        )
        return batches(
            updates_within(
                training.seconds, lambda steps: rate * num_positions(prepared.lengths, batches(steps), plan.micro_batch)
            )
        )
    rows = prepared.stages[-1].stop - prepared.stages[-1].first
    return batches(max(1, round((training.epochs or 2.0) * rows / plan.effective_batch)))
