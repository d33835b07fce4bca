"""What a model says of many rows, in the rows' order, and the exact loss of the same passes; every row once on any number of processes.

Predictions are what transformers' Trainer returns: the logits (a tuple where the model has several), padded with -100 at the
right where pieces differ in width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers.trainer_pt_utils import nested_concat

from jieyue.errors import InputError
from jieyue.tally import Tally
from jieyue.training.cached_gradients import CachedGradients
from jieyue.training.microbatch import MicroBatch, RandomState, device_of, to_device
from jieyue.training.objective import Objective
from jieyue.training.ranks import Ranks
from jieyue.training.remedies.targets import bare

from .work import Collate, Row

__all__ = ["Predictions", "Said", "predict_rows"]

Said = numpy.ndarray | tuple[numpy.ndarray, ...]


@dataclass(frozen=True)
class Predictions:
    """``said``: per row, the logits; ``labels``: of the rows, None where they have none; ``tally``: their loss, then too."""

    said: Said
    labels: Said | None
    tally: Tally


@dataclass(frozen=True, kw_only=True)
class _Way:
    objective: Objective
    label_names: Sequence[str]
    ranks: Ranks


def predict_rows(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    objective: Objective,
    collate: Collate,
    at_once: int,
    label_names: Sequence[str],
) -> Predictions:
    """The predictions of all rows, ``at_once`` at a time in each process, in evaluation mode, without gradients.

    Afterwards modes and random state are as before. Refused: FSDP, losses of a whole batch (CachedGradients).
    """
    ranks, device = Ranks(model), device_of(model)
    if ranks.sharded or isinstance(objective, CachedGradients):
        found = "a model under FSDP" if ranks.sharded else "CachedGradients, whose passes give embeddings"
        raise InputError("predict", found, "whole models and losses of each row", "evaluate() has the loss")
    way = _Way(objective=objective, label_names=label_names, ranks=ranks)
    start, modes = RandomState(device), [(module, module.training) for module in model.modules()]
    model.eval()
    said: Any = None
    labels: Any = None
    whole = Tally(0.0, 0)
    try:
        for first in range(0, len(rows), at_once * ranks.world):
            chunk = collate([rows[at] for at in range(first, min(first + at_once * ranks.world, len(rows)))])
            answers, asked, tally = _of_chunk(way, dict(chunk), device)
            said = answers if said is None else nested_concat(said, answers, padding_index=-100)
            if asked:
                labels = asked if labels is None else nested_concat(labels, asked, padding_index=-100)
            whole += tally
    finally:
        for module, mode in modes:
            module.training = mode
        start.restore()
    return Predictions(_plain(said), None if labels is None else _plain(labels), whole)


@torch.no_grad()
def _of_chunk(
    way: _Way, chunk: dict[str, Any], device: torch.device
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tally]:
    """(logits, labels, tally) of a collated batch: this process runs every world-th row, and all get all of them."""
    ranks, count = way.ranks, len(next(iter(chunk.values())))
    share = {name: value[ranks.rank :: ranks.world] for name, value in chunk.items()}
    named = [name for name in way.label_names if isinstance(share.get(name), Tensor)]
    own: list[Tensor] = []
    tally = Tally(0.0, 0)
    if len(next(iter(share.values()))):
        piece = next(MicroBatch(count).pieces(to_device(share, device)))
        with _outputs_of(ranks.module) as found:
            if named:
                tally = way.objective(ranks.module, piece).detach()
            else:
                ranks.module(**piece)
        own = [*_logits(found[-1]), *(piece[name] for name in named)]
    total, weight = ranks.sum([float(tally.total), float(tally.weight)], device)
    gathered = [part.detach().cpu() for part in ranks.gather(own, device)[0]]
    sizes = [-(-(count - rank) // ranks.world) for rank in range(ranks.world)]
    begins = [sum(sizes[:rank]) for rank in range(ranks.world)]
    order = torch.tensor([begins[row % ranks.world] + row // ranks.world for row in range(count)])
    parts = tuple(part[order] for part in gathered)
    cut = len(parts) - len(named)
    return parts[:cut], parts[cut:], Tally(total, weight)


@contextmanager
def _outputs_of(model: nn.Module) -> Iterator[list[Any]]:
    """Inside the ``with``: what every pass through the model returns."""
    found: list[Any] = []
    handle = bare(model).register_forward_hook(lambda module, inputs, out: found.append(out))
    try:
        yield found
    finally:
        handle.remove()


def _logits(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    named = {name: value for name, value in dict(out).items() if isinstance(value, Tensor)}
    found = [value for name, value in named.items() if name.endswith("logits")]
    if not found:
        raise InputError("predict", f"outputs {sorted(named)}", "a tensor, or an output with logits")
    return found


def _plain(parts: Any) -> Said:
    arrays = tuple(
        part.float().numpy() if part.dtype in (torch.bfloat16, torch.float16) else part.numpy() for part in parts
    )
    return arrays[0] if len(arrays) == 1 else arrays
