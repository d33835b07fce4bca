"""Tiger: the sign of the momentum, the step as large as the weights are. One state a weight, and accumulation inside it.

    m ← β·m + (1 − β)·g
    θ ← θ − α·RMS(θ)·(sign(m) + λ·θ)      matrices
    θ ← θ − ½·α·sign(m)                   vectors (biases, norms)

The update is a function of the momentum alone, and the momentum is linear in the gradient; so pieces may be added to it as they
appear, and no gradient needs to be kept (``in_backward``). Source: Su 2023, kexue.fm/archives/9512 (accumulation: 8634); the
shrinking that it does at a NaN is left out, a gradient that is not finite is refused by what calls ``step``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from jieyue.errors import InputError

from .parameter_groups import Closure, computed_again, with_gradients

__all__ = ["Tiger"]

MOMENTUM = "momentum_buffer"


class Tiger(Optimizer):
    """``lr``: α, the step relative to a matrix's own root mean square (.001 to .002 for pre-training).

    ``weight_decay``: λ, of matrices. ``beta``: .965 for text, .945 for images, as the article says. State: one tensor a weight.
    Refuses with ``InputError``: a sparse gradient, a matrix of zeros (its steps would be 0 forever; so LoRA's second factor, as
    it begins).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, object]],
        lr: float = 1e-3,
        beta: float = 0.965,
        weight_decay: float = 0.01,
    ) -> None:
        if not lr >= 0 or not 0 <= beta < 1 or not weight_decay >= 0:
            found = f"lr={lr}, beta={beta}, weight_decay={weight_decay}"
            raise InputError("Tiger", found, "lr and weight_decay of at least 0, beta from 0 to below 1")
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """One update with the gradients that there are."""
        loss = computed_again(closure)
        moved = with_gradients(self)
        for parameter, _, group in moved:  # of all first: what is refused here is refused before a weight moves
            self.decay(parameter, group["beta"])
        for parameter, gradient, group in moved:
            self.state[parameter][MOMENTUM].add_(gradient, alpha=1 - group["beta"])
            self.move(parameter, group["lr"], group["weight_decay"])
        return loss

    def decay(self, parameter: Tensor, beta: float) -> None:
        """m ← β·m, at the beginning of an update; a weight that is seen for the first time gets its m."""
        state = self.state[parameter]
        if MOMENTUM not in state:
            if parameter.ndim >= 2 and not parameter.is_meta and not bool(parameter.any()):
                found = f"a matrix of zeros, {[*parameter.shape]}"
                raise InputError("Tiger", found, "matrices with a scale", "initialise it, or use another optimizer")
            state[MOMENTUM] = torch.zeros_like(parameter)
        state[MOMENTUM].mul_(beta)

    def move(self, parameter: Tensor, rate: float, weight_decay: float) -> None:
        """θ ← θ − η·(sign(m) + λ·θ), at the end of an update."""
        direction = self.state[parameter][MOMENTUM].sign()
        if parameter.ndim < 2:
            parameter.add_(direction, alpha=-0.5 * float(rate))
            return
        direction.add_(parameter, alpha=weight_decay)
        parameter.sub_(direction.mul_(parameter.square().mean().sqrt_().mul_(float(rate))))
