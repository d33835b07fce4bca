"""Prepares and trains: everything decided before a weight is allocated, then the updates, then the folder that is left."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch

from jieyue import __version__
from jieyue.budget import Plan
from jieyue.errors import InputError, message
from jieyue.hf.later import Unsharing
from jieyue.hf.loading import quiet, save
from jieyue.hf.optimizers import make_optimizer
from jieyue.hf.trainer import EffectiveBatchTrainer, Progress, Work
from jieyue.machine import peak_resident_bytes
from jieyue.planning.setting import dtype_named
from jieyue.recipes import Recipe
from jieyue.report import write_whole
from jieyue.training.accumulation import under_autocast
from jieyue.training.microbatch import MicroBatch

from .arguments import arguments_of
from .courses import Stage, num_positions, seconds_per_position, staged_batches, updates_within
from .planned import Planned
from .tasks import Task
from .values import Course, Materials, Prepared
from .visits import Visited, visits
from .watch import SILENT, Watch

__all__ = ["Trained", "fit", "prepare", "store"]

TOKENS = "tokens"  # what a recipe that keeps its tokens leaves of them
RESOLVED = "training.json"  # the resolved settings of a run, for --resume
CURVE_POINTS = 8


@dataclass(frozen=True)
class Trained:
    """A trained model and what training it took."""

    trainer: EffectiveBatchTrainer
    losses: list[tuple[int, float]]
    curve: list[tuple[int, float]]
    facts: dict[str, Any]


def prepare(
    task: Task, materials: Materials, course: Course, *, folder: Path | None = None, device: str = "cpu"
) -> Prepared:
    """Reads, checks and encodes; no weight is allocated.

    ``folder``: the run's, where a recipe that keeps its tokens finds them again; ``device``: where the course's dtype will be.
    """
    seed = course.seed
    sources = task.open_sources(materials, seed)
    wanted = task.resolved(materials.settings or task.settings(materials, seed), sources.train)
    recipe = _narrowed(task.recipe.under(wanted), course, device)
    task = replace(task, recipe=recipe)
    head = wanted.head(recipe.head)
    source = task.open_model(
        materials,
        head,
        lambda: task.texts(sources.train),
        config=task.config(wanted),
        start=course.start,
        seed=seed,
        new_head=head in task.new_heads,
    )
    settings = wanted.fitted(source.positions)
    rows: list[dict[str, Any]] = []
    stages: list[Stage] = []
    kept = {"folder": folder / TOKENS} if recipe.keeps_tokens and folder is not None else {}
    counts: Mapping[str, int] = {}
    for until, examples in task.stages(course, source.is_preset, sources.train):
        # the last stage's counts stay: all examples, uncut
        own, counts = recipe.encode(examples, source.tokenizer, settings, **kept)
        if not own:
            raise InputError(f"{sources.name}: encoding gave no training row; counted {dict(counts)}")
        stages.append(Stage(until, len(rows), len(rows) + len(own)))
        rows = [*rows, *own] if rows else own
    lengths = getattr(rows, "lengths", None)  # rows on disk know them, and need not be read for that
    lengths = [len(row["input_ids"]) for row in rows] if lengths is None else lengths
    objective = course.remedied(recipe.objective)
    return Prepared(task, sources, source, settings, objective, rows, lengths, stages, counts, materials.unshare_after)


def _narrowed(recipe: Recipe, course: Course, device: str) -> Recipe:
    """The recipe, the matrix products of its objective in the course's dtype; remedies come around that."""
    dtype, place = dtype_named(course.dtype), torch.device(device)
    if dtype is None:
        return recipe
    if place.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InputError(message(f"dtype={course.dtype}", "a GPU without it", "a newer one", "leave it at float32"))
    return replace(recipe, objective=under_autocast(recipe.objective, place, dtype))


