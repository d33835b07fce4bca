"""Inference over many rows, once for all tasks: rows of like length share a batch, no gradient, answers in the rows' order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from jieyue.errors import InputError

__all__ = ["Done", "answers_in_batches", "device_of", "evaluating", "num_tokens"]

Row = TypeVar("Row")
Answer = TypeVar("Answer")
Done = Callable[[int, int], None]
"""``done(so many, of so many)``, called after every batch."""


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """The model in evaluation mode without gradients, and afterwards as it was; gives its device."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield device_of(model)
    finally:
        model.train(was_training)


def num_tokens(row: Mapping[str, Sized]) -> int:
    """The length of an encoded row."""
    return len(row["input_ids"])


def answers_in_batches(
    model: nn.Module,
    rows: Sequence[Row],
    length: Callable[[Row], int],
    collate: Callable[[list[Row]], Mapping[str, Tensor]],
    read: Callable[[list[Row], dict[str, Tensor]], Sequence[Answer]],
    *,
    batch_size: int = 32,
    done: Done | None = None,
) -> list[Answer]:
    """``read(rows, tensors)`` of every batch, back in the order of the rows; the longest rows first, so that memory shows at once.

    ``collate(rows)``: their tensors, which are moved to the model's device. Refuses a batch of less than one row.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: expected at least 1")
    order = sorted(range(len(rows)), key=lambda at: -length(rows[at]))
    found: dict[int, Answer] = {}
    with evaluating(model) as device:
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            batch = [rows[number] for number in chosen]
            tensors = {name: value.to(device) for name, value in collate(batch).items()}
            found.update(zip(chosen, read(batch, tensors), strict=True))
            if done is not None:
                done(at + len(chosen), len(order))
    return [found[number] for number in range(len(rows))]
