"""A model of fake tensors: built where tensors have shapes alone, then given the device that it will have.

transformers builds every model on torch's ``meta`` device before it reads weights, so each can be built there; what draws
initial weights by looking at them (``trunc_normal_``) is skipped, and numbers that a constructor asks for (``.item()`` of a
tensor that is put on the CPU by name) are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["fake_model"]


def fake_model(mode: FakeTensorMode, build: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """``build()``, its parameters, buffers and other tensors as fakes of ``mode`` on ``device``; ties stay ties.

    ``build`` is called outside the mode. Cost: no memory but what the constructor itself keeps on the CPU.
    """
    with torch.device("meta"):
        model = build()
    known: dict[int, Tensor] = {}
    with mode:
        for module in model.modules():
            tables: list[MutableMapping[str, Any]] = [module._parameters, module._buffers, vars(module)]
            for table in tables:
                for name, value in list(table.items()):
                    if isinstance(value, Tensor):
                        table[name] = known.setdefault(id(value), _faked(value, device))
    return model


def _faked(value: Tensor, device: torch.device) -> Tensor:
    fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    if not isinstance(value, nn.Parameter):
        return fake
    parameter = nn.Parameter(fake, requires_grad=value.requires_grad)
    vars(parameter).update(vars(value))
    return parameter
