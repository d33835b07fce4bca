"""One update of a Trainer's work: pieces accumulated, for the Trainer to step; or each weight moved in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from jieyue.tally import Tally
from jieyue.training.accumulation import accumulate
from jieyue.training.microbatch import MicroBatch
from jieyue.training.weightwise import PreviousNorm, step_in_backward

from .work import Work

__all__ = ["Updates"]


class Updates:
    """``clip``: the norm of the step before, where weights move in the backward pass and are clipped; None elsewhere."""

    def __init__(self, work: Work, micro: MicroBatch, max_grad_norm: float) -> None:
        self.work, self.micro = work, micro
        self.clip = PreviousNorm(max_grad_norm) if work.in_backward and max_grad_norm else None

    def accumulated(
        self, model: nn.Module, batch: Mapping[str, Tensor], backward: Callable[[Tensor], object], scaled: bool
    ) -> Tally:
        """The batch's gradient in ``.grad``; ``scaled``: a GradScaler decides what is finite."""
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
