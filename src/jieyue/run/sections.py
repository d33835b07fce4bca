"""The report of a run, section by section; every number comes in as a value, nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jieyue.data.advice import Advice, advise
from jieyue.data.findings import MEANING, Findings, shown_text
from jieyue.hf.four_bit import check_rounding
from jieyue.report import Picture, Report, Section
from jieyue.report.amounts import Given
from jieyue.tasks import Deciding, Facts, Sources
from jieyue.tasks.models import ModelSource
from jieyue.training.techniques import EXACT

from .course import Course
from .curves import curves_of
from .measure import LengthCost, Memory, Price
from .plan import RunPlan

__all__ = [
    "adapter_section",
    "counts_section",
    "data_section",
    "findings_table",
    "leakage_facts",
    "lengths_section",
    "memory_section",
    "prices_section",
    "settings_section",
    "sharing_section",
    "training_section",
]


def settings_section(report: Report, settings: Facts, machine: Facts) -> None:
    """What was asked and decided, and where it ran; what was left open and is of no use here is not told."""
    section = report.section("Settings")
    for name, value in settings.items():
        if value is not None and value != [] and value != ():
            section.fact(name.replace("_", " "), value)
    section = report.section("Machine")
    for name, value in machine.items():
        section.fact(name.replace("_bytes", " memory"), value, "bytes" if name.endswith("_bytes") else "")


def data_section(report: Report, noun: str, sources: Sources[Any], counts: Mapping[str, int]) -> None:
    """The three parts of the data, and everything that was counted while reading and encoding them."""
    section = report.section("Data")
    section.fact(f"training {noun}", len(sources.train), how=sources.name)
    section.fact(f"{noun} set aside", len(sources.set_aside), how="from training, for curves and calibration")
    section.fact(f"held-out {noun}", len(sources.held_out), how="only ever used to judge")
    found = {"training files": sources.findings, "held-out files": sources.held_out_findings}
    counts_section(report, {name: own for name, own in found.items() if own is not None}, counts, sources.shared or {})


def counts_section(
    report: Report, findings: Mapping[str, Findings], encoded: Mapping[str, int], shared: Mapping[str, int]
) -> None:
    """What to mend first, then everything counted that is not zero, the overlap of the files, every skipped record."""
    section = report.section("Data")
    findings_table(section, advise(findings, encoded, shared))
    rows: list[list[Given]] = []
    for where, counts in [*((name, own.counts) for name, own in findings.items()), ("rows", encoded)]:
        rows += [[where, count, MEANING.get(name, name.replace("_", " "))] for name, count in counts.items() if count]
    rows += [
        ["both", count, f"{name} that stand in training and held-out files"] for name, count in shared.items() if count
    ]
    section.table(["where", "count", "what"], rows, title="Everything that was counted")
    for name, own in findings.items():
        if own.example:
            section.fact(name, f"{own.counts['dialogues']} dialogues read")
            section.fact("who is who", own.who_is_who())
            said = [[role, shown_text(text)] for role, text in own.example]
            section.table(["who", "says"], said, title=f"The first dialogue of the {name}")
    for own in findings.values():
        other = {name: kind for name, kind in own.encodings.items() if kind != "utf-8"}
        if other:
            section.table(
                ["file", "encoding"], [list(pair) for pair in other.items()], title="Other encodings than UTF-8"
            )
    skipped = [line for own in findings.values() for line in own.skipped]
    if skipped:
        section.table(["record and reason"], [[line] for line in skipped], title="Skipped records")


def findings_table(section: Section, found: Sequence[Advice]) -> None:
    """What to mend before training, errors first; nothing where there is nothing."""
    if found:
        section.table(
            ["severity", "finding", "what to do"],
            [[one.severity, one.found, one.do] for one in found],
            title="Findings",
        )


def leakage_facts(report: Report, quality: str, sources: Sources[Any]) -> None:
    """Says beside the scores what of the held-out part training has too."""
    for name, count in (sources.shared or {}).items():
        if count:
            how = f"of {len(sources.held_out)} held out; the scores count them"
            report.section(quality).fact(f"{name} that stand in training", count, how=how)


def training_section(report: Report, course: Course, facts: Facts, deciding: Deciding) -> None:
    """Loss by update, the task's own curve on the examples set aside, the rate, and what training took."""
    section = report.section("Training")
    for name in ("steps", "rows", "tokens"):
        section.fact(name, facts[name])
    if "best_step" in facts:
        how = f"{deciding.quantity} on examples set aside, looked at every {facts['evaluate_every']} updates"
        section.fact("best update", facts["best_step"], how=how)
        section.fact(
            f"its {deciding.quantity}", facts["best_score"], deciding.unit, how=f"{facts['kept']} weights kept"
        )
        section.fact("stopped early", facts["stopped_early"])
    section.fact("time", facts["seconds"], "seconds", how="training alone", key=True)
    section.fact("speed", facts["tokens_per_second"], "per second", how="tokens, padding not counted")
    if "packed" in facts:
        _tell_packing(section, facts)
    for picture in curves_of(course, deciding):
        section.picture(picture)


