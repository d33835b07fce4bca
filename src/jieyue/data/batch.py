"""Which rows each update sees, and rows as tensors.

``effective_batches`` is a pure function of its arguments: the whole course of training is known before it begins, so a
resumed run, a second process and a test all see the same rows. ``collate`` pads; rows come first in every tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from jieyue.errors import InputError

from .tokenizer import Tokenizer

__all__ = ["IGNORED", "collate", "effective_batches", "pad_of", "token_batch"]

POOL = 8  # batches within which rows of like length are brought together
IGNORED = -100  # a label that is not counted, as torch's cross entropy has it


def _stream(rows: numpy.ndarray, seed: int) -> Iterator[numpy.ndarray]:
    """Permutation after permutation of the rows, for ever."""
    generator = numpy.random.default_rng([seed, 0])
    while True:
        yield generator.permutation(rows)


def _alike(batches: list[numpy.ndarray], sizes: numpy.ndarray, seed: int) -> list[numpy.ndarray]:
    """Rows of like length together: every ``POOL`` batches are sorted as one, cut again, and put in random order.

    Each row stays within its pool, and a batch that is shorter than the others stays the last.
    """
    generator, found = numpy.random.default_rng([seed, POOL]), []
    for first in range(0, len(batches), POOL):
        pool = batches[first : first + POOL]
        rows = numpy.concatenate(pool)
        rows = rows[numpy.argsort(-sizes[rows], kind="stable")]
        cut = numpy.split(rows, numpy.cumsum([len(batch) for batch in pool])[:-1])
        whole = len(pool) - (len(pool[-1]) < len(pool[0]))
        found += [cut[number] for number in generator.permutation(whole)] + cut[whole:]
    return found


def effective_batches(
    lengths: int | Sequence[int],
    effective_batch: int,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    seed: int = 0,
) -> list[numpy.ndarray]:
    """The rows of every update, in order: a list of index arrays.

    ``lengths``: tokens of each row, or just the number of rows. With lengths, rows that are drawn near one another and are
    alike in length share a batch (less padding), the longest first, so that a lack of memory shows at once. Exactly one of
    ``steps`` and ``epochs``. Rows are drawn without replacement until all were seen, then anew; batches go on over that
    border, and with ``epochs`` the last one is as short as what remains.

    >>> [sorted(batch.tolist()) for batch in effective_batches(5, 2, epochs=1)]
    [[2, 4], [0, 3], [1]]
    """
    sizes = None if isinstance(lengths, int) else numpy.asarray(lengths)
    num_rows = lengths if isinstance(lengths, int) else len(lengths)
    if num_rows < 1 or effective_batch < 1:
        raise InputError(
            f"effective_batches(): found {num_rows} rows in batches of {effective_batch}, expected at least 1"
        )
    if (steps is None) == (epochs is None):
        raise InputError(f"effective_batches(): found steps={steps} and epochs={epochs}, expected exactly one of them")
    wanted = round(num_rows * epochs) if epochs is not None else int(steps or 0) * effective_batch
    if wanted < 1:
        raise InputError(f"effective_batches(): found steps={steps}, epochs={epochs}, expected more than none")
    stream = _stream(numpy.arange(num_rows), seed)
    order = numpy.concatenate([next(stream) for _ in range(math.ceil(wanted / num_rows))])[:wanted]
    batches = [order[at : at + effective_batch] for at in range(0, wanted, effective_batch)]
    if sizes is not None:
        batches = _alike(batches, sizes, seed)
    return batches


def collate(rows: Sequence[Mapping[str, Any]], pad_id: int, pad_to: int | None = None) -> dict[str, Tensor]:
    """Rows of 1-D integer arrays as tensors [B, longest]; ``attention_mask`` is 1 where ``input_ids`` are real.

    ``input_ids`` are padded with ``pad_id`` to ``pad_to`` or to the longest row, ``labels`` with -100, other arrays
    with 0. Entries that are no arrays (a row's origin) stay behind.

    >>> batch = collate([{"input_ids": numpy.array([7, 8])}, {"input_ids": numpy.array([9])}], pad_id=0)
    >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist()
    ([[7, 8], [9, 0]], [[1, 1], [1, 0]])
    """
    if not rows:
        raise InputError("collate(rows): found no rows, expected at least one")
    padding = {"input_ids": pad_id, "labels": IGNORED}
    batch: dict[str, Tensor] = {}
    for name, first in rows[0].items():
        if not isinstance(first, numpy.ndarray):
            continue
        lengths = numpy.array([len(row[name]) for row in rows])
        width = int(lengths.max())
        if name == "input_ids" and pad_to is not None:
            if pad_to < width:
                raise InputError(f"pad_to={pad_to}: expected at least {width}, the tokens of the longest row")
            width = pad_to
        filled = numpy.full((len(rows), width), padding.get(name, 0), dtype=numpy.int64)
        inside = numpy.arange(width) < lengths[:, None]
        filled[inside] = numpy.concatenate([row[name] for row in rows])
        batch[name] = torch.from_numpy(filled)
        if name == "input_ids":
            batch["attention_mask"] = torch.from_numpy(inside.astype(numpy.int64))
    return batch


def token_batch(rows: int, positions: int) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels`` [rows, positions] without meaning, as a planner traces them.

    All rows but the first end in padding, so that there is a mask.
    """
    ids = torch.zeros(rows, positions, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1:, positions - 1 :] = positions == 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, IGNORED)}


def pad_of(tokenizer: Tokenizer) -> int:
    """The padding token; ``InputError`` where there is none."""
    found = tokenizer.pad_token_id
    if found is None:
        raise InputError(
            f"tokenizer: found no padding token in a {type(tokenizer).__name__}, expected one; set tokenizer.pad_token (such as "
            "its eos_token) and save it with the model"
        )
    return int(found)
