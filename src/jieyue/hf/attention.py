"""A pattern in any transformers model, in one line: ``use_attention(model, "local(128)+atrous(8)")``.

Through transformers' own ``AttentionInterface`` and ``AttentionMaskInterface``: no model code is replaced. A pattern takes
the place of self-attention over all keys; cross-attention stays full, and layers with a window of their own keep it unless a
comma-separated list names every layer. What cannot be honoured (soft-capping, sinks, position biases, unknown masks, packed
documents, models outside the interface) is refused, never ignored; after the first forward pass each layer is checked to have
come through here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jieyue.attention import Pattern, attend, full, local, parse
from jieyue.errors import InputError, message

from .masks import padding_only

__all__ = ["LayerAttention", "attention_modules", "interface_name", "layers_of", "remove_attention", "use_attention"]

PREFIX = "jieyue:"
FIELD = "jieyue_attention"  # the key of config.json that `load` reads back
_SLOT = "jieyue_attention"  # where a module keeps what it got
_CROSS = ("crossattention", "cross_attn", "encoder_attn", "encdecattention", "cross_attention")


@dataclass
class LayerAttention:
    """What one attention module got: ``pattern`` (before causality), ``dropout`` (None = the model's), ``called``."""

    pattern: Pattern
    dropout: float | None = None
    called: bool = False


def interface_name(text: str) -> str:
    """The name under which transformers knows a pattern: its text behind ``jieyue:``."""
    return PREFIX + text


def use_attention(model: Any, attention: str | Pattern, *, dropout: float | None = None) -> dict[str, str]:
    """Gives each self-attention of ``model`` its pattern; returns layer name -> what it got, for the report.

    ``attention``: a pattern, its text, or a comma-separated list of texts tiled over the layers ("local(64),atrous(8)").
    ``dropout``: overrides the model's attention dropout in training. The choice is written to the model's config, so that
    ``save_pretrained`` keeps it and ``jieyue.load`` restores it.
    ``InputError`` for models outside the interface, shared layers (ALBERT) with a list, and settings it cannot honour.
    """
    texts = [str(attention)] if isinstance(attention, Pattern) else split_layers(attention)
    patterns = [parse(text) for text in texts]
    if dropout is not None and not 0 <= dropout < 1:
        raise InputError(message(f"use(dropout={dropout})", str(dropout), "0 <= dropout < 1"))
    _check_model(model)
    named = list(attention_modules(model))
    own = [(name, module) for name, module in named if not _is_cross(name)]
    if not own:
        raise InputError(
            f"use(attention=...): {type(model).__name__} has no attention module of transformers' interface"
        )
    if len(patterns) > 1 and len(own) < getattr(model.config, "num_hidden_layers", 0):
        raise InputError(
            f"use(attention={attention!r}): the layers of {type(model).__name__} share one module, so a list of patterns "
            "has nothing to tile over; expected one pattern, or unshare the layers first"
        )
    given: dict[str, str] = {}
    for name, module in named:
        pattern = (
            full() if _is_cross(name) else patterns[len(given) % len(patterns)] if len(patterns) > 1 else patterns[0]
        )
        window = None if _is_cross(name) or len(patterns) > 1 else _own_window(module)
        pattern = pattern if window is None else local(window)
        setattr(module, _SLOT, LayerAttention(pattern, dropout))
        if not _is_cross(name):
            given[name] = str(pattern)
    text = ",".join(str(pattern) for pattern in patterns)
    _register(text)
    model.set_attn_implementation(interface_name(text))
    for config in _configs(model.config):
        config.attn_implementation = interface_name(text)
    setattr(model.config, FIELD, text)
    _prove_at_first_forward(model)
    return given


def remove_attention(model: Any) -> None:
    """Takes the pattern off: transformers' SDPA attention again, and nothing of ours in the config."""
    for _, module in attention_modules(model):
        if hasattr(module, _SLOT):
            delattr(module, _SLOT)
    for config in _configs(model.config):
        for key in (FIELD, "attn_implementation"):
            if key in vars(config):
                delattr(config, key)
    model.set_attn_implementation("sdpa")


def layers_of(model: nn.Module) -> dict[str, str]:
    """Layer name -> pattern text of every self-attention that has one of ours; empty when the model has none."""
    return {
        name: str(vars(module)[_SLOT].pattern)
        for name, module in attention_modules(model)
        if _SLOT in vars(module) and not _is_cross(name)
    }


def split_layers(text: str) -> list[str]:
    """Splits at the commas outside parentheses.

    >>> split_layers("sparse(32, 8), full()")
    ['sparse(32, 8)', 'full()']
    """
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def attention_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of every module whose forward looks its attention up in transformers' interface, in order."""
    for name, module in model.named_modules():
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        if code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names:
            yield name, module


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls: query [B,H,N,D], key and value [B,G,M,D] -> ([B,N,H,D], None)."""
    layer: LayerAttention | None = vars(module).get(_SLOT)
    if layer is None:
        raise InputError(
            f"{type(module).__name__}: no pattern was given to this layer; call jieyue.use(model, attention=...)"
        )
    _refuse(module, attention_mask, kwargs)
    layer.called = True
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    pattern = layer.pattern.causal() if causal else layer.pattern
    probability = dropout if layer.dropout is None else (layer.dropout if module.training else 0.0)
    num_queries, num_keys = query.shape[2], key.shape[2]
    state = getattr(key, "jieyue_state", None)
    if state is not None:
        out = state.read(query, scale=scaling, key_mask=attention_mask)
    elif causal and num_queries != num_keys:
        raise InputError(
            f"{type(module).__name__}: found {num_queries} queries and {num_keys} keys, so a cache that is not ours; "
            "expected none (one is made by generate) or a jieyue.hf.cache.PatternCache"
        )
    else:
        out = attend(query, key, value, pattern, key_mask=attention_mask, scale=scaling, dropout=probability)
    return out.transpose(1, 2).contiguous(), None


def _refuse(module: nn.Module, attention_mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    for name in ("softcap", "s_aux", "position_bias", "head_mask"):
        if kwargs.get(name) is not None:
            raise InputError(f"{type(module).__name__}: passes {name}, which a pattern cannot honour; expected none")
    if kwargs.get("output_attentions"):
        raise InputError(f"{type(module).__name__}: output_attentions=True, but no attention matrix is ever formed")
    if attention_mask is not None and attention_mask.ndim != 2:
        raise InputError(
            f"{type(module).__name__}: found an attention_mask of shape {list(attention_mask.shape)}, expected [B, M] with "
            "1 = keep; a prepared four-dimensional mask cannot be honoured by a pattern"
        )


def _check_model(model: Any) -> None:
    can = getattr(model, "_can_set_attn_implementation", None)
    if can is None or not can():
        raise InputError(
            f"use(attention=...): {type(model).__name__} is outside transformers' attention interface; expected a model such "
            "as BERT, RoBERTa, ModernBERT, GPT-2, BART, Llama, Qwen3 or Mistral"
        )
    for key in ("attn_logit_softcapping", "attn_logit_soft_cap"):
        if getattr(model.config, key, None):
            raise InputError(
                f"use(attention=...): {type(model).__name__} caps its logits ({key}), which a pattern cannot honour"
            )
    if getattr(model.config, "output_attentions", False):
        raise InputError("use(attention=...): config.output_attentions is set, but no attention matrix is ever formed")


def _is_cross(name: str) -> bool:
    return any(word in name.lower() for word in _CROSS)


def _own_window(module: nn.Module) -> int | None:
    """How far the module's own window reaches to each side; None for attention over all keys.

    transformers counts a causal window with the query itself (w keys: offsets 0 … w-1), and ModernBERT stores its half
    window plus one; either way the pattern is ``local(w - 1)``.
    """
    window = getattr(module, "sliding_window", None)
    if window is None and getattr(getattr(module, "config", None), "layer_types", None) is None:
        window = getattr(getattr(module, "config", None), "sliding_window", None)
    return None if window is None or window <= 0 else int(window) - 1


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for key in getattr(config, "sub_configs", {}):
        inner = getattr(config, key, None)
        if inner is not None:
            yield from _configs(inner)


def _register(text: str) -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(interface_name(text), attention_forward)
    AttentionMaskInterface.register(interface_name(text), padding_only)


def _prove_at_first_forward(model: nn.Module) -> None:
    """After the first forward pass, every layer that got a pattern must have come through ``attention_forward``."""

    def prove(module: nn.Module, *_: Any) -> None:
        handle.remove()
        silent = [
            name for name, part in attention_modules(module) if _SLOT in vars(part) and not vars(part)[_SLOT].called
        ]
        if silent and not torch.compiler.is_compiling():
            raise RuntimeError(f"the pattern was not used by {', '.join(silent)}; their attention ran without it")

    handle = model.register_forward_hook(prove)
