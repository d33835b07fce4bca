"""What a run is given and what it has prepared: ``Materials``, ``Course``, ``Sources``, ``Prepared``. Values only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from jieyue.data.batch import collate
from jieyue.data.findings import Findings
from jieyue.errors import InputError
from jieyue.hf.optimizers import optimizer_named
from jieyue.planning.setting import dtype_named
from jieyue.training.objective import IGNORED, Objective

from .courses import Stage
from .models import ModelSource

if TYPE_CHECKING:
    from .tasks import Task

__all__ = ["Course", "Materials", "Prepared", "Sources"]


@dataclass(frozen=True, kw_only=True)
class Course:
    """How to train; every default is a real value, None means "decide for me" and the report says what was decided.

    At most one of ``steps``, ``epochs`` and ``seconds`` (none: two epochs). ``learning_rate``: None = 1e-3 for a preset,
    3e-5 for a checkpoint, and a hundred times that for momentum. ``curriculum``: as ``data.curriculum.Curriculum`` reads it,
    such as "1:0.22,2:0.42"; None = the preset's own, "none" = whole passages from the beginning; reading alone has one.
    ``start``: how a preset's weights begin, None = its own way. ``optimizer``: of ``OPTIMIZERS``; ``dtype``: of ``DTYPES``,
    bfloat16 is autocast and an approximation. ``remedies``: functions ``Objective -> Objective``, the first one innermost.
    """

    effective_batch: int = 32
    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    learning_rate: float | None = None
    warmup_steps: int | None = None
    seed: int = 0
    start: str | None = None
    curriculum: str | None = None
    checkpointing: bool | None = None
    optimizer: str = "adamw"
    dtype: str = "float32"
    save_steps: int = 200
    remedies: tuple[Callable[[Objective], Objective], ...] = ()

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "epochs", "seconds") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)}: found {len(given)} lengths of training, expected one of them")
        for name in ("effective_batch", "steps", "epochs", "seconds", "learning_rate", "save_steps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name}={value}: expected more than 0")
        optimizer_named(self.optimizer)
        dtype_named(self.dtype)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; remedies by their text."""
        return asdict(self) | {"remedies": [str(remedy) for remedy in self.remedies]}

    def remedied(self, objective: Objective) -> Objective:
        """The objective that is trained: the recipe's own, inside every remedy."""
        for remedy in self.remedies:
            objective = remedy(objective)
        return objective


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What to train, and on what. ``model``: a preset, a folder or a hub name; ``data`` and ``held_out``: files, () = shipped.

    ``settings``: the recipe's own (``recipes/*.py``), None = its defaults. ``vocabulary``: a ``vocab.txt`` for a preset,
    None = learned from the data. ``limit``: at most so many training examples. ``new_head``: a checkpoint may lack the
    recipe's head. ``attention``: a pattern such as "local(64)+atrous(16)" in place of full self-attention. ``unshare``: so many
    blocks for an ALBERT's layers, 0 = one for each layer, None = as it is; ``unshare_after``: only after so many updates.
    """

    model: str = "tiny"
    data: Sequence[str | Path] = ()
    held_out: Sequence[str | Path] = ()
    settings: Any = None
    vocabulary: Path | None = None
    limit: int | None = None
    skip_bad: bool = False
    new_head: bool = False
    attention: str | None = None
    unshare: int | None = None
    unshare_after: int = 0

    def __post_init__(self) -> None:
        if self.unshare_after < 0 or (self.unshare is not None and self.unshare < 0):
            raise InputError(f"unshare={self.unshare}, unshare_after={self.unshare_after}: expected 0 or more")
        if self.unshare_after and self.unshare is None:
            raise InputError("unshare_after: found no unshare, expected how many blocks (0 = one for each layer)")


@dataclass(frozen=True)
class Sources:
    """Examples to train on, to set aside (curves, calibration) and to judge by, and what reading them found."""

    name: str
    train: Sequence[Any]
    set_aside: Sequence[Any]
    held_out: Sequence[Any]
    findings: Findings
    held_out_findings: Findings | None = None
    shared: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Prepared:
    """All that is known before a weight is allocated: examples, tokenizer, rows, lengths, and the stages of the course."""

    task: Task
    sources: Sources
    model: ModelSource
    settings: Any
    objective: Objective
    rows: Sequence[Mapping[str, Any]]
    lengths: Sequence[int]
    stages: list[Stage]
    counts: Mapping[str, int]
    unshare_after: int = 0

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Rows as padded tensors: the recipe's own way, or ``data.batch.collate``."""
        own = self.task.recipe.collate
        pad_id = self.model.tokenizer.pad_token_id
        return collate(rows, pad_id) if own is None else own(rows, self.model.tokenizer, self.settings)

    def batch(self, numbers: Iterable[int]) -> dict[str, Any]:
        return self.collate([self.rows[number] for number in numbers])

    def longest(self, count: int) -> dict[str, Any]:
        """``count`` rows as long as the longest, what memory must hold; as in training, some row has padding (and so a mask)."""
        batch = self.batch([int(numpy.argmax(self.lengths))] * count)
        if "attention_mask" in batch:
            batch["attention_mask"][1:, -1] = 0
            if batch["labels"].shape == batch["attention_mask"].shape:
                batch["labels"][1:, -1] = IGNORED
        return batch
