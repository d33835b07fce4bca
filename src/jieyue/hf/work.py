"""What a training is to do: the rows of every update decided beforehand, and what identifies them on resume.

A user of transformers' Trainer has a dataset, a collator and arguments; ``work_of`` makes the same decisions from these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from jieyue.budget import Plan
from jieyue.errors import InputError
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import Objective

__all__ = ["Collate", "Row", "Share", "Work", "check_rows", "digest_of_rows", "work_of"]

Row = Any  # an encoded example: what it is, only ``collate`` knows
Collate = Callable[[list[Row]], Mapping[str, Tensor]]
_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done: ``batches[s]`` lists the rows of step s's effective batch, over all epochs, decided beforehand.

    ``rows``: encoded examples; ``collate``: a list of them -> tensors with one entry per row, without drawing random
    numbers (draw in the objective, whose random state is restored on resume). ``micro_batch``: rows, a Plan, or a
    ``MicroBatch`` that also trims padding or bounds tokens. ``non_finite`` and ``allow``: as in ``accumulate``.
    ``in_backward``: each weight moves in the backward pass (``weightwise``), for batches that are one piece each; clipping is
    then by the norm of the step before, and a gradient that is not finite stops the run. ``wall_bytes``: what the resident set does
    not pass while pieces run, under tcmalloc (``jieyue.malloc.walled``).
    """

    objective: Objective
    rows: Sequence[Row]
    collate: Collate
    batches: Sequence[Sequence[int]]
    micro_batch: int | Plan | MicroBatch
    non_finite: str = "stop"
    allow: Sequence[str] = ()
    in_backward: bool = False
    wall_bytes: int | None = None

    def digest(self) -> str:
        """Identifies the batches, so that a run resumes on the data it was started with."""
        text = json.dumps([len(self.rows), [list(map(int, batch)) for batch in self.batches]])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Share:
    """Collates the whole effective batch, so that all processes pad alike, and keeps this process's rows."""

    def __init__(self, collate: Collate, rank: int, world: int) -> None:
        self.collate, self.rank, self.world = collate, rank, world

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        batch = self.collate(rows)
        return {name: value[self.rank :: self.world] for name, value in batch.items()}


def digest_of_rows(work: Work, collate: Collate | None = None) -> str:
    """Identifies what the rows hold, as the model will see it: every row that is used is collated once (some 5 µs each).

    Rows that know their digest (tokens kept on disk) are taken at their word. A number beyond the rows is a later visit.
    """
    known = getattr(work.rows, "digest", None)
    if isinstance(known, str):
        return known[:16]
    found = hashlib.sha256()
    used = {int(row) % len(work.rows) for batch in work.batches for row in batch}
    rows = (row for number, row in enumerate(islice(iter(work.rows), len(work.rows))) if number in used)
    while some := list(islice(rows, _AT_ONCE)):
        batch = (collate or work.collate)(some)
        for name in sorted(batch):
            value = batch[name]
            if isinstance(value, Tensor):
                flat = value.detach().cpu().contiguous().reshape(-1)
                found.update(f"{name} {value.dtype} {[*value.shape]}".encode())
                found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
            else:
                found.update(f"{name} {value!r}".encode())
    return found.hexdigest()[:16]


def check_rows(name: str, rows: object) -> None:
    """Refuses what cannot be asked for its n-th row (a generator, an IterableDataset)."""
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        raise InputError(name, type(rows).__name__, "rows with a length and an index", "a list of them")


def work_of(
    dataset: Sequence[Row],
    collate: Collate,
    args: TrainingArguments,
    objective: Objective,
    micro_batch: int | Plan | MicroBatch | None = None,
    non_finite: str = "stop",
) -> Work:
    """The Trainer's own decisions from its arguments: effective batch = per-device batch x accumulation steps x processes.

    ``micro_batch`` None: the per-device batch size. Rows in random order, anew in each epoch (``data_seed``, else ``seed``), or
    in theirs with ``train_sampling_strategy="sequential"``; a short last batch stays, unless ``dataloader_drop_last``.
    """
    check_rows("train_dataset", dataset)
    sampling = str(getattr(args, "train_sampling_strategy", "random"))
    if sampling.rpartition(".")[2].lower() not in ("random", "sequential"):
        raise InputError("train_sampling_strategy", sampling, "'random' or 'sequential'", "or work=Work(...)")
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    epoch = len(dataset) // size if args.dataloader_drop_last else -(-len(dataset) // size)
    if not epoch:
        raise InputError("train_dataset", f"{len(dataset)} rows", f"at least one batch of {size}")
    steps = args.max_steps if args.max_steps > 0 else -(-round(args.num_train_epochs * epoch * 10**6) // 10**6)
    generator = torch.Generator().manual_seed(args.seed if args.data_seed is None else args.data_seed)
    batches: list[list[int]] = []
    while len(batches) < steps:
        shuffled = sampling.rpartition(".")[2].lower() == "random"
        order = torch.randperm(len(dataset), generator=generator).tolist() if shuffled else list(range(len(dataset)))
        batches += [order[number * size : (number + 1) * size] for number in range(epoch)]
    return Work(
        objective=objective,
        rows=dataset,
        collate=collate,
        batches=batches[:steps],
        micro_batch=args.per_device_train_batch_size if micro_batch is None else micro_batch,
        non_finite=non_finite,
    )
