"""The loss of held-out rows as one Tally over all pieces and processes: every row counts once, whatever divides them.

    Tally = Σ_ranks Σ_pieces objective(piece)

Loaders that shard an evaluation pad the last round with rows that were seen already, so that ranks hold alike many; here
ranks hold what they hold, and sums and counts are added. No padding, no duplicates, no mean of means.
"""

from __future__ import annotations

import torch
from torch import nn

from jieyue.budget import Plan
from jieyue.errors import BudgetError
from jieyue.tally import Tally

from .cached_gradients import CachedGradients
from .microbatch import MicroBatch, RandomState, device_of, is_out_of_memory, to_device
from .objective import Batch, Objective, num_rows
from .ranks import Ranks

__all__ = ["measure_loss"]


def measure_loss(
    objective: Objective, model: nn.Module, batch: Batch, *, micro_batch: int | Plan | MicroBatch
) -> Tally:
    """The Tally of this batch (under DDP and FSDP: of all ranks' batches) in eval mode, without gradients.

    ``micro_batch`` as in ``accumulate``; an out-of-memory halves it and starts over, on all ranks together. The model's modes
    and the random state are as before afterwards, so that training goes on as if nothing had been measured.
    """
    micro = micro_batch if isinstance(micro_batch, MicroBatch) else MicroBatch(micro_batch)
    ranks, device = Ranks(model), device_of(model)
    start, modes = RandomState(device), [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        while True:
            failure, tally = None, Tally(0.0, 0)
            try:
                tally = _summed(objective, ranks, batch, micro)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or ranks.sharded:
                    raise
                failure = str(error).partition("\n")[0]
            numbers = [float(failure is not None), float(tally.total), float(tally.weight)]
            failed, total, weight = ranks.sum(numbers, device)
            if not failed:
                return Tally(total, weight)
            if not micro.halve(int(ranks.highest([num_rows(batch)], device)[0])):
                raise BudgetError(f"measure_loss: one row a piece runs out of memory ({failure or 'on another rank'})")
            start.restore()
    finally:
        for module, mode in modes:
            module.training = mode
        start.restore()


@torch.no_grad()
def _summed(objective: Objective, ranks: Ranks, batch: Batch, micro: MicroBatch) -> Tally:
    model, device = ranks.module, device_of(ranks.module)
    if isinstance(objective, CachedGradients):
        return objective.measure_pieces(model, micro.pieces(batch), ranks).detach()
    tally = sum((objective(model, to_device(piece, device)).detach() for piece in micro.pieces(batch)), Tally(0.0, 0))
    if ranks.sharded:  # every pass waits for the other ranks: short ones run pieces that count nothing
        own = len(micro.cuts(batch))
        for _ in range(int(ranks.highest([own], device)[0]) - own):
            objective(model, to_device({name: value[:1] for name, value in batch.items()}, device))
    return tally
