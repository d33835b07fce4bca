"""The same model with fewer layers, from its configuration: what one layer costs is told by two depths."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from jieyue.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig as PretrainedConfig  # named for planning, which imports no transformers

__all__ = ["has_stages", "num_layers", "with_layers"]


def has_stages(config: PretrainedConfig) -> bool:
    """Whether its layers come in stages that differ in width, so that one layer does not tell what another costs."""
    return isinstance(getattr(config, "depths", None), list | tuple)


def num_layers(config: PretrainedConfig) -> int:
    """Layers of a configuration (``num_hidden_layers`` under whatever name its family uses); ``InputError`` without."""
    found = getattr(config, "num_hidden_layers", None)
    if not isinstance(found, int) or found < 1:
        raise InputError(type(config).__name__, f"num_hidden_layers {found!r}", "a model with a number of layers")
    return found


def with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """A copy with the first ``layers`` layers; lists that hold one entry a layer (``layer_types``) are cut as well.

    A decoder beside an encoder keeps its share of the layers. ``InputError`` for stages of different width (Swin, ConvNeXt).
    """
    deep = num_layers(config)
    if has_stages(config):
        raise InputError(type(config).__name__, "stages of different width", "layers that are alike")
    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = layers
    for name in ("num_decoder_layers", "decoder_layers"):
        if isinstance(getattr(config, name, None), int):
            setattr(shallow, name, max(1, round(getattr(config, name) * layers / deep)))
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == deep:
            setattr(shallow, name, value[:layers])
    return shallow
