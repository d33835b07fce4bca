"""The waterfall: one saving after another on the same model and batch, each measured in a process of its own.

    undivided → micro-batches → chunked vocabulary loss → checkpointing → (pattern) → (Adafactor) → (bfloat16)

Each row keeps what the rows above it do. Peak: highest sum of live bytes of torch's allocator in one warm update; process:
highest resident set (VmHWM), glibc's mmap threshold at 64 KiB; tokens/s: of the fastest of some updates after the first.
Approximate rows come last and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.machine import describe
from jieyue.planning.measurement import measure_alone
from jieyue.planning.prediction import predict
from jieyue.planning.setting import Setting
from jieyue.planning.subject import Subject
from jieyue.report import Report
from jieyue.run.any_model import open_subject
from jieyue.run.waterfall import Step, Waterfall

__all__ = ["bench_memory", "measure_waterfall", "steps_of"]


_NOTE = (
    "Peak: live bytes of torch's allocator in one warm update. Process: highest resident set, interpreter and libraries "
    "included. Exact: AdamW's update of the undivided batch, up to rounding."
)


def steps_of(
    subject: Subject, effective_batch: int, micro_batch: int, *, attention: str | None = None, approximate: bool = True
) -> list[tuple[str, Setting]]:
    """(what is added, the setting with it and all before), exact ones first."""
    if not 1 <= micro_batch <= effective_batch:
        raise InputError("micro_batch", str(micro_batch), f"1 to effective_batch={effective_batch} rows")
    changes: list[tuple[str, Facts]] = [
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
    largest_bytes: int = 12 * 2**30,
    timed: bool = True,
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
        step = Step(added=added, update=setting.update, predicted_bytes=cost.peak_bytes)
        if cost.peak_bytes > largest_bytes:
            say(f"{added}: predicted beyond the limit, not run")
            found.append(replace(step, how="beyond the limit, not run"))
            continue
        say(f"{added}: measuring")
        own = measure_alone(subject, setting, effective_batch, timed=timed)
        found.append(replace(step, measured_bytes=own.peak_bytes, process_bytes=own.process_bytes, seconds=own.seconds))
    return Waterfall(steps=tuple(found), effective_batch=effective_batch, positions=subject.positions)


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
) -> Report:
    """The waterfall of a preset, a folder or a hub name (``run.any_model.open_subject``). Cost: some seconds a row and more."""
    subject, _ = open_subject(model, length=length, data=data)
    steps = steps_of(subject, effective_batch, micro_batch, attention=attention, approximate=approximate)
    report = Report(f"Memory, saving by saving · {model}")
    found = measure_waterfall(subject, steps, effective_batch, say=say)
    found.tell(report, what=f"{subject.head}, fresh weights; ", note=_NOTE)
    machine = report.section("Machine")
    for name, value in describe().items():
        machine.fact(name, value, "bytes" if name.endswith("_bytes") else "")
    return report
