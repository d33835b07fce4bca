"""What a ``torch.autograd.Function`` is given as ``ctx``: torch's own class tells only half of its members."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["Saved"]


class Saved(Protocol):
    """Tensors kept between forward and backward. A function that keeps more extends it by those names."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...
    @property
    def needs_input_grad(self) -> tuple[bool, ...]: ...
    def save_for_backward(self, *tensors: Tensor | None) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...
    def set_materialize_grads(self, value: bool) -> None: ...
