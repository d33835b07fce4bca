"""The jobs of the command line, as functions: each returns its Report and tells a ``ProgressListener`` what it is doing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jieyue.budget import Budget, format_bytes
from jieyue.data.advice import Advice, advise
from jieyue.errors import InputError
from jieyue.hf.attention import attention_engines
from jieyue.hf.interrupts import Interrupted
from jieyue.hf.loading import load
from jieyue.listener import SILENT, ProgressListener
from jieyue.machine import describe
from jieyue.planning.bfloat16 import bfloat16_price
from jieyue.record import read_record
from jieyue.report import Report, write_whole
from jieyue.tasks import Facts, RunConfig, Sources, name_of
from jieyue.tasks.models import check_model
from jieyue.tasks.table import AnyTask, task

from .cards import write_card
from .config import TrainingConfig
from .devices import check_device
from .fit import Trained, fit, store
from .folder import MEMORY, Out, check_apart, check_folder, check_unfinished, locked, read_memory
from .little_room import settled
from .measure import against_length, measured_memory, prices, savings
from .plan import RunPlan, check_budget
from .prepare import Prepared, prepare
from .resume import as_before
from .sections import (
    adapter_section,
    counts_section,
    data_section,
    findings_table,
    leakage_facts,
    lengths_section,
    memory_section,
    prices_section,
    settings_section,
    sharing_section,
    training_section,
)
from .ways import Decided, decide, ways_section

__all__ = ["DEFAULT_BUDGET", "Stopped", "doctor", "evaluate", "examined", "plan", "planned", "say_findings", "train"]


class Stopped(KeyboardInterrupt):
    """Ctrl-C outside of the updates; the message says what is left and what to do."""


DEFAULT_BUDGET = "4GiB"
_SAVINGS = (
    "Forward and backward of one update of the whole effective batch, with the run's own model, on the longest rows of the "
    "data; warm, in turn, the median of three, or of those that begin within twenty seconds; cold where none does."
)


def doctor(name: str = "read", config: RunConfig = RunConfig()) -> Report:
    """What reading and encoding find, before any training: everything truncated, windowed, unanswerable, repaired, skipped.

    ``name``: a task's (``TASKS``). Reads all of the files; nothing is held out, no weight is allocated.
    """
    return examined(name, config)[0]


def examined(name: str, config: RunConfig) -> tuple[Report, tuple[Advice, ...]]:
    """``doctor``'s report, and what it advises. What training would refuse of the data as a whole is an error among that."""
    job = task(name)
    check_model(config)
    wanted = job.settings(config, 0)
    examples, findings, shared = job.check(config, wanted)
    report = Report(f"Doctor · {name_of(config.data)}")
    try:
        wanted = job.resolved(wanted, examples)
    except InputError as error:
        found = advise(findings, {}, shared)
        if not any(one.severity == "error" for one in found):
            found = (Advice("error", f"Training would refuse these data: {error}", "Mend them first."), *found)
            findings_table(report.section("Data"), found)
        counts_section(report, findings, {}, shared)
        return report, found
    source = job.open_model(config, wanted, lambda: job.texts(examples))
    _, counts = job.encode(examples, source.tokenizer, wanted.fitted(source.positions))
    how = f"{len(source.tokenizer)} tokens; rows of at most {counts['longest_row_tokens']}"
    report.section("Data").fact("tokenizer", config.model, how=how)
    counts_section(report, findings, counts, shared)
    return report, advise(findings, counts, shared)


def plan(
    name: str = "read",
    config: RunConfig = RunConfig(),
    *,
    budget: str | int | Budget = DEFAULT_BUDGET,
    training: TrainingConfig = TrainingConfig(),
) -> Report:
    """What would be done under the budget, predicted before any weight is allocated; nothing is trained.

    ``name``: a task's (``TASKS``); ``config``, ``training``: on what, and how, as in ``train``; ``budget``: "1GiB" or a
    ``Budget``. ``BudgetError`` says what the smallest piece would need where nothing fits.
    """
    return planned(name, config, budget=budget, training=training)[1]


def planned(
    name: str, config: RunConfig, *, budget: str | int | Budget, training: TrainingConfig
) -> tuple[RunPlan, Report]:
    """The plan itself, and its report; see ``plan``."""
    job = task(name)
    allowed = Budget.parse(budget)
    check_device(allowed.device, must_exist=True)
    check_budget(allowed)
    prepared = prepare(job, config, training, device=allowed.device)
    decided = decide(prepared, allowed, training)
    prepared, found = decided.prepared, decided.planned
    report = Report(f"Plan · {job.title.lower()} · {config.model}")
    memory_section(report, found, None)
    adapter_section(report, prepared.model, found)
    ways_section(report, decided, allowed)
    if allowed.device == "cpu":
        report.section("Memory").fact("bfloat16 here", bfloat16_price().text)
    sharing_section(report, prepared.model, config.unshare_after)
    return found, report


