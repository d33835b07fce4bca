"""Adam-mini: Adam with one second moment a block of weights in place of one a weight.

    m ← β₁·m + (1 − β₁)·g                    as in Adam
    v_b ← β₂·v_b + (1 − β₂)·mean(g_b²)       one number a block b
    θ_b ← θ_b·(1 − α·λ) − α·m̂_b / (√v̂_b + ε)       m̂, v̂: divided by 1 − βᵗ; λ on matrices alone

Blocks: the rows of one head in query and key matrices; one output row elsewhere (a token, in embeddings and output heads); a
whole vector (biases, norms). Query, key and value in one matrix are taken row by row; of experts in one tensor each is a block.
State: one tensor a weight, and a number a block.
Source: Zhang et al. 2024, arXiv 2406.16793 (algorithms 1 and 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from jieyue.errors import InputError

from .parameter_groups import Closure, Group, computed_again, with_gradients

__all__ = ["AdamMini"]


class AdamMini(Optimizer):
    """AdamW's arguments; groups may say what a block of their matrices is.

    ``rows``: successive output rows a block, a divisor of the number of rows (1; a head's width for queries and keys);
    ``columns``: True where the outputs are the second dimension (transformers' ``Conv1D``). ``InputError`` for numbers out of
    range, rows that do not divide, and a sparse gradient. One temporary of a number a block.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, object]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        if not (lr >= 0 and eps >= 0 and weight_decay >= 0 and all(0 <= beta < 1 for beta in betas)):
            found = f"lr={lr}, betas={betas}, eps={eps}, weight_decay={weight_decay}"
            raise InputError("AdamMini", found, "numbers of at least 0, betas below 1")
        named = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rows": 1, "columns": False}
        super().__init__(params, named)
        for group in self.param_groups:
            for parameter in group["params"]:
                outputs = parameter.shape[1 if group["columns"] else 0] if parameter.ndim >= 2 else group["rows"]
                if group["rows"] < 1 or outputs % group["rows"]:
                    found = f"blocks of {group['rows']} rows for a matrix of {outputs}"
                    raise InputError("AdamMini", found, "a number of rows that divides them")

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """One update with the gradients that there are."""
        loss = computed_again(closure)
        for parameter, gradient, group in with_gradients(self):
            self._move(parameter, gradient, group)
        return loss

    def _move(self, parameter: Tensor, whole: Tensor, group: Group) -> None:
        """A weight by its gradient ``whole``, which has its shape."""
        state = self.state[parameter]
        first, second = group["betas"]
        weights, gradient = (_blocks(one, group["rows"], group["columns"]) for one in (parameter, whole))
        inside = tuple(range(1, gradient.ndim))
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = gradient.new_zeros([len(gradient), *[1] * len(inside)])
        state["step"] += 1
        moment, square = state["exp_avg"], state["exp_avg_sq"]
        moment.lerp_(whole, 1 - first)
        norm = torch.linalg.vector_norm(gradient, dim=inside, keepdim=True)  # no copy of the gradient's size is made
        square.mul_(second).addcmul_(norm, norm, value=(1 - second) * len(gradient) / gradient.numel())
        rate, decay = float(group["lr"]), float(group["weight_decay"])
        if parameter.ndim >= 2 and decay:
            parameter.mul_(1 - rate * decay)
        divisor = square.sqrt().div_(math.sqrt(1 - second ** state["step"])).add_(group["eps"])
        moments = _blocks(moment, group["rows"], group["columns"])
        weights.addcdiv_(moments, divisor, value=-rate / (1 - first ** state["step"]))


def _blocks(tensor: Tensor, rows: int, columns: bool) -> Tensor:
    """A view of [blocks, ...]: a vector is one block."""
    if tensor.ndim < 2:
        return tensor.reshape(1, -1)
    return (tensor.transpose(0, 1) if columns else tensor).unflatten(0, (-1, rows))
