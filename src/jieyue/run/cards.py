"""The card in a model's folder and on the hub: base model, kind of task, licence where it is known, no text from the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jieyue.hf.hub import base_entries
from jieyue.report import Report, model_card, write_whole
from jieyue.report.card import Entry
from jieyue.report.quotations import without_quotations
from jieyue.tasks.table import AnyTask

__all__ = ["card_of", "write_card"]


def card_of(
    report: Report, job: AnyTask, name: str, command: str, entries: Mapping[str, Entry], *, quote: bool = False
) -> str:
    """The card of a model that is loaded under ``name``; ``entries``: of its header, beside those of the task."""
    return model_card(
        report if quote else without_quotations(report),
        command=command,
        usage=job.card.usage(name),
        limits=job.card.limits,
        header={**entries, "pipeline_tag": job.card.tags[0], "tags": ["jieyue", *job.card.tags]},
    )


def write_card(report: Report, job: AnyTask, folder: Path, command: str, model: str) -> None:
    """README.md in the folder of a run; ``model``: what training began with, whose licence is the model's where it is known here."""
    write_whole(folder / "README.md", card_of(report, job, folder.name, command, base_entries(model)))