def train(
    name: str = "read",
    config: RunConfig = RunConfig(),
    out: str | Path | Out = "runs/model",
    *,
    budget: str | int | Budget = DEFAULT_BUDGET,
    training: TrainingConfig = TrainingConfig(),
    resume: bool = False,
    command: str = "",
    listener: ProgressListener = SILENT,
) -> Report:
    """Plans, trains, calibrates, judges and reports; ``out`` then holds the model, its card and the report.

    ``name``: a task's (``TASKS``); ``config``: model, data and settings; ``training``: how long, how fast, with which
    remedies; ``budget`` bounds the whole process and names the device (``Budget``); ``resume`` goes on from the checkpoint in ``out``;
    an ``out`` that holds a finished model, or in which another process trains, is refused (``Out``);
    ``listener`` is told how it goes; ``command`` is what the
    report says was called. Returns the report that ``out/report.html`` and ``out/report.json`` show.
    """
    place, job, allowed, clock = Out.of(out), task(name), Budget.parse(budget), _Clock()
    folder = place.path
    check_device(allowed.device, must_exist=True)
    check_budget(allowed)
    check_model(config)
    check_apart(folder, config.model)
    check_folder(folder)
    check_unfinished(folder, place.overwrite or resume)
    with _stopping("before the first update; the same command starts anew"), locked(folder):
        if resume:
            training = as_before(folder, training)
        decided = _planned(job, config, training, allowed, folder, listener, clock)
        prepared, training, planned = decided.prepared, decided.training, decided.planned
        trained = fit(prepared, planned, training, folder, resume=resume, device=allowed.device, listener=listener)
    clock.lap("training")
    if not trained.is_first_process:
        return Report("another process reports")
    model, tokenizer, memory = trained.model, prepared.model.tokenizer, prepared.memory()
    settings, fitted = job.fitted(prepared.settings, model, tokenizer, prepared.sources.set_aside)
    settled = _decided(prepared, trained, training, planned)
    write_whole(folder / MEMORY, json.dumps(memory, ensure_ascii=False) + "\n")
    record = {"training": training.to_dict(), "decided": settled, "data": prepared.sources.name, "model": config.model}
    store(trained, prepared, settings, folder, record)
    report = Report(f"{job.title} · {config.model}")
    with _stopping(f"while judging; the trained model is in {folder}, jieyue evaluate {folder} judges it"):
        judged = job.judge(model, tokenizer, prepared.sources.held_out, settings, memory, listener=listener)
        clock.lap("judging")
        job.report(report, judged, settings, fitted)
        leakage_facts(report, job.quality, prepared.sources)
        training_section(report, trained.course, trained.facts, job.deciding_of(settings))
        if training.measure:
            listener.say("Measuring memory, and timing what each saving was worth")
            _measured_sections(report, prepared, planned, trained, training, config)
    clock.lap("measuring memory and savings")
    data_section(report, job.noun, prepared.sources, prepared.counts)
    resolved = {**training.to_dict(), **settled, **settings.to_dict()}
    resolved |= {"adapter": config.adapter, "base": config.base}
    resolved |= {"model": config.model, "data": prepared.sources.name, "head": prepared.model.head}
    settings_section(report, {**resolved, "command": command or "jieyue.train(...)"}, describe())
    report.section("Training").table(
        ["part of the run", ("time", "seconds")], clock.rows(), title="Where the time went"
    )
    report.save(folder)
    write_card(report, job, folder, command or "jieyue.train(...)", config.model)
    return report


def evaluate(
    folder: str | Path,
    files: Sequence[str | Path] = (),
    *,
    batch_size: int = 32,
    skip_bad: bool = False,
    reading: Mapping[str, str | None] | None = None,
    listener: ProgressListener = SILENT,
) -> Report:
    """Judges a trained model on files (default: the held-out part of the corpus that ships); its record names the task.

    ``folder``: what ``train`` wrote; ``batch_size``: rows of a forward pass; ``skip_bad`` leaves broken records out and counts
    them instead of stopping at the first; ``reading``: settings for reading these files, such as ``encoding``, ``delimiter``
    and ``roles``, where the model's own are not theirs; ``listener`` is told how it goes.
    """
    RunConfig(data=files)  # refuses files that are not there
    record = read_record(folder)
    job = task(str(record.get("recipe")))
    given = {name: value for name, value in (reading or {}).items() if value is not None}
    settings = job.settings_class.from_dict({**record["settings"], **given})
    memory = read_memory(folder)
    named = job.judging_sources(files, settings, skip_bad=skip_bad) if files else None  # told before weights are read
    model, tokenizer = load(folder, settings.head(job.head))
    sources = named or job.judging_sources(files, settings, skip_bad=skip_bad)
    judged = job.judge(model, tokenizer, sources.held_out, settings, memory, batch_size=batch_size, listener=listener)
    report = Report(f"Evaluation · {Path(folder).name}")
    job.report(report, judged, settings, {})
    if memory is None:
        report.section("Data").fact(
            "training answers", "not known", how=f"no {MEMORY} in the folder, so some baselines are missing; train anew"
        )
    if files:
        counts_section(report, {"files": sources.findings}, {}, {})
    return report


