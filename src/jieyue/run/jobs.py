"""The jobs of the command line, as functions: each returns its Report and tells a ``Watch`` what it is doing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jieyue.budget import Budget, format_bytes
from jieyue.data.corpora import heldout_path
from jieyue.data.findings import overlap
from jieyue.data.readers import Passage, Question, read_questions
from jieyue.errors import InputError
from jieyue.hf.loading import load, read_record
from jieyue.machine import describe
from jieyue.recipes import read as reading
from jieyue.report import Report, model_card, write_whole

from .judging import Judged, dozen, judge, tell_speed
from .models import open_model
from .planned import Planned, against_length, measure, plan_for, savings
from .sources import SHIPPED, open_sources, read_training
from .story import (
    tell_counts,
    tell_data,
    tell_examples,
    tell_lengths,
    tell_memory,
    tell_quality,
    tell_savings,
    tell_settings,
    tell_training,
)
from .training import Course, Materials, Prepared, default_settings, fit, prepare, store
from .watch import SILENT, Watch

__all__ = ["doctor", "evaluate", "plan", "read", "train"]

DEFAULT_BUDGET = "4GiB"


def doctor(materials: Materials = Materials()) -> Report:
    """What reading and encoding find, before any training: everything truncated, windowed, unanswerable, repaired, skipped.

    Reads all of the files; nothing is held out, no weight is allocated.
    """
    questions, own = read_training(materials.data, materials.questions, 0, materials.skip_bad)
    findings = {"training files": own}
    source = open_model(materials.model, questions, vocabulary=materials.vocabulary)
    settings = (materials.settings or default_settings(materials.model, bool(materials.data))).fitted(source.positions)
    _, counts = reading.encode(questions, source.tokenizer, settings)
    shared: dict[str, int] = {}
    if materials.held_out or not materials.data:
        judged, findings["held-out files"] = read_questions(
            materials.held_out or heldout_path(), skip_bad=materials.skip_bad
        )
        shared = overlap(questions, judged)
    report = Report(f"Doctor · {', '.join(Path(path).name for path in materials.data) or SHIPPED}")
    how = f"{len(source.tokenizer)} tokens; rows of at most {settings.longest_row}"
    report.section("Data").fact("tokenizer", materials.model, how=how)
    tell_counts(report, findings, counts, shared)
    return report


def plan(
    materials: Materials = Materials(),
    *,
    budget: str | int | Budget = DEFAULT_BUDGET,
    course: Course = Course(),
    device: str = "cpu",
) -> Report:
    """What would be done under the budget, predicted before any weight is allocated; nothing is trained."""
    planned = plan_for(
        prepare(materials, course), Budget.parse(budget, device), course.effective_batch, course.checkpointing
    )
    report = Report(f"Plan · reading · {materials.model}")
    tell_memory(report, planned.plan, {}, planned.budget.memory_bytes)
    return report


def train(
    materials: Materials = Materials(),
    out: str | Path = "runs/reader",
    *,
    budget: str | int | Budget = DEFAULT_BUDGET,
    course: Course = Course(),
    device: str = "cpu",
    resume: bool = False,
    command: str = "",
    watch: Watch = SILENT,
) -> Report:
    """Plans, trains, calibrates, judges and reports; ``out`` then holds the model, its card and the report.

    ``budget`` bounds the whole process. Returns the report that ``out/report.html`` and ``out/report.json`` show.
    """
    folder, allowed, clock = Path(out), Budget.parse(budget, device), _Clock()
    watch.say(f"Reading {', '.join(map(str, materials.data)) or SHIPPED}")
    prepared = prepare(materials, course)
    clock.lap("reading and encoding the data")
    _say_data(watch, prepared)
    planned = plan_for(prepared, allowed, course.effective_batch, course.checkpointing)
    clock.lap("planning")
    _say_plan(watch, planned)
    trained = fit(prepared, planned, course, folder, resume=resume, device=device, watch=watch)
    clock.lap("training")
    if not trained.trainer.is_world_process_zero():
        return Report("another process reports")
    calibrated = _calibrate(prepared, trained.trainer.model)
    prepared = replace(prepared, settings=replace(prepared.settings, temperature=calibrated["temperature"]))
    record = {"training": asdict(course), "data": prepared.sources.name, "model": materials.model}
    store(trained, prepared, folder, record)
    judged = judge(
        trained.trainer.model,
        prepared.model.tokenizer,
        prepared.sources.held_out,
        prepared.sources.train,
        prepared.settings,
        watch=watch,
    )
    clock.lap("calibrating and judging")
    measured = measure(prepared, planned, trained)
    gained = savings(prepared, planned, trained, measured)
    clock.lap("measuring memory and savings")
    report = Report(f"Reading · {materials.model}")
    _tell_judged(report, judged, calibrated)
    tell_speed(report, judged, 32)
    tell_training(report, trained.losses, trained.curve, trained.facts)
    tell_memory(report, planned.plan, measured, planned.budget.memory_bytes)
    tell_savings(report, gained)
    if materials.attention is not None:
        tell_lengths(report, against_length(prepared, planned, materials.attention))
    tell_data(report, prepared.sources, prepared.counts)
    resolved = {
        **asdict(course),
        **prepared.settings.to_dict(),
        "model": materials.model,
        "data": prepared.sources.name,
    }
    tell_settings(report, {**resolved, "command": command or "jieyue.train(...)"}, describe())
    report.section("Training").table(
        ["part of the run", ("time", "seconds")], clock.rows(), title="Where the time went"
    )
    _publish(report, folder, command)
    return report


def evaluate(
    folder: str | Path,
    files: Sequence[str | Path] = (),
    *,
    batch_size: int = 32,
    skip_bad: bool = False,
    watch: Watch = SILENT,
) -> Report:
    """Judges a trained model on files (default: the held-out part of the corpus that ships)."""
    settings = reading.ReadSettings.from_dict(_record_of(folder)["settings"])
    model, tokenizer = load(folder)
    sources = open_sources() if not files else None
    questions, findings = (sources.held_out, None) if sources else read_questions(files, skip_bad=skip_bad)
    judged = judge(
        model, tokenizer, questions, sources.train if sources else [], settings, batch_size=batch_size, watch=watch
    )
    report = Report(f"Evaluation · {Path(folder).name}")
    _tell_judged(report, judged, {"temperature": settings.temperature, "questions": "the training run's"})
    tell_speed(report, judged, batch_size)
    if findings is not None:
        section = report.section("Data")
        section.facts({name.replace("_", " "): count for name, count in findings.counts.items() if count})
        if findings.skipped:
            section.table(["record and reason"], [[line] for line in findings.skipped], title="Skipped records")
    return report


def read(folder: str | Path, question: str, passages: Sequence[str]) -> dict[str, Any]:
    """One question about some passages, answered by a trained reader.

    ``answer`` is a slice of ``passages[passage]``, letter for letter, ``start:end`` in characters; empty when the reader
    finds no answer. ``confidence`` is calibrated; ``rivals`` are other answers with their votes.
    """
    if not question.strip():
        raise InputError("question: found nothing, expected a question")
    if not any(text.strip() for text in passages):
        raise InputError("passage: found nothing, expected a text to look for the answer in")
    settings = reading.ReadSettings.from_dict(_record_of(folder)["settings"])
    model, tokenizer = load(folder)
    kept = [number for number, text in enumerate(passages) if text.strip()]
    asked = Question("1", question, tuple(Passage(passages[number]) for number in kept))
    (found,) = reading.answer(model, tokenizer, [asked], settings)
    return {
        "answer": found.text,
        "passage": kept[found.passage] if found.text else -1,
        "start": found.start,
        "end": found.end,
        "confidence": round(found.confidence, 4),
        "vote": round(found.vote, 4),
        "rivals": [{"answer": text, "vote": round(vote, 4)} for text, vote in found.rivals],
    }


def _record_of(folder: str | Path) -> dict[str, Any]:
    record = read_record(folder)
    if record.get("recipe") != "read":
        raise InputError(f"{folder}: its recipe is {record.get('recipe')!r}, expected 'read'")
    return record


def _calibrate(prepared: Prepared, model: Any) -> dict[str, Any]:
    asked = prepared.sources.calibration
    answers = reading.answer(model, prepared.model.tokenizer, asked, prepared.settings)
    found = reading.calibrate(answers, asked)
    return {"temperature": found.temperature, "questions": found.count}


def _tell_judged(report: Report, judged: Judged, calibrated: dict[str, Any]) -> None:
    tell_quality(report, judged.scores, judged.baselines, calibrated)
    shown = dozen(judged)
    tell_examples(
        report,
        [judged.questions[number] for number in shown],
        [judged.answers[number] for number in shown],
        [judged.right[number] for number in shown],
    )


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


def _publish(report: Report, folder: Path, command: str) -> None:
    report.save(folder)
    usage = (
        "from transformers import AutoModelForMaskedLM, AutoTokenizer\n\n"
        f'model = AutoModelForMaskedLM.from_pretrained("{folder.name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{folder.name}")\n\n'
        "# with jieyue: place, confidence, long passages, several passages\n"
        "# jieyue read FOLDER --question '…' --file passage.txt"
    )
    limits = "Answers are spans of the given passage. The numbers below hold for questions like those it was judged on."
    card = model_card(
        report,
        command=command or "jieyue.train(...)",
        usage=usage,
        limits=limits,
        header={"tags": ["jieyue", "question-answering"]},
    )
    write_whole(folder / "README.md", card)


def _say_data(watch: Watch, prepared: Prepared) -> None:
    sources = prepared.sources
    watch.fact("data", train=len(sources.train), calibration=len(sources.calibration), held_out=len(sources.held_out))
    counted = {**sources.findings.counts, **prepared.counts}
    watch.table(
        "",
        ["counted before training", "number"],
        [[k.replace("_", " "), str(v)] for k, v in counted.items() if v],
        "counted",
    )
    if any(sources.shared.values()):
        watch.fact("in training and held out", **sources.shared)
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
        fixed=format_bytes(cost.fixed_bytes),
        step_peak=format_bytes(cost.peak_bytes),
        process=format_bytes(cost.process_bytes),
        budget=format_bytes(planned.budget.memory_bytes) if planned.budget.memory_bytes else "none",
    )
