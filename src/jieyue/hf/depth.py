"""The same model with fewer layers, from its configuration: what one layer costs is told by two depths."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from jieyue.errors import InputError

from .entries import split_layers
from .saved_attention import FIELD

if TYPE_CHECKING:
    from transformers import PretrainedConfig as PretrainedConfig  # named for planning, which imports no transformers

__all__ = ["has_stages", "layer_period", "num_layers", "with_layers"]


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


def layer_period(config: PretrainedConfig, attention: str | None = None) -> int:
    """After how many layers the kinds of layer repeat, as far as lists in the configuration and a pattern's text tell: at most all of
    them. ``attention``: a pattern in place of the configuration's own."""
    layers = num_layers(config)
    lists: list[Sequence[Hashable]] = [
        list(map(str, value)) for value in vars(config).values() if isinstance(value, list) and len(value) == layers
    ]
    text = attention or getattr(config, FIELD, None)
    if text:
        entries = split_layers(str(text))
        lists.append([entries[layer % len(entries)] for layer in range(layers)])
    return min(layers, math.lcm(1, *map(_period, lists)))


def _period(values: Sequence[Hashable]) -> int:
    """The smallest step after which a list repeats.

    >>> _period("aabaab"), _period("aaa"), _period("abca"), _period("abcd")
    (3, 1, 3, 4)
    """
    count = len(values)
    return next(
        step for step in range(1, count + 1) if all(values[at] == values[at - step] for at in range(step, count))
    )
