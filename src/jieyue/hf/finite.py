"""Weights that are no numbers: a model with one that is NaN or infinite answers nonsense, or fails far from the cause."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jieyue.errors import InputError

__all__ = ["check_finite", "stored_weights"]

_NARROW = 2  # bytes of the narrowest numbers that are compared as they are


def check_finite(weights: Iterable[tuple[str, Tensor]], asked: str) -> None:
    """``InputError`` for the first of these (name, tensor) with a NaN or an infinity; ``asked``: the argument, for the message.

    Tensors of whole numbers and of the device ``meta`` pass. Cost: each is read once, without a copy.
    """
    for name, own in weights:
        if own.numel() and own.is_floating_point() and not own.is_meta:
            wide = own.detach() if own.element_size() >= _NARROW else own.detach().float()
            if not bool(torch.stack(torch.aminmax(wide)).isfinite().all()):
                do = "take a checkpoint from before its training diverged, or fetch the file again"
                raise InputError(asked, f"weights that are not finite numbers in {name}", "finite weights", do)


def stored_weights(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of safetensors files, one in memory at a time; ``InputError`` for a file that is none."""
    for path in files:
        try:
            with safe_open(path, "pt") as stored:
                names = list(stored.keys())  # it is no mapping itself
                for name in names:
                    yield f"{path.name}: {name}", stored.get_tensor(name)
        except SafetensorError as error:
            raise InputError(str(path), str(error), "a whole safetensors file", "fetch it again") from error
