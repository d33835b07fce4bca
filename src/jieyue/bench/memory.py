"""The waterfall: one saving after another on the same model and batch, each measured in a process of its own.

    undivided → micro-batches → chunked vocabulary loss → checkpointing → (pattern) → (Adafactor) → (bfloat16)

Each row keeps what the rows above it do. Peak: highest sum of live bytes of torch's allocator in one warm update; process:
highest resident set (VmHWM), glibc's mmap threshold at 64 KiB; tokens/s: of the fastest of some updates after the first.
Approximate rows come last and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jieyue.errors import InputError, message
from jieyue.machine import describe
from jieyue.planning.measurement import Measured, measure_alone
from jieyue.planning.prediction import predict
from jieyue.planning.setting import Setting
from jieyue.planning.subject import Subject
from jieyue.report import Picture, Report
from jieyue.run.any_model import open_subject

__all__ = ["Step", "Waterfall", "bench_memory", "measure_waterfall", "steps_of"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row: what was added, the setting it leads to, the predicted peak, what was measured (None: beyond the limit)."""

    added: str
    setting: Setting
    predicted_bytes: int
    measured: Measured | None = None

    @property
    def peak_bytes(self) -> int:
        """Measured where it was run, else predicted."""
        return self.predicted_bytes if self.measured is None else self.measured.peak_bytes


@dataclass(frozen=True, kw_only=True)
class Waterfall:
    """``steps`` in the order in which they were added; ``tokens``: of one update."""

    name: str
    subject: Subject
    effective_batch: int
    steps: tuple[Step, ...]

    @property
    def tokens(self) -> int:
        return self.effective_batch * self.subject.positions

    def report(self) -> Report:
        report = Report(f"Memory, saving by saving · {self.name}")
        self.tell(report)
        machine = report.section("Machine")
        for what, value in describe().items():
            machine.fact(what, value, "bytes" if what.endswith("_bytes") else "")
        return report

    def tell(self, report: Report) -> None:
        """The section of any report: a table and two pictures."""
        section = report.section("Waterfall")
        how = f"{self.subject.head}, fresh weights; rows of {self.subject.positions} tokens"
        section.fact("rows of an update", self.effective_batch, how=how)
        columns: list[Any] = [
            "added", ("peak", "bytes"), ("change", "bytes"), ("process", "bytes"), ("predicted", "bytes"), "tokens/s",
            "change of tokens/s", "update", "how",
        ]  # fmt: skip
        section.table(columns, self._cells(), title="Each row keeps what those above it do", note=_NOTE)
        peaks = {step.added: step.peak_bytes for step in self.steps}
        section.picture(Picture.bars("Peak of one update", peaks, value=("memory", "bytes")))
        rates = {
            step.added: self._rate(step) for step in self.steps if step.measured is not None and step.measured.seconds
        }
        if rates:
            section.picture(Picture.bars("Tokens per second", rates, value="tokens/s"))

    def _cells(self) -> list[list[Any]]:
        cells: list[list[Any]] = []
        before: Step | None = None
        for step in self.steps:
            rate = self._rate(step)
            earlier = None if before is None else self._rate(before)
            cells.append(
                [
                    step.added,
                    step.peak_bytes,
                    None if before is None else step.peak_bytes - before.peak_bytes,
                    None if step.measured is None else step.measured.process_bytes,
                    step.predicted_bytes,
                    None if rate is None else round(rate, 1),
                    None if rate is None or earlier is None else f"{rate / earlier - 1:+.0%}",
                    "exact" if step.setting.exact else "approximate",
                    "predicted; beyond the limit, so not run" if step.measured is None else "measured",
                ]
            )
            before = step
        return cells

    def _rate(self, step: Step) -> float | None:
        seconds = None if step.measured is None else step.measured.seconds
        return None if seconds is None else self.tokens / seconds


_NOTE = (
    "Peak: live bytes of torch's allocator in one warm update. Process: highest resident set, interpreter and libraries "
    "included. Exact: AdamW's update of the undivided batch, up to rounding."
)


def steps_of(
    subject: Subject, effective_batch: int, micro_batch: int, *, attention: str | None = None, approximate: bool = True
) -> list[tuple[str, Setting]]:
    """(what is added, the setting with it and all before), exact ones first."""
    if not 1 <= micro_batch <= effective_batch:
        raise InputError(message("micro_batch", str(micro_batch), f"1 to effective_batch={effective_batch} rows"))
    changes: list[tuple[str, dict[str, Any]]] = [
        ("undivided batch", {}),
        (f"micro-batches of {micro_batch}", {"micro_batch": micro_batch}),
    ]
    if subject.head != "classification":
        changes.append(("chunked vocabulary loss", {"chunked": True}))
    changes.append(("activation checkpointing", {"checkpointing": True}))
    if attention is not None:
        changes.append((f"attention {attention}", {"attention": attention}))
    if approximate:
        changes.append(("Adafactor", {"optimizer": "adafactor"}))
        changes.append(("bfloat16 autocast", {"dtype": "bfloat16"}))
    setting, found = Setting(micro_batch=effective_batch), []
    for added, change in changes:
        setting = replace(setting, **change)
        found.append((added, setting))
    return found


def measure_waterfall(
    subject: Subject,
    steps: Sequence[tuple[str, Setting]],
    effective_batch: int,
    *,
    name: str = "a model",
    largest_bytes: int = 12 * 2**30,
    say: Callable[[str], None] = lambda line: None,
) -> Waterfall:
    """Runs every step whose predicted peak is at most ``largest_bytes``, one after another; the others are predicted only."""
    found = []
    for added, setting in steps:
        cost = predict(
            subject.step(setting),
            effective_batch=effective_batch,
            micro_batch=setting.micro_batch,
            checkpointing=setting.checkpointing,
        )
        fits = cost.peak_bytes <= largest_bytes
        say(f"{added}: {'measuring' if fits else 'predicted beyond the limit, not run'}")
        measured = measure_alone(subject, setting, effective_batch) if fits else None
        found.append(Step(added=added, setting=setting, predicted_bytes=cost.peak_bytes, measured=measured))
    return Waterfall(name=name, subject=subject, effective_batch=effective_batch, steps=tuple(found))


def bench_memory(
    model: str,
    *,
    effective_batch: int = 16,
    micro_batch: int = 2,
    length: int | None = None,
    data: str | Path | None = None,
    attention: str | None = None,
    approximate: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Waterfall:
    """The waterfall of a preset, a folder or a hub name (``run.any_model.open_subject``). Cost: some seconds a row and more."""
    subject, _ = open_subject(model, length=length, data=data)
    steps = steps_of(subject, effective_batch, micro_batch, attention=attention, approximate=approximate)
    return measure_waterfall(subject, steps, effective_batch, name=model, say=say)
