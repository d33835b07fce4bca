"""All that is known before a weight is allocated: examples, tokenizer, rows, lengths, and the stages of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from jieyue.budget import Plan
from jieyue.data.packing import DialogueRows
from jieyue.errors import InputError
from jieyue.planning.setting import AUTO, dtype_named
from jieyue.tasks import Facts, Row, RunConfig, Settings, Sources
from jieyue.tasks.models import ModelSource, check_model
from jieyue.tasks.sources import halved
from jieyue.tasks.table import AnyTask
from jieyue.training.accumulation import under_autocast
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import IGNORED, Objective

from .batches import Stage
from .config import TrainingConfig
from .devices import check_device
from .watched import watched

__all__ = ["MASK", "Prepared", "at_dtype", "prepare"]

MASK = "attention_mask"

TOKENS = "tokens"  # what a task that keeps its tokens leaves of them


@dataclass(frozen=True)
class Prepared:
    """``objective``: with its dtype and remedies; ``plain``: without remedies; ``counts``: what encoding counted; ``adapter``,
    ``base``, ``attention``: as ``RunConfig`` has them."""

    task: AnyTask
    sources: Sources[Any]
    model: ModelSource
    settings: Settings
    objective: Objective
    plain: Objective
    rows: Sequence[Row]
    lengths: Sequence[int]
    stages: list[Stage]
    counts: Mapping[str, int]
    curriculum: str | None = None
    unshare_after: int = 0
    adapter: str | None = None
    base: str | None = None
    attention: str | None = None

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Rows as padded tensors."""
        return self.task.collate(rows, self.model.tokenizer, self.settings)

    def batch(self, numbers: Iterable[int]) -> dict[str, Tensor]:
        """These rows as tensors."""
        return self.collate([self.rows[number] for number in numbers])

    def longest(self, count: int) -> dict[str, Tensor]:
        """``count`` rows as long as the longest, what memory must hold; as in training, some row has padding (and so a mask).

        What has a length of its own (an answer's labels and places) is as wide as the widest of all rows.
        """
        first, rows = int(numpy.argmax(self.lengths)), range(len(self.rows))
        length = len(self.rows[first]["input_ids"])
        own = [name for name, value in self.rows[first].items() if numpy.ndim(value) and len(value) != length]
        widest = [max(rows, key=lambda row: len(self.rows[row][name])) for name in own]
        batch = {name: value[:count] for name, value in self.batch([first] * count + widest).items()}
        if "attention_mask" in batch:
            batch["attention_mask"][1:, -1] = 0
            if batch["labels"].shape == batch["attention_mask"].shape:
                batch["labels"][1:, -1] = IGNORED
        return batch

    def micro_batch(self, plan: Plan) -> MicroBatch:
        """Pieces of this plan's size, trimmed to their longest row."""
        return MicroBatch(plan, mask=MASK, columns=self.task.columns(self.settings))

    def memory(self) -> Facts:
        """What judging must know of the training examples."""
        return self.task.memory(self.sources.train, self.model.tokenizer, self.settings)


def prepare(
    task: AnyTask,
    config: RunConfig,
    training: TrainingConfig,
    *,
    folder: Path | None = None,
    device: str = "cpu",
) -> Prepared:
    """Reads, checks and encodes; no weight is allocated.

    ``folder``: the run's, where a task that keeps its tokens finds them again; ``device``: where the objective's dtype will be.
    """
    check_model(config)
    narrow = _autocast(training, device)
    if config.base is not None and training.dtype not in ("float32", AUTO):
        found = f"dtype={training.dtype} beside it, whose products would be narrowed twice"
        raise InputError(f"base={config.base!r}", found, "dtype=float32")
    wanted = task.settings(config, training.seed)
    sources = task.sources(config, wanted, training.seed)
    if training.chooses:
        sources = halved(sources)
    wanted = task.resolved(wanted, sources.train)
    source = task.open_model(
        config, wanted, lambda: task.texts(sources.train), start=training.start, seed=training.seed
    )
    settings = wanted.fitted(source.positions)
    curriculum = task.curriculum(training.curriculum, is_preset=source.is_preset)
    stages_of_examples = task.stages(sources.train, curriculum, training.seed)
    kept = None if folder is None else folder / TOKENS
    told = [(until, watched(examples, "encoding", config.progress)) for until, examples in stages_of_examples]
    rows, stages, counts = _encoded(task, sources.name, told, source, settings, kept)
    plain = narrow(task.objective(settings))
    return Prepared(
        task,
        sources,
        source,
        settings,
        training.remedied(plain),
        plain,
        rows,
        rows.lengths.tolist() if isinstance(rows, DialogueRows) else [len(row["input_ids"]) for row in rows],
        stages,
        counts,
        curriculum,
        config.unshare_after,
        config.adapter,
        config.base,
        config.attention,
    )


def _encoded(
    task: AnyTask,
    name: str,
    parts: Sequence[tuple[float, Sequence[Any]]],
    source: ModelSource,
    settings: Settings,
    folder: Path | None,
) -> tuple[Sequence[Row], list[Stage], Mapping[str, int]]:
    """Rows of all stages, one after the other; the last stage's counts stay: all examples, uncut."""
    rows: Sequence[Row] = []
    stages: list[Stage] = []
    counts: Mapping[str, int] = {}
    for until, examples in parts:
        own, counts = task.encode(examples, source.tokenizer, settings, folder=folder)
        if not len(own):
            raise InputError(f"{name}: encoding gave no training row; counted {dict(counts)}")
        stages.append(Stage(until, len(rows), len(rows) + len(own)))
        rows = [*rows, *own] if len(rows) else own
    return rows, stages, counts


def at_dtype(prepared: Prepared, training: TrainingConfig, device: str) -> Prepared:
    """The same run with its matrix products in ``training``'s dtype."""
    plain = _autocast(training, device)(prepared.task.objective(prepared.settings))
    return replace(prepared, objective=training.remedied(plain), plain=plain)


def _autocast(training: TrainingConfig, device: str) -> Callable[[Objective], Objective]:
    """What puts the matrix products of an objective into the dtype that was asked for; remedies come around that."""
    check_device(device)
    dtype, place = dtype_named("float32" if training.dtype == AUTO else training.dtype), torch.device(device)
    if dtype is None:
        return lambda objective: objective
    if place.type == "cuda" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise InputError(f"dtype={training.dtype}", "a GPU without it", "a newer one", "leave it at float32")
    return lambda objective: under_autocast(objective, place, dtype)
