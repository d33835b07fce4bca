"""Activation checkpointing: a layer keeps its input alone and runs again in the backward pass. Exact, for time.

Cost: one more forward pass of the layers (about a third more time); activations shrink from every layer's insides to one
[B, T, hidden] tensor a layer plus the insides of a single layer. Random state is replayed, so dropout draws the same.
Source: Chen et al. 2016, "Training deep nets with sublinear memory cost"; ``torch.utils.checkpoint``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, TypeAlias

from torch import nn
from torch.utils.checkpoint import checkpoint

from jieyue.errors import InputError

__all__ = ["checkpointed", "layers_of"]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model: the members of its outermost ``nn.ModuleList``s, each once (ALBERT's shared group is one)."""
    found: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.update({id(layer): layer for layer in child})
            else:
                visit(child)

    visit(model)
    return list(found.values())


@contextmanager
def checkpointed(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Inside the ``with``, every layer of ``model`` is checkpointed in training; models without layers are refused.

    Key-value caches handed to a layer are withheld, as the second run would append to them again.
    """
    layers = layers_of(model) if enabled else []
    if enabled and not layers:
        raise InputError(
            f"checkpointing of {type(model).__name__}: found no nn.ModuleList of layers, expected at least one"
        )
    originals = [layer.__dict__.get("forward") for layer in layers]
    for layer, own in zip(layers, originals, strict=True):  # a bound method is the same to torch.compile every time
        changed = MethodType(_forward, layer) if own is None else partial(_run, layer, own)
        layer.__dict__["forward"] = changed
    try:
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            if original is None:
                del layer.__dict__["forward"]
            else:
                layer.__dict__["forward"] = original


Argument: TypeAlias = Any  # whatever a layer takes and gives: tensors, tuples of them, flags, caches


def _forward(layer: nn.Module, *args: Argument, **kwargs: Argument) -> Argument:
    return _run(layer, MethodType(type(layer).forward, layer), *args, **kwargs)


def _run(layer: nn.Module, forward: Callable[..., Argument], *args: Argument, **kwargs: Argument) -> Argument:
    if not layer.training:
        return forward(*args, **kwargs)
    args = tuple(None if _is_cache(value) else value for value in args)
    kwargs = {name: None if _is_cache(value) else value for name, value in kwargs.items()}
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _is_cache(value: Argument) -> bool:
    # by names, which torch.compile can follow: isinstance of a protocol breaks the graph
    return hasattr(value, "get_seq_length") and hasattr(value, "update")
