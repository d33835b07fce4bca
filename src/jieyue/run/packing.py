"""Whether a run packs its rows (``hf.packed_rows``), and what that saves: padding and seconds, before and after."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy
import torch
from torch import Tensor, nn

from jieyue.errors import InputError
from jieyue.hf.packed_rows import Packing, packing_of
from jieyue.tally import Tally
from jieyue.tasks import Facts
from jieyue.training.accumulation import accumulate
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import Objective
from jieyue.training.remedies.remedy import Remedy

from .batches import num_positions
from .config import TrainingConfig
from .prepare import Prepared

__all__ = ["MUCH_PADDING", "Packed", "packed_run"]

MUCH_PADDING = 0.2  # of all positions: rows are then packed by themselves
_LOOKED_AT = 500  # batches whose padding is counted, spread over the run
_ROUNDS = 3  # of the timing, both ways in turn; the first one warms up


@dataclass(frozen=True)
class Packed:
    """What was decided: ``packing`` None = rows stay as they are; ``facts``: for the report, {} where nothing is to be told."""

    packing: Packing | None = None
    facts: Facts = field(default_factory=dict)

    def objective(self, prepared: Prepared, training: TrainingConfig) -> Objective:
        """What is trained: the run's objective, its rows packed inside every remedy."""
        if self.packing is None:
            return prepared.objective
        return training.remedied(partial(_under, self.packing, prepared.plain))

    def end(self) -> None:
        """The model without what packing put on it."""
        if self.packing is not None:
            self.packing.take_off()


def packed_run(
    prepared: Prepared, training: TrainingConfig, model: nn.Module, batches: Sequence[numpy.ndarray], micro: MicroBatch
) -> Packed:
    """Decides as ``Settings.packing`` says; ``InputError`` where packing was asked for and this model or a remedy cannot.

    Left open, rows are packed where more than ``MUCH_PADDING`` of all positions are padding, and a model that cannot is told.
    Cost where they are packed: six times forward and backward of one batch, for the report.
    """
    asked = prepared.settings.packing()
    padding = _padding(prepared.lengths, batches, micro.rows)
    if asked is False or (asked is None and padding <= MUCH_PADDING):
        return Packed()
    facts: Facts = {"padding_before": padding}
    try:
        _check_remedies(training)
        packing = packing_of(model)
    except InputError as error:
        if asked:
            raise
        return Packed(None, facts | {"packed": False, "packed_how": str(error).removeprefix("packed=True: ")})
    how = "asked for" if asked else f"by itself: more than {MUCH_PADDING:.0%} of all positions were padding"
    found = Packed(packing, facts | {"packed": True, "packed_how": how, "padding_after": 0.0})
    before, after = _seconds(prepared, packing, model, batches, micro.rows)
    found.facts.update(seconds_before=before, seconds_after=after)
    return found


def _under(packing: Packing, objective: Objective, model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    with packing.rows():
        return objective(model, batch)


def _check_remedies(training: TrainingConfig) -> None:
    found = [str(one) for one in training.remedies if isinstance(one, Remedy) and one.by_embedding]
    if found:
        asked = f"{', '.join(found)}, which takes each example's embeddings by themselves"
        raise InputError("packed=True", asked, "other remedies, or packed=False")


def _padding(lengths: Sequence[int], batches: Sequence[numpy.ndarray], rows: int) -> float:
    """The share of the positions in pieces of so many rows that is padding."""
    some = batches[:: max(1, len(batches) // _LOOKED_AT)]
    every = numpy.asarray(lengths)
    return 1 - sum(int(every[batch].sum()) for batch in some) / num_positions(lengths, some, rows)


def _seconds(
    prepared: Prepared, packing: Packing, model: nn.Module, batches: Sequence[numpy.ndarray], rows: int
) -> tuple[float, float]:
    """Forward and backward of one batch, whose padding is as usual: as rows are, and packed; the faster of two rounds each."""
    some = batches[:: max(1, len(batches) // 16)]
    usual = sorted(some, key=lambda batch: _padding(prepared.lengths, [batch], rows))[len(some) // 2]
    batch = prepared.batch(usual)
    seconds: tuple[list[float], list[float]] = ([], [])
    both: tuple[Objective, Objective] = (prepared.plain, partial(_under, packing, prepared.plain))
    was_training = model.training
    with torch.random.fork_rng():
        for _ in range(_ROUNDS):
            for objective, own in zip(both, seconds, strict=True):
                micro = MicroBatch(rows, mask="attention_mask", columns=prepared.task.columns(prepared.settings))
                started = time.perf_counter()
                accumulate(objective, model.train(), batch, micro_batch=micro)
                own.append(time.perf_counter() - started)
                model.zero_grad(set_to_none=True)
    model.train(was_training)
    return min(seconds[0][1:]), min(seconds[1][1:])
