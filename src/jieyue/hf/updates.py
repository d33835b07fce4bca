"""One update of a Trainer's work: pieces accumulated, for the Trainer to step; or each weight moved in the backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from jieyue.errors import BudgetError
from jieyue.malloc import walled
from jieyue.tally import Tally
from jieyue.training.accumulation import accumulate
from jieyue.training.microbatch import MicroBatch, RandomState, device_of
from jieyue.training.weightwise import PreviousNorm, step_in_backward

from .work import Work

__all__ = ["Updates"]


class Updates:
    """``clip``: the norm of the step before, where weights move in the backward pass and are clipped; None elsewhere."""

    def __init__(self, work: Work, micro: MicroBatch, max_grad_norm: float) -> None:
        self.work, self.micro, self.wall_bytes = work, micro, work.wall_bytes
        self.clip = PreviousNorm(max_grad_norm) if work.in_backward and max_grad_norm else None

    def accumulated(
        self, model: nn.Module, batch: Mapping[str, Tensor], backward: Callable[[Tensor], object], scaled: bool
    ) -> Tally:
        """The batch's gradient in ``.grad``; ``scaled``: a GradScaler decides what is finite.

        Where not even one row has room behind the wall, it is taken down: the prediction was wrong, and the budget is passed.
        """
        if self.wall_bytes is not None:
            planned = self.micro.rows, self.micro.tokens
            start = RandomState(device_of(model))
            try:
                with walled(self.wall_bytes):
                    return self._accumulated(model, batch, backward, scaled)
            except BudgetError as error:
                warnings.warn(f"{error}; from here on the budget may be passed", stacklevel=2)
                self.wall_bytes = None
                self.micro.rows, self.micro.tokens = planned
                start.restore()
        return self._accumulated(model, batch, backward, scaled)

    def _accumulated(
        self, model: nn.Module, batch: Mapping[str, Tensor], backward: Callable[[Tensor], object], scaled: bool
    ) -> Tally:
        work = self.work
        return accumulate(
            work.objective,
            model,
            batch,
            micro_batch=self.micro,
            allow=work.allow,
            non_finite="allow" if scaled else work.non_finite,
            backward=backward,
        )

    def moved(self, model: nn.Module, batch: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> Tally:
        """The whole update; what the Trainer does afterwards finds no gradients, and does nothing."""
        while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = inner  # accelerate's wrapper
        assert optimizer is not None
        return step_in_backward(self.work.objective, model, batch, optimizer, micro_batch=self.micro, clip=self.clip)
