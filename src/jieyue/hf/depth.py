"""The same model with fewer layers, from its configuration: what one layer costs is told by two depths."""

from __future__ import annotations

import copy
from typing import Any

from jieyue.errors import InputError, message

__all__ = ["num_layers", "with_layers"]


def num_layers(config: Any) -> int:
    """Layers of a configuration (``num_hidden_layers`` under whatever name its family uses); ``InputError`` without."""
    found = getattr(config, "num_hidden_layers", None)
    if not isinstance(found, int) or found < 1:
        raise InputError(
            message(type(config).__name__, f"num_hidden_layers {found!r}", "a model with a number of layers")
        )
    return found


def with_layers(config: Any, layers: int) -> Any:
    """A copy with the first ``layers`` layers; lists that hold one entry a layer (``layer_types``) are cut as well."""
    deep = num_layers(config)
    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = layers
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == deep:
            setattr(shallow, name, value[:layers])
    return shallow
