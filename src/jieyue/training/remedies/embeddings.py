"""The output of a model's word embedding, seen and changed on its way to the layers: [B, T, H], once or twice a pass.

Every embedding that holds the input weights is met (BART has one for the encoder and one for the decoder); the output head,
tied or not, is left alone, so a change reaches what is read and not what is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from jieyue.errors import InputError

from .targets import bare

__all__ = ["embeddings_through", "input_embedding"]


@contextmanager
def embeddings_through(model: nn.Module, change: Callable[[Tensor, int, nn.Module], Tensor]) -> Iterator[None]:
    """Inside the ``with``, ``change(out, place, module)`` replaces each output; ``place`` counts within a pass of the model."""
    whole, place = bare(model), 0

    def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal place
        place = 0

    def replace(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        nonlocal place
        place += 1
        return change(out, place - 1, module)

    handles = [whole.register_forward_pre_hook(begin)]
    handles += [module.register_forward_hook(replace) for module in _embeddings(whole)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_embedding(model: nn.Module) -> nn.Module:
    """What turns tokens into vectors; ``InputError`` for a model that does not tell."""
    asked = getattr(model, "get_input_embeddings", None)
    first = None if asked is None else asked()
    if not isinstance(first, nn.Module):
        raise InputError(f"{type(model).__name__}", "no input embedding", "a model with get_input_embeddings()")
    return first


def _embeddings(model: nn.Module) -> list[nn.Module]:
    first = input_embedding(model)
    weight = getattr(first, "weight", None)
    same: list[nn.Module] = [
        one for one in model.modules() if isinstance(one, nn.Embedding) and weight is not None and one.weight is weight
    ]
    return same or [first]