def fit(
    prepared: Prepared,
    planned: Planned,
    course: Course,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    watch: Watch = SILENT,
) -> Trained:
    """Trains as planned and writes checkpoints under ``folder/checkpoints``; Ctrl-C leaves one that ``resume`` continues."""
    quiet()
    model = prepared.model.build()
    later = Unsharing(prepared.model.unshare, prepared.unshare_after, folder / "checkpoints", resume)
    later.before(model)
    micro = MicroBatch(planned.plan, mask="attention_mask")
    asked: dict[str, Any] = {"is_preset": prepared.model.is_preset, "folder": folder / "checkpoints", "device": device}
    arguments = arguments_of(course, steps=1, **asked)
    resolved = folder / RESOLVED
    if resume and not resolved.is_file():
        raise InputError(f"resume: no {RESOLVED} in {folder}; expected the folder of an interrupted run")
    batches = _batches(
        prepared, course, planned.plan, model, arguments, json.loads(resolved.read_text()) if resume else None
    )
    _resolve(resolved, course, prepared, len(batches), resume)
    arguments = arguments_of(course, steps=len(batches), **asked)
    losses: list[tuple[int, float]] = []
    curve: list[tuple[int, float]] = []
    measured = prepared.task.curve
    started, tokens = time.perf_counter(), sum(int(prepared.lengths[number]) for batch in batches for number in batch)
    with watch.progress("training") as update:

        def progressed(state: Progress) -> None:
            losses.append((state.step, state.loss))
            facts = {
                "loss": state.loss,
                "tokens_per_second": state.tokens_per_second,
                "remaining_seconds": state.remaining_seconds,
            }
            update(state.step, state.steps, facts)
            if measured is not None and state.step % max(1, state.steps // CURVE_POINTS) == 0:
                curve.append((state.step, measured.measure(trainer.model, prepared)))

        work = Work(
            objective=prepared.objective,
            rows=Visited(prepared.rows),
            collate=prepared.collate,
            batches=visits([batch.tolist() for batch in batches], len(prepared.rows)),
            micro_batch=micro,
        )
        trainer = EffectiveBatchTrainer(model, arguments, work, progress=progressed, callbacks=[later])
        trainer.train(resume_from_checkpoint=resume)
    facts = {
        "steps": len(batches),
        "rows": sum(len(batch) for batch in batches),
        "tokens": tokens,
        "seconds": time.perf_counter() - started,
        "process_peak_bytes": peak_resident_bytes(),
        "micro_batch": micro.rows,
        "halvings": micro.halvings,
        "learning_rate": arguments.learning_rate,
    }
    return Trained(trainer, losses, curve, facts)


def store(trained: Trained, prepared: Prepared, folder: Path, record: Mapping[str, Any]) -> None:
    """The trained model as a plain transformers folder, with what jieyue needs to use it."""
    contents = {
        "recipe": prepared.task.recipe.name,
        "version": __version__,
        "settings": prepared.settings.to_dict(),
        **record,
    }
    save(trained.trainer.model, prepared.model.tokenizer, folder, contents)


def _batches(
    prepared: Prepared, course: Course, plan: Plan, model: Any, arguments: Any, resolved: Mapping[str, Any] | None
) -> list[numpy.ndarray]:
    """The whole course of training, decided here; a resumed run takes the number of updates that was decided first."""

    def batches(steps: int) -> list[numpy.ndarray]:
        return staged_batches(prepared.lengths, prepared.stages, plan.effective_batch, steps=steps, seed=course.seed)

    if resolved is not None:
        return batches(resolved["steps"])
    if course.steps is not None:
        return batches(course.steps)
    if course.seconds is not None:
        if arguments.world_size > 1:
            raise InputError(
                "time: found several processes, which would measure different speeds; expected steps or epochs"
            )
        tried = [prepared.batch(batch) for batch in batches(400)[40::60]]
        micro = MicroBatch(plan, mask="attention_mask")
        rate = seconds_per_position(
            model, lambda twin: make_optimizer(twin, arguments), prepared.objective, tried, micro
        )
        return batches(
            updates_within(
                course.seconds, lambda steps: rate * num_positions(prepared.lengths, batches(steps), plan.micro_batch)
            )
        )
    rows = prepared.stages[-1].stop - prepared.stages[-1].first
    return batches(max(1, round((course.epochs or 2.0) * rows / plan.effective_batch)))


def _resolve(path: Path, course: Course, prepared: Prepared, steps: int, resume: bool) -> None:
    """Writes what was decided, or compares it with what the interrupted run had decided."""
    values = {"version": __version__, "model": prepared.model.name, "data": prepared.sources.name, "steps": steps}
    values |= {"course": course.to_dict(), "settings": prepared.settings.to_dict(), "rows": len(prepared.rows)}
    values |= {"tokens": getattr(prepared.rows, "digest", None)}  # of what they were made from, where they are kept
    values = json.loads(json.dumps(values))
    if not resume:
        write_whole(path, json.dumps(values, ensure_ascii=False, indent=1) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    now, then = _flat(values), _flat({**before, "course": Course().to_dict() | before.get("course", {})})
    for name in now:
        if name not in ("version", "steps") and then.get(name) != now[name]:
            raise InputError(
                f"resume: {name} is {now[name]!r}, but the interrupted run had {then.get(name)!r}; expected the same"
            )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The course's own fields in place of the whole, so that a difference is named by itself."""
    return {name: value for name, value in values.items() if name != "course"} | dict(values["course"])
