"""The jobs of the command line, as functions: each returns its Report and tells a ``Watch`` what it is doing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jieyue.budget import Budget, format_bytes
from jieyue.hf.attention import attention_engines
from jieyue.hf.loading import load, read_record
from jieyue.machine import describe, fix_malloc_threshold
from jieyue.report import Report, model_card, write_whole

from .planned import Planned, against_length, measure, plan_for, prices, savings
from .story import (
    tell_counts,
    tell_data,
    tell_lengths,
    tell_memory,
    tell_prices,
    tell_settings,
    tell_sharing,
    tell_training,
)
from .tasks import Task, task
from .training import fit, prepare, store
from .values import Course, Materials, Prepared
from .watch import SILENT, Watch

__all__ = ["doctor", "evaluate", "plan", "train"]

DEFAULT_BUDGET = "4GiB"
SHIPPED = "the corpus that ships"
_SAVINGS = "Forward and backward of one update of the whole effective batch, with the run's own model, on the longest rows of the data."


def doctor(recipe: str = "read", materials: Materials = Materials()) -> Report:
    """What reading and encoding find, before any training: everything truncated, windowed, unanswerable, repaired, skipped.

    Reads all of the files; nothing is held out, no weight is allocated.
    """
    job = task(recipe)
    examples, findings, shared = job.check(materials)
    wanted = job.resolved(materials.settings or job.settings(materials, 0), examples)
    source = job.open_model(
        materials, wanted.head(job.recipe.head), lambda: job.texts(examples), config=job.config(wanted)
    )
    settings = wanted.fitted(source.positions)
    _, counts = job.recipe.encode(examples, source.tokenizer, settings)
    report = Report(f"Doctor · {', '.join(Path(path).name for path in materials.data) or SHIPPED}")
    how = f"{len(source.tokenizer)} tokens; rows of at most {counts['longest_row_tokens']}"
    report.section("Data").fact("tokenizer", materials.model, how=how)
    tell_counts(report, findings, counts, shared)
    return report


def plan(
    recipe: str = "read",
    materials: Materials = Materials(),
    *,
    budget: str | int | Budget = DEFAULT_BUDGET,
    course: Course = Course(),
) -> Report:
    """What would be done under the budget, predicted before any weight is allocated; nothing is trained.

    ``recipe``: a task's name (``TASKS``); ``materials``, ``course``: on what, and how, as in ``train``; ``budget``: "1GiB" or a
    ``Budget``. ``BudgetError`` says what the smallest piece would need where nothing fits.
    """
    job = task(recipe)
    allowed = Budget.parse(budget)
    prepared = prepare(job, materials, course, device=allowed.device)
    planned = plan_for(prepared, allowed, course)
    report = Report(f"Plan · {job.title.lower()} · {materials.model}")
    tell_memory(report, planned.plan, planned.way, {}, planned.budget.memory_bytes)
    tell_sharing(report, prepared.model, materials.unshare_after)
    return report


def train(
    recipe: str = "read",
    materials: Materials = Materials(),
    out: str | Path = "runs/model",
    *,
    budget: str | int | Budget = DEFAULT_BUDGET,
    course: Course = Course(),
    resume: bool = False,
    command: str = "",
    watch: Watch = SILENT,
) -> Report:
    """Plans, trains, calibrates, judges and reports; ``out`` then holds the model, its card and the report.

    ``recipe``: a task's name (``TASKS``); ``materials``: model, data and settings; ``course``: how long, how fast, with which
    remedies; ``budget`` bounds the whole process and names the device (``Budget``); ``resume`` goes on from the checkpoint in ``out``;
    ``watch`` is told how it goes; ``command`` is what the
    report says was called. Returns the report that ``out/report.html`` and ``out/report.json`` show.
    """
    job, folder, allowed, clock = task(recipe), Path(out), Budget.parse(budget), _Clock()
    watch.say(f"Reading {', '.join(map(str, materials.data)) or SHIPPED}")
    prepared = prepare(job, materials, course, folder=folder, device=allowed.device)
    clock.lap("reading and encoding the data")
    _say_data(watch, prepared)
    planned = plan_for(prepared, allowed, course)
    clock.lap("planning")
    _say_plan(watch, planned)
    if planned.tight:
        watch.say("Little room is left: freed memory goes back to the system at once, which takes up to twice the time")
        fix_malloc_threshold()
    trained = fit(prepared, planned, course, folder, resume=resume, device=allowed.device, watch=watch)
    clock.lap("training")
    if not trained.trainer.is_world_process_zero():
        return Report("another process reports")
    settings, fitted = job.fitted(prepared, trained.trainer.model)
    prepared = replace(prepared, settings=settings)
    record = {"training": course.to_dict(), "data": prepared.sources.name, "model": materials.model}
    store(trained, prepared, folder, record)
    judged = job.judge(trained.trainer.model, prepared.model.tokenizer, prepared.sources, settings, watch=watch)
    clock.lap("judging")
    measured = measure(prepared, planned, trained)
    gained = savings(prepared, planned, trained, measured)
    priced = prices(prepared, planned, trained, course.remedies) if course.remedies else []
    clock.lap("measuring memory and savings")
    report = Report(f"{job.title} · {materials.model}")
    job.tell(report, judged, fitted)
    tell_training(report, trained.losses, trained.curve, trained.facts, job.curve)
    tell_memory(report, planned.plan, planned.way, measured, planned.budget.memory_bytes)
    tell_sharing(report, prepared.model, materials.unshare_after)
    gained.tell(report, "What each saving was worth", note=_SAVINGS)
    if priced:
        tell_prices(report, priced)
    if materials.attention is not None:
        model = trained.trainer.model
        assert model is not None
        rows = against_length(prepared, planned, materials.attention)
        tell_lengths(report, rows, attention_engines(model))
    tell_data(report, job.noun, prepared.sources, prepared.counts)
    resolved = {**course.to_dict(), **settings.to_dict(), "model": materials.model, "data": prepared.sources.name}
    resolved |= {"head": prepared.model.head}
    tell_settings(report, {**resolved, "command": command or "jieyue.train(...)"}, describe())
    report.section("Training").table(
        ["part of the run", ("time", "seconds")], clock.rows(), title="Where the time went"
    )
    _publish(report, job, folder, command)
    return report


def evaluate(
    folder: str | Path,
    files: Sequence[str | Path] = (),
    *,
    batch_size: int = 32,
    skip_bad: bool = False,
    watch: Watch = SILENT,
) -> Report:
    """Judges a trained model on files (default: the held-out part of the corpus that ships); its record names the recipe.

    ``folder``: what ``train`` wrote; ``batch_size``: rows of a forward pass; ``skip_bad`` leaves broken records out and counts
    them instead of stopping at the first; ``watch`` is told how it goes.
    """
    record = read_record(folder)
    job = task(str(record.get("recipe")))
    settings = job.recipe.settings.from_dict(record["settings"])
    model, tokenizer = load(folder, settings.head(job.recipe.head))
    sources = job.read_judged(files, skip_bad, settings)
    judged = job.judge(model, tokenizer, sources, settings, batch_size=batch_size, watch=watch)
    report = Report(f"Evaluation · {Path(folder).name}")
    job.tell(report, judged, {**record["settings"], "fitted": "by the training run"})
    if files:
        tell_counts(report, {"files": sources.findings}, {}, {})
    return report


class _Clock:
    """Seconds of each part of a run."""

    def __init__(self) -> None:
        self.laps: list[tuple[str, float]] = []
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps.append((name, now - self.last))
        self.last = now

    def rows(self) -> list[list[str | float]]:
        return [[name, seconds] for name, seconds in self.laps]


def _publish(report: Report, job: Task, folder: Path, command: str) -> None:
    report.save(folder)
    card = model_card(
        report,
        command=command or "jieyue.train(...)",
        usage=job.card.usage(folder.name),
        limits=job.card.limits,
        header={"tags": ["jieyue", *job.card.tags]},
    )
    write_whole(folder / "README.md", card)


def _say_data(watch: Watch, prepared: Prepared) -> None:
    sources = prepared.sources
    watch.fact("data", train=len(sources.train), set_aside=len(sources.set_aside), held_out=len(sources.held_out))
    counted = {**sources.findings.counts, **prepared.counts}
    watch.table(
        "",
        ["counted before training", "number"],
        [[k.replace("_", " "), str(v)] for k, v in counted.items() if v],
        "counted",
    )
    if any((sources.shared or {}).values()):
        watch.fact("in training and held out", **(sources.shared or {}))
    for line in sources.findings.skipped[:20]:
        watch.say(f"skipped: {line}")


def _say_plan(watch: Watch, planned: Planned) -> None:
    chosen, cost = planned.plan, planned.plan.predicted
    assert cost is not None
    watch.fact(
        "plan",
        effective_batch=chosen.effective_batch,
        micro_batch=chosen.micro_batch,
        checkpointing=chosen.checkpointing,
        optimizer=planned.way.optimizer,
        dtype=planned.way.dtype,
        update=planned.way.update,
        fixed=format_bytes(cost.fixed_bytes),
        step_peak=format_bytes(cost.peak_bytes),
        process=format_bytes(cost.process_bytes),
        budget=format_bytes(planned.budget.memory_bytes) if planned.budget.memory_bytes else "none",
    )
