"""Changes to a model that is there: a configuration of its own, and parameters replaced wherever they are used."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["own_config", "replace_parameters"]


def own_config(model: nn.Module, part: Any) -> Any:
    """Gives the model, and every module that has the configuration of its ``part``, a copy of it; returns the copy.

    A configuration may be that of other models too, which must not change with this one.
    """
    before = part.config
    own = copy.deepcopy(before)
    for module in model.modules():
        if vars(module).get("config") is before:
            module.config = own
    return own


def replace_parameters(model: nn.Module, new: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Puts the new parameters wherever the old ones are used; what was tied stays tied."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter in new:
                module._parameters[name] = new[parameter]