@contextmanager
def _stopping(when: str) -> Iterator[None]:
    """Ctrl-C inside says when it came and what to do; one that left a checkpoint says so itself."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Stopped(f"stopped {when}") from None


def _planned(
    job: AnyTask,
    config: RunConfig,
    training: TrainingConfig,
    budget: Budget,
    folder: Path,
    listener: ProgressListener,
    clock: _Clock,
) -> Decided:
    """Reads, encodes and plans, and tells of it."""
    listener.say(f"Reading {', '.join(map(str, config.data)) or name_of(())}")
    prepared = prepare(job, config, training, folder=folder, device=budget.device)
    clock.lap("reading and encoding the data")
    _say_data(listener, prepared)
    listener.say("Planning: what an update needs is traced")
    decided = decide(prepared, budget, training)
    planned, told = settled(decided.planned, decided.training, say=listener.say)
    clock.lap("planning")
    _say_plan(listener, planned)
    if told:
        listener.say(told)
    return replace(decided, planned=planned)


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


def _decided(prepared: Prepared, trained: Trained, training: TrainingConfig, planned: RunPlan) -> Facts:
    """What None stood for in ``training``, with its value."""
    rows = prepared.stages[-1].stop - prepared.stages[-1].first
    found: Facts = {
        "steps": trained.facts["steps"],
        "epochs": round(trained.facts["rows"] / max(1, rows), 3),
        "learning_rate": trained.facts["learning_rate"],
        "warmup_steps": trained.facts["warmup_steps"],
        "checkpointing": planned.plan.checkpointing,
        "schedule": trained.facts["schedule"],
        "evaluate_every": trained.facts["evaluate_every"],
        "curriculum": prepared.curriculum,
        "start": prepared.model.start,
    }
    return {name: value for name, value in found.items() if value is not None}


def _measured_sections(
    report: Report,
    prepared: Prepared,
    planned: RunPlan,
    trained: Trained,
    training: TrainingConfig,
    config: RunConfig,
) -> None:
    """Memory, savings, prices and lengths, measured now on the run's own model."""
    measured = measured_memory(prepared, planned, trained)
    gained = savings(prepared, planned, trained, measured)
    memory_section(report, planned, measured)
    adapter_section(report, prepared.model, planned)
    sharing_section(report, prepared.model, config.unshare_after)
    gained.tell(report, "What each saving was worth", note=_SAVINGS)
    if training.remedies:
        prices_section(report, prices(prepared, planned, trained, training.remedies))
    if config.attention is not None:
        rows = against_length(prepared, planned, config.attention)
        lengths_section(report, rows, attention_engines(trained.model))


def _say_data(listener: ProgressListener, prepared: Prepared) -> None:
    sources = prepared.sources
    listener.fact("data", train=len(sources.train), set_aside=len(sources.set_aside), held_out=len(sources.held_out))
    counted = {**sources.findings.counts, **prepared.counts}
    listener.table(
        "",
        ["counted before training", "number"],
        [[k.replace("_", " "), str(v)] for k, v in counted.items() if v],
        "counted",
    )
    say_findings(listener, sources, prepared.counts)


def say_findings(listener: ProgressListener, sources: Sources[Any], counts: Mapping[str, int]) -> None:
    """What is to be known of the data before anything is made of them, and the first records that were skipped."""
    held = sources.held_out_findings
    parts = {"training files": sources.findings, **({} if held is None else {"held-out files": held})}
    if found := advise(parts, counts, sources.shared or {}):
        rows = [[one.severity, one.found, one.do] for one in found]
        listener.table("Findings", ["severity", "finding", "what to do"], rows, "finding")
    for line in sources.findings.skipped[:20]:
        listener.say(f"skipped: {line}")


def _say_plan(listener: ProgressListener, planned: RunPlan) -> None:
    chosen, cost = planned.plan, planned.plan.predicted
    assert cost is not None
    listener.fact(
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
