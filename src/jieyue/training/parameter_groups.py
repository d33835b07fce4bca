"""What an optimizer that moves each weight alone goes through: the weights with a dense gradient, each with its group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from jieyue.errors import InputError

__all__ = ["Closure", "Group", "computed_again", "with_gradients"]

Closure: TypeAlias = Callable[[], float]  # what torch's optimizers take: computes the loss and its gradients anew
Group: TypeAlias = dict[str, Any]  # one of any optimizer's ``param_groups``


def computed_again(closure: Closure | None) -> float | None:
    """The loss of a closure, None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def with_gradients(optimizer: Optimizer) -> list[tuple[Tensor, Tensor, Group]]:
    """(weight, gradient, group) of the weights that have one; ``InputError`` for a sparse gradient, before any weight moves."""
    weights = [(own, group) for group in optimizer.param_groups for own in group["params"]]
    found = [(own, own.grad, group) for own, group in weights if own.grad is not None]
    if any(gradient.is_sparse for _, gradient, _ in found):
        raise InputError(type(optimizer).__name__, "a sparse gradient", "dense ones", "use sparse=False")
    return found
