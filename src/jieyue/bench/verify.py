"""``verify``: on a model of your own, is a change exact, and what does it cost where it is not?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from jieyue.errors import InputError
from jieyue.record import RECORD, read_record
from jieyue.run.config import TrainingConfig
from jieyue.run.prepare import prepare
from jieyue.tasks import RunConfig
from jieyue.tasks.table import task

from .equality import SETTINGS, UpdateCheck, verify_update

__all__ = ["verify"]

SUBJECTS = ("update",)


def verify(
    subject: str,
    model: str | Path,
    *,
    recipe: str | None = None,
    data: tuple[str | Path, ...] = (),
    rows: int = 16,
    micro_batch: int = 4,
    settings: tuple[str, ...] = tuple(SETTINGS),
    dtype: str = "float32",
) -> UpdateCheck:
    """``verify("update", folder)``: the update of ``rows`` rows undivided and in each setting, compared (``bench.equality``).

    ``model``: a folder, a hub name or a preset. ``recipe``: whose objective and data; None = the one that trained the
    folder, else "read". ``data``: the recipe's files, () = the corpus that ships. The rows differ in length, and so in
    labels, where the data's do: that is where a mean of means goes wrong. ``micro_batch``: rows of a piece; ``settings``: names
    from ``SETTINGS``; ``dtype``: float32 or float64. ``subject`` and other values that are not known: ``InputError``.
    """
    if subject not in SUBJECTS:
        raise InputError("verify", repr(subject), f"one of {', '.join(SUBJECTS)}")
    if rows < 2:
        raise InputError(f"rows={rows}", "nothing to divide", "at least 2")
    if dtype not in ("float32", "float64"):
        raise InputError("dtype", repr(dtype), "float32 or float64")
    settings_of = None
    if recipe is None:
        record = read_record(model) if (Path(model) / RECORD).is_file() else {}
        recipe = str(record.get("recipe", "read"))
        if record:  # a reader's kind, a writer's
            settings_of = task(recipe).settings_class.from_dict(record["settings"])
    config = RunConfig(model=str(model), data=data, settings=settings_of, limit=max(200, rows), new_head=True)
    prepared = prepare(task(recipe), config, TrainingConfig(curriculum="none"))
    chosen = _spread(prepared.lengths, rows)
    return verify_update(
        prepared.model.build(),
        prepared.objective,
        prepared.batch(chosen),
        micro_batch=micro_batch,
        settings=settings,
        dtype=getattr(torch, dtype),
        name=str(model),
    )


def _spread(lengths: Sequence[int], count: int) -> list[int]:
    """``count`` rows from the shortest to the longest, the shortest first: ragged pieces."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    step = max(1, (len(order) - 1) // max(1, count - 1))
    return order[::step][:count]
