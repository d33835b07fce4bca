"""The report of a reading run, section by section; every number comes in as a value, nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jieyue.budget import Plan
from jieyue.data.findings import MEANING, Findings
from jieyue.data.readers import Question
from jieyue.recipes.read import Answer
from jieyue.report import Estimate, Example, Picture, Report

from .sources import Sources

__all__ = [
    "tell_counts",
    "tell_data",
    "tell_examples",
    "tell_lengths",
    "tell_memory",
    "tell_quality",
    "tell_savings",
    "tell_settings",
    "tell_training",
]


def tell_settings(report: Report, settings: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """What was asked and decided, and where it ran."""
    section = report.section("Settings")
    for name, value in settings.items():
        section.fact(name.replace("_", " "), "decided by jieyue" if value is None else value)
    section = report.section("Machine")
    for name, value in machine.items():
        section.fact(name.replace("_bytes", " memory"), value, "bytes" if name.endswith("_bytes") else "")


def tell_data(report: Report, sources: Sources, counts: Mapping[str, int]) -> None:
    """The three parts of the data, and everything that was counted while reading and encoding them."""
    section = report.section("Data")
    section.fact("training questions", len(sources.train), how=sources.name)
    section.fact("calibration questions", len(sources.calibration), how="passages set aside from training")
    section.fact("held-out questions", len(sources.held_out), how="only ever used to judge")
    found = {"training files": sources.findings, "held-out files": sources.held_out_findings}
    tell_counts(report, {name: own for name, own in found.items() if own is not None}, counts, sources.shared)


def tell_counts(
    report: Report, findings: Mapping[str, Findings], encoded: Mapping[str, int], shared: Mapping[str, int]
) -> None:
    """Everything counted that is not zero, with what it means; the overlap of the files; every skipped record."""
    section = report.section("Data")
    rows: list[list[Any]] = []
    for where, counts in [*((name, own.counts) for name, own in findings.items()), ("rows", encoded)]:
        rows += [[where, count, MEANING.get(name, name.replace("_", " "))] for name, count in counts.items() if count]
    rows += [["both", count, f"{name} that stand in training and held-out files"] for name, count in shared.items()]
    section.table(["where", "count", "what"], rows, title="Everything that was counted")
    for own in findings.values():
        other = {name: kind for name, kind in own.encodings.items() if kind != "utf-8"}
        if other:
            section.table(
                ["file", "encoding"], [list(pair) for pair in other.items()], title="Other encodings than UTF-8"
            )
    skipped = [line for own in findings.values() for line in own.skipped]
    if skipped:
        section.table(["record and reason"], [[line] for line in skipped], title="Skipped records")


def tell_training(
    report: Report, losses: Sequence[tuple[int, float]], curve: Sequence[tuple[int, float]], facts: Mapping[str, Any]
) -> None:
    """Loss by update, exact match on the questions set aside, and what training took."""
    section = report.section("Training")
    for name in ("steps", "rows", "tokens"):
        section.fact(name, facts[name])
    section.fact("time", facts["seconds"], "seconds", how="training alone", key=True)
    section.fact(
        "speed", facts["tokens"] / max(facts["seconds"], 1e-9), "per second", how="tokens, padding not counted"
    )
    if losses:
        xs, ys = zip(*losses, strict=True)
        section.picture(Picture.lines("Loss", {"training": (list(xs), list(ys))}, x="update", y="nats per label"))
    if curve:
        xs, ys = zip(*curve, strict=True)
        title = "Exact match while training, on questions set aside"
        section.picture(
            Picture.lines(title, {"set aside": (list(xs), list(ys))}, x="update", y=("exact match", "share"))
        )


def tell_quality(
    report: Report, scores: Mapping[str, Any], baselines: Mapping[str, Any], calibration: Mapping[str, Any]
) -> None:
    """Exact match, F1 and Final by kind of question, against the three baselines; calibration of the confidence."""
    section = report.section("Quality on held-out questions")
    how = f"{scores['questions']} questions; rule: {scores['rule']}; maximum over gold answers"
    section.fact("exact match", scores["exact_match"], "share", how, interval=scores["exact_match_interval"], key=True)
    section.fact("F1", scores["f1"], "share", how, key=True)
    section.fact("Final", scores["final"], "share", "mean of exact match and F1", key=True)
    if "gain" in baselines:
        best = f"exact match on answerable questions, over “{baselines['best_baseline']}”; 95 % bootstrap interval"
        section.fact(
            "gain over the best baseline", baselines["gain"], "share", best, interval=baselines["gain_interval"]
        )
    parts = {
        "all": "all",
        "answerable": "answerable",
        "unseen": "answerable, answer never in training",
        "unanswerable": "unanswerable",
    }
    systems = {"this reader": scores, **baselines["baselines"]}
    rows = []
    for part, words in parts.items():
        for name, facts in systems.items():
            own = facts if part == "all" else facts.get(part, {})
            if own.get("questions"):
                rows.append([words, name, own["questions"], own["exact_match"], own["f1"], own["final"]])
    columns: list[str | tuple[str, str]] = [
        "questions",
        "answers by",
        "number",
        ("exact match", "share"),
        ("F1", "share"),
        ("Final", "share"),
    ]
    section.table(columns, rows, title="By kind of question, with three baselines")
    bars = {
        name: facts["answerable"].get("exact_match", 0.0) for name, facts in systems.items() if "answerable" in facts
    }
    if "exact_match_interval" in scores.get("answerable", {}):
        low, high = scores["answerable"]["exact_match_interval"]
        bars["this reader"] = Estimate(bars["this reader"], low, high)
    section.picture(Picture.bars("Exact match on answerable questions", bars, value=("exact match", "share")))
    section = report.section("Confidence")
    section.fact(
        "temperature", calibration["temperature"], how=f"fitted on {calibration['questions']} questions set aside"
    )
    if "calibration_error" in scores:
        section.fact("expected calibration error", scores["calibration_error"], "share", "held-out questions, ten bins")
        bins = scores["calibration_bins"]
        points = {one["confidence"]: one["accuracy"] for one in bins}
        clouds = {"answers in ten bins": points, "perfectly calibrated": {0.0: 0.0, 1.0: 1.0}}
        section.picture(
            Picture.lines("Confidence and accuracy", clouds, x=("mean confidence", "share"), y=("share right", "share"))
        )


def tell_examples(
    report: Report, questions: Sequence[Question], answers: Sequence[Answer], right: Sequence[bool]
) -> None:
    """A dozen answered questions, right and wrong, answered and abstained, in each language."""
    chosen = []
    for question, answer, is_right in zip(questions, answers, right, strict=True):
        passage = question.passages[max(answer.passage, 0)]
        chosen.append(
            Example(
                question=question.text,
                passage=passage.text,
                answer=answer.text,
                span=(answer.start, answer.end) if answer.text else None,
                gold=question.golds or (),
                gold_spans=passage.spans if question.golds else (),
                confidence=answer.confidence,
                right=is_right,
                title=question.title,
            )
        )
    report.section("Answered examples").examples(
        chosen, note="Taken in order from the held-out questions, not picked by hand."
    )


def tell_memory(report: Report, plan: Plan, measured: Mapping[str, Any], budget_bytes: int | None) -> None:
    """Predicted and measured memory on one line each, and what the predicted peak is made of."""
    section = report.section("Memory")
    cost = plan.predicted
    assert cost is not None
    if budget_bytes is not None:
        section.fact("budget", budget_bytes, "bytes", "for the whole process", key=True)
    section.fact(
        "micro-batch", plan.micro_batch, how=f"rows; an update sees {plan.effective_batch} rows in {plan.pieces} pieces"
    )
    section.fact("activation checkpointing", "on" if plan.checkpointing else "off", how="exact")
    rows = [["tensors at the peak of a step", cost.peak_bytes, measured.get("peak_bytes"), measured["peak_how"]]]
    rows += [["fixed: interpreter and libraries", cost.fixed_bytes, measured.get("fixed_bytes"), measured["fixed_how"]]]
    rows += [["whole process", cost.process_bytes, measured.get("process_bytes"), measured["process_how"]]]
    columns: list[str | tuple[str, str]] = [
        "what",
        ("predicted", "bytes"),
        ("measured", "bytes"),
        "how it was measured",
    ]
    section.table(columns, rows, title="Predicted before training, measured in it")
    parts = {"weights": cost.weight_bytes, "gradients": cost.gradient_bytes, "optimizer": cost.optimizer_bytes,
             "activations": cost.activation_bytes, "temporary": cost.temporary_bytes}  # fmt: skip
    section.picture(Picture.bars("What the predicted peak is made of", parts, value=("memory", "bytes")))
    if plan.rejected:
        section.table(["setting", "why not"], [list(row) for row in plan.rejected], title="Rejected")


def tell_lengths(report: Report, rows: Sequence[Mapping[str, Any]]) -> None:
    """The pattern against full attention at growing lengths: a table and two pictures."""
    section = report.section("The pattern against full attention")
    columns: list[str | tuple[str, str]] = ["tokens", "attention", ("peak", "bytes"), ("seconds", "seconds"), "how"]
    table = [[row["length"], row["attention"], row["peak_bytes"], row["seconds"], row["how"]] for row in rows]
    section.table(columns, table, note="One update of one row of that length, everything included.")
    for key, title, unit in (
        ("peak_bytes", "Peak of one update", "bytes"),
        ("seconds", "Seconds of one update", "seconds"),
    ):
        curves: dict[str, dict[int, float]] = {}
        for row in rows:
            if row[key] is not None:
                curves.setdefault(row["attention"], {})[row["length"]] = row[key]
        section.picture(Picture.lines(title, curves, x="tokens", y=(title.split()[0].lower(), unit), log="xy"))


def tell_savings(report: Report, rows: Sequence[Mapping[str, Any]]) -> None:
    """What each saving gained: peak and seconds of one update, all rows measured in this run unless said otherwise."""
    section = report.section("What each saving was worth")
    if not rows:
        section.note("Nothing was saved: the undivided batch fitted the budget, and ran as it was.")
        return
    columns: list[str | tuple[str, str]] = [
        "setting",
        ("peak", "bytes"),
        ("change", "bytes"),
        ("seconds an update", "seconds"),
        "exact",
        "how",
    ]
    first = rows[0]["peak_bytes"]
    table = [
        [
            row["setting"],
            row["peak_bytes"],
            row["peak_bytes"] - first,
            row.get("seconds"),
            "yes" if row["exact"] else "no",
            row["how"],
        ]
        for row in rows
    ]
    section.table(columns, table, note="One update of the whole effective batch, on the longest rows of the data.")
    section.picture(
        Picture.bars(
            "Peak of one update", {row["setting"]: row["peak_bytes"] for row in rows}, value=("memory", "bytes")
        )
    )
