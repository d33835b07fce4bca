"""What is trained: a function ``(model, batch) -> Tally`` whose total is a sum over labels, never a mean.

Law: the total of a batch is the sum of the totals of its rows, and so is the weight. Then the gradient of any set of
pieces, divided once by the summed weight, is the gradient of the undivided batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor, nn

from jieyue.errors import InputError
from jieyue.tally import Tally

__all__ = ["IGNORED", "Batch", "Objective", "num_rows", "token_loss"]

Batch: TypeAlias = Mapping[str, Tensor]  # rows first; a list with one entry per row passes through as it is
Objective: TypeAlias = Callable[[nn.Module, Batch], Tally]
IGNORED = -100


def token_loss(logits: Tensor, labels: Tensor, ignored: int = IGNORED) -> Tally:
    """Cross entropy summed over the labels that count: ``total = Σ −log softmax(logits)[label]``, ``weight`` = their number.

    ``logits`` [..., V], summed in float32 where they are narrower; ``labels`` [...] of integers, ``ignored`` where nothing is asked.

    >>> import torch
    >>> tally = token_loss(torch.zeros(2, 3, 4), torch.tensor([[1, 2, -100], [0, -100, -100]]))
    >>> round(float(tally.mean()), 4), int(tally.weight)
    (1.3863, 3)
    """
    if logits.shape[:-1] != labels.shape:
        raise InputError("token_loss", f"labels {[*labels.shape]}", f"the shape {[*logits.shape[:-1]]}")
    flat, logits = labels.flatten(), logits.float() if logits.dtype.itemsize < 4 else logits
    total = nn.functional.cross_entropy(logits.flatten(0, -2), flat, ignore_index=ignored, reduction="sum")
    return Tally(total, (flat != ignored).sum())


def num_rows(batch: Mapping[str, Tensor | Sequence[str | int]]) -> int:
    """Rows of a batch, the first dimension that all its tensors (and lists) share; ``InputError`` where they differ."""
    if not isinstance(batch, Mapping):
        raise InputError("batch", type(batch).__name__, "tensors by name, each with one entry per row")
    counts = {}
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.ndim > 0:
            counts[name] = value.shape[0]
        elif isinstance(value, list | tuple):
            counts[name] = len(value)
        else:
            found = "a scalar" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"batch[{name!r}]", found, "a tensor or a list with one entry per row")
    if len(set(counts.values())) != 1:
        raise InputError("batch", f"rows {counts or 'of nothing'}", "tensors with the same number of rows")
    return next(iter(counts.values()))
