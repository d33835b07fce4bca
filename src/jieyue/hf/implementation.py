"""Which attention a model's configurations name: reading it, setting it for some of its modules, and making them its own.

A configuration object may be shared: by the parts of a model, by another model, or held by a part under another identity than
the whole's. Modules look their attention up in the object that they hold, so those are what counts.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

from torch import nn
from transformers import PretrainedConfig

__all__ = ["held_configs", "implementations", "own_configs", "running", "set_implementations"]


def held_configs(model: nn.Module) -> list[PretrainedConfig]:
    """Every configuration that a module of ``model`` holds, and those inside it, once each, in a fixed order."""
    found: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        for held in vars(module).values():
            if isinstance(held, PretrainedConfig):
                found |= {id(config): config for config in _nested(held)}
    return list(found.values())


def own_configs(model: nn.Module) -> None:
    """Gives ``model`` copies of its configurations, shared among its modules as before but with no other model."""
    copies = copy.deepcopy({id(config): config for config in held_configs(model)})
    for module in model.modules():
        for name, held in list(vars(module).items()):
            if isinstance(held, PretrainedConfig):
                vars(module)[name] = copies[id(held)]


def implementations(configs: Sequence[PretrainedConfig]) -> list[str | None]:
    """The attention that each names."""
    return [config._attn_implementation_internal for config in configs]


def set_implementations(configs: Sequence[PretrainedConfig], names: Sequence[str | None]) -> None:
    """Sets each, without transformers' way of setting those inside it too."""
    for config, name in zip(configs, names, strict=True):
        config._attn_implementation_internal = name


@contextlib.contextmanager
def running(configs: Sequence[PretrainedConfig], name: str) -> Iterator[None]:
    """Under this attention for a while."""
    before = implementations(configs)
    set_implementations(configs, [name] * len(before))
    try:
        yield
    finally:
        set_implementations(configs, before)


def _nested(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    yield config
    for key in config.sub_configs:
        inner = getattr(config, key, None)
        if isinstance(inner, PretrainedConfig):
            yield from _nested(inner)
