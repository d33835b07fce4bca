"""What a model's rows cost it: the loss at every position, or for an encoder how far its states are from the full model's.

    language models     cost of a token      −log p                                   price against the full model   exp(Δ mean) − 1
    encoders            cost of a row        1 − cos(mean state, the full model's)    price                          the mean cost

A token of an encoder has a cost as well, 1 − cos of its states, which is told by position and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor, nn

from jieyue.data.batch import IGNORED
from jieyue.hf.position_losses import states_of, token_losses
from jieyue.hf.remembered_layers import RememberedLayers
from jieyue.json_values import Facts
from jieyue.metrics.intervals import bootstrap
from jieyue.report import Estimate
from jieyue.tasks.batches import evaluating

__all__ = ["Costs", "costs_of", "encoded", "price"]

Batches = Sequence[dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Costs:
    """``rows`` and ``weights`` [R]: the summed cost of each row and what it is a sum over; ``by_position`` and ``counts`` [N]:
    the same of each position over all rows; ``is_loss``: of a language model, in nats a token."""

    rows: numpy.ndarray
    weights: numpy.ndarray
    by_position: numpy.ndarray
    counts: numpy.ndarray
    is_loss: bool

    @property
    def mean(self) -> float:
        return float(self.rows.sum() / self.weights.sum())

    def to_dict(self) -> Facts:
        """JSON values, from which ``from_dict`` makes the same costs to the bit."""
        arrays = (self.rows, self.weights, self.by_position, self.counts)
        rows, weights, by_position, counts = (one.tolist() for one in arrays)
        return {
            "rows": rows,
            "weights": weights,
            "by_position": by_position,
            "counts": counts,
            "is_loss": self.is_loss,
        }

    @classmethod
    def from_dict(cls, values: Facts) -> Costs:
        """What ``to_dict`` gave."""
        return cls(
            numpy.array(values["rows"]),
            numpy.array(values["weights"]),
            numpy.array(values["by_position"]),
            numpy.array(values["counts"]),
            bool(values["is_loss"]),
        )

    def between(self, first: int, stop: int) -> float | None:
        """The mean cost of the tokens at these positions; None where none counts."""
        count = self.counts[first:stop].sum()
        return float(self.by_position[first:stop].sum() / count) if count else None


def costs_of(
    model: nn.Module,
    batches: Batches,
    *,
    reference: Sequence[Tensor] | None = None,
    memory: RememberedLayers | None = None,
) -> Costs:
    """The costs of these batches, whose rows are all of one length; ``reference``: an encoder's states under full attention
    (``encoded``), one of each batch; ``memory``: is told which batch is read. Cost: a forward pass a batch."""
    losses, counted, rows, weights = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    with evaluating(model) as device:
        for place, batch in enumerate(batches):
            if memory is not None:
                memory.batch = place
            own = {name: value.to(device) for name, value in batch.items()}
            labels = own.pop("labels")
            if reference is None:
                each, counts = token_losses(model, own, labels).double(), labels != IGNORED
                rows.append(each.sum(1))
                weights.append(counts.sum(1))
            else:
                states, known = states_of(model, own).double(), reference[place].double()
                each = 1 - nn.functional.cosine_similarity(states, known, dim=-1)
                counts = torch.ones_like(each, dtype=torch.bool)
                rows.append(1 - nn.functional.cosine_similarity(states.mean(1), known.mean(1), dim=-1))
                weights.append(torch.ones(len(each)))
            losses.append(each.sum(0).cpu())
            counted.append(counts.sum(0).cpu())
    return Costs(
        torch.cat(rows).cpu().numpy(),
        torch.cat(weights).cpu().double().numpy(),
        torch.stack(losses).sum(0).numpy(),
        torch.stack(counted).sum(0).numpy(),
        reference is None,
    )


def encoded(model: nn.Module, batches: Batches) -> list[Tensor]:
    """The states [B, N, H] of an encoder for each batch: what it is held against later."""
    with evaluating(model) as device:
        return [
            states_of(model, {name: value.to(device) for name, value in batch.items() if name != "labels"})
            for batch in batches
        ]


def price(found: Costs, base: Costs) -> Estimate:
    """How much worse than ``base``, which has the same rows: the share by which perplexity is higher, or an encoder's mean cost.

    The interval is a bootstrap over rows; both ends are the value where there is one row.
    """
    if len(found.rows) < 2:
        value = math.exp(found.mean - base.mean) - 1 if found.is_loss else found.mean
        return Estimate(value, value, value, "one row")
    if not found.is_loss:
        return bootstrap(found.rows.tolist())
    return bootstrap(
        (found.rows - base.rows).tolist(),
        found.weights.tolist(),
        statistic=lambda more, count: math.exp(more.sum() / count.sum()) - 1,
    )
