"""A model whose patterns are dense masks: what a program without our kernels computes, for exporting.

Each self-attention's pattern becomes a mask of N x N added to the model's own, and the attention transformers' eager one. The
outputs are those of the pattern; time and memory are those of full attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from jieyue.attention import Pattern
from jieyue.errors import InputError

from .attention import attention_modules, attention_of, remove_attention
from .entries import HeadsEntry, PatternEntry, parse_entry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["make_dense", "patterns_of"]


def patterns_of(model: nn.Module) -> dict[str, Pattern]:
    """Module path -> pattern of every self-attention that has one of ours; ``InputError`` names what is no pattern."""
    found: dict[str, Pattern] = {}
    for name, text in attention_of(model).items():
        entry = parse_entry(text)
        if not isinstance(entry, PatternEntry):
            do = "train with a pattern such as local(64), or serve it with jieyue"
            has = "a mask for each head" if isinstance(entry, HeadsEntry) else "no dense mask"
            raise InputError("export", f"{text} in {name}, which has {has}", "a pattern", do)
        found[name] = entry.pattern
    return found


def make_dense(model: PreTrainedModel) -> dict[str, Pattern]:
    """Changes the model in place; returns module path -> pattern. Padding must stand behind a text, or the pattern count no rows.

    A causal model stays causal, a layer with a window of its own keeps it: those masks are the model's.
    """
    patterns = patterns_of(model)
    remove_attention(model)
    model.set_attn_implementation("eager")
    modules = dict(attention_modules(model))
    for name, pattern in patterns.items():
        modules[name].register_forward_pre_hook(partial(_narrowed, pattern), with_kwargs=True)
    return patterns


def _narrowed(
    pattern: Pattern, module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The module's arguments, its mask without the keys that the pattern does not show."""
    hidden = kwargs.get("hidden_states", args[0] if args else None)
    given = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if not isinstance(hidden, Tensor):
        raise InputError(
            f"export: {type(module).__name__} takes no hidden_states, expected an attention as BERT's or Llama's"
        )
    at = torch.arange(hidden.shape[1], device=hidden.device)
    hides = ~pattern.sees(at, at)
    least = max(torch.finfo(hidden.dtype).min, torch.finfo(torch.float32).min)  # softmax may be in float32
    if isinstance(given, Tensor) and given.dtype != torch.bool:
        mask = given.masked_fill(hides, least)
    else:
        mask = torch.zeros(hides.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(hides, least)[None, None]
        mask = mask if given is None else mask.masked_fill(~given, least) if isinstance(given, Tensor) else mask
    if len(args) > 1:
        return (args[0], mask, *args[2:]), dict(kwargs)
    return args, {**kwargs, "attention_mask": mask}