def _tell_packing(section: Section, facts: Facts) -> None:
    """Padding, and seconds of forward and backward of one usual batch, before and after."""
    section.fact("packed rows", facts["packed"], how=facts["packed_how"])
    section.fact("padding of the rows as they are", facts["padding_before"], "share", how="of all positions of a run")
    if facts["packed"]:
        section.fact("padding of packed rows", facts["padding_after"], "share")
        how = "forward and backward of one batch with the usual padding"
        section.fact("a batch as its rows are", facts["seconds_before"], "seconds", how=how)
        section.fact("the same batch packed", facts["seconds_after"], "seconds", how=how)


def memory_section(report: Report, planned: RunPlan, measured: Memory | None) -> None:
    """Predicted and measured memory on one line each, and what the predicted peak is made of."""
    section, plan, way, budget_bytes = report.section("Memory"), planned.plan, planned.way, planned.budget.memory_bytes
    cost = plan.predicted
    assert cost is not None
    if budget_bytes is not None:
        section.fact("budget", budget_bytes, "bytes", "for the whole process", key=True)
    section.fact(
        "micro-batch", plan.micro_batch, how=f"rows; an update sees {plan.effective_batch} rows in {plan.pieces} pieces"
    )
    section.fact("activation checkpointing", "on" if plan.checkpointing else "off", how=EXACT)
    if way.moving:
        longest = planned.step.max_grad_norm
        clipped = f"clipped to {longest:g} by the norm of the step before" if longest else "not clipped"
        section.fact("update in backward", "on", how=f"no gradient is kept; {clipped}")
    whole = replace(way, adapter=None, base=None, moving=False)
    section.fact("optimizer", way.optimizer, how=replace(whole, dtype="float32").update)
    section.fact("matrix products in", way.dtype, how=replace(whole, optimizer="adamw").update)
    found = measured
    rows: list[list[Given]] = [
        [
            "tensors at the peak of a step",
            cost.peak_bytes,
            found.peak_bytes if found else None,
            found.peak_how if found else "",
        ],
        ["fixed: interpreter and libraries", cost.fixed_bytes, None, found.fixed_how if found else ""],
        [
            "whole process",
            cost.process_bytes,
            found.process_bytes if found else None,
            found.process_how if found else "",
        ],
    ]
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


def adapter_section(report: Report, source: ModelSource, planned: RunPlan) -> None:
    """What is trained in place of all weights, and what four bits do to those that are frozen."""
    section, way, cost = report.section("Memory"), planned.way, planned.plan.predicted
    if way.adapter is not None:
        section.fact("adapter", way.adapter, how=source.adapter or "")
    if way.base is not None:
        section.fact("frozen base in", way.base, how=check_rounding().text)
        file = sum(path.stat().st_size for path in Path(source.name).glob("*.safetensors"))
        if file and cost is not None:
            how = "the pages of its file count as long as it is read; the system takes them back where memory is short"
            section.fact("process while reading", cost.fixed_bytes + file + cost.weight_bytes, "bytes", how=how)


def sharing_section(report: Report, source: ModelSource, after: int) -> None:
    """What giving an ALBERT's layers blocks of their own adds: parameters, and bytes of weights, gradients and moments."""
    if source.sharing is None:
        return
    section = report.section("Sharing")
    rows: list[list[Given]] = [
        [when, own.text, own.num_parameters, own.training_bytes]
        for when, own in zip(("before", f"after update {after}" if after else "unshared"), source.sharing, strict=True)
    ]
    columns: list[str | tuple[str, str]] = ["when", "layers", "parameters", ("training memory", "bytes")]
    how = "Weights, gradients and AdamW's two moments; activations are the same. Outputs are equal at that moment."
    section.table(columns, rows, title="What unsharing adds", note=how)


def lengths_section(report: Report, rows: Sequence[LengthCost], layers: Sequence[tuple[str, ...]]) -> None:
    """What each layer got, and the pattern against full attention at growing lengths: two tables and two pictures."""
    section = report.section("The pattern against full attention")
    section.table(["layers", "attention", "engine", "why not a faster one"], [list(row) for row in layers])
    section.table(
        ["tokens", "attention", ("peak", "bytes"), ("seconds", "seconds"), "how"],
        [[row.length, row.attention, row.peak_bytes, row.seconds, row.how] for row in rows],
        note="One update of one row of that length, everything included.",
    )
    peaks = {(row.attention, row.length): float(row.peak_bytes) for row in rows}
    seconds = {(row.attention, row.length): row.seconds for row in rows if row.seconds is not None}
    for values, title, unit in (
        (peaks, "Peak of one update", "bytes"),
        (seconds, "Seconds of one update", "seconds"),
    ):
        curves: dict[str, dict[float, float]] = {}
        for (attention, length), value in values.items():
            curves.setdefault(attention, {})[length] = value
        section.picture(Picture.lines(title, curves, x="tokens", y=(title.split()[0].lower(), unit), log="xy"))


def prices_section(report: Report, prices: Sequence[Price]) -> None:
    """What each remedy costs: peak and seconds of one update, as multiples of the update without."""
    first = prices[0]
    table: list[list[Given]] = [
        [one.objective, one.peak_bytes, one.peak_bytes / first.peak_bytes, one.seconds, one.seconds / first.seconds]
        for one in prices
    ]
    note = "One update of the whole effective batch on the longest rows, forward and backward, in this run."
    report.section("What each remedy costs").table(
        ["objective", ("peak", "bytes"), "times", ("seconds an update", "seconds"), "times"], table, note=note
    )
