"""A pattern in any transformers model: ``use_attention(model, "local(128)+atrous(8)")``.

Through transformers' own ``AttentionInterface`` and ``AttentionMaskInterface``: no model code is replaced. An entry takes the
place of self-attention over all keys; cross-attention stays full, and layers with a window of their own keep it unless a
comma-separated list names every layer. What cannot be honoured (soft-capping, sinks, position biases, unknown masks, packed
documents, models outside the interface) is refused, never ignored; each layer's first forward pass is checked to have come
through here. The choice is written to the model's configuration, under a key of ours and as ``attn_implementation``: our
loading restores it, plain transformers refuses the name.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from torch import Tensor, nn

from jieyue.attention import Pattern, full, local
from jieyue.errors import InputError, message

from .cache import close_doors, open_doors, state_layer_of
from .entries import SLOT, LayerAttention, PatternEntry, parse_entry, split_layers
from .masks import padding_only

__all__ = [
    "FIELD",
    "attention_engines",
    "attention_modules",
    "attention_of",
    "interface_name",
    "is_cross",
    "register_attention",
    "remove_attention",
    "restore_attention",
    "use_attention",
]

PREFIX = "jieyue:"
FIELD = "jieyue_attention"  # the key of config.json that `load` reads back
DROPOUT_FIELD = "jieyue_attention_dropout"
_HANDLE = "jieyue_proof"
_BEFORE = "jieyue_attention_before"
_CROSS = ("crossattention", "cross_attn", "encoder_attn", "encdecattention", "cross_attention")
_NOT_HONOURED = (
    "softcap", "s_aux", "sinks", "position_bias", "attention_bias", "alibi", "head_mask", "score_mod", "mask_mod", "block_mask",
    "cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx",
)  # fmt: skip


def interface_name(text: str) -> str:
    """The name under which transformers knows a model's attention: its text behind ``jieyue:``."""
    return PREFIX + text


def register_attention(text: str) -> str:
    """Makes transformers know the name, once; a configuration that has it can then be built. Returns the name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(interface_name(text), attention_forward)
    AttentionMaskInterface.register(interface_name(text), padding_only)
    return interface_name(text)


def use_attention(model: Any, attention: str | Pattern, *, dropout: float | None = None) -> dict[str, str]:
    """Gives each self-attention of ``model`` its entry; returns module path -> its text, for the report.

    ``attention``: a pattern, the text of an entry, or a comma-separated list tiled over the layers ("local(64),atrous(8)").
    ``dropout``: in the place of the model's attention dropout in training. ``InputError`` for models outside the interface, shared
    layers (ALBERT) with a list, lists longer than the layers, and settings that cannot be honoured.
    """
    entries = [parse_entry(text) for text in split_layers(str(attention))]
    if dropout is not None and not 0 <= dropout < 1:
        raise InputError(message(f"use(dropout={dropout})", str(dropout), "0 <= dropout < 1"))
    _check_model(model)
    modules = list(attention_modules(model))
    own = [(name, module) for name, module in modules if not is_cross(name, module)]
    _check_list(model, len(entries), len(own))
    text = ",".join(map(str, entries))
    given: dict[str, LayerAttention] = {}
    layers: Counter[str] = Counter()  # the list starts anew in each stack, encoder and decoder
    for name, module in modules:
        cross, window = is_cross(name, module), _own_window(module)
        stack = re.split(r"\.\d+\.", name)[0]
        entry = entries[layers[stack] % len(entries)]
        if cross:
            entry = PatternEntry(full())
        elif window is not None and len(entries) == 1:
            entry = PatternEntry(local(window))
        layers[stack] += not cross
        given[name] = LayerAttention(entry, cross, dropout, window)
        given[name].entry_for(not cross and getattr(module, "is_causal", True))  # what cannot be causal is refused here
    for name, module in modules:
        vars(module)[SLOT] = given[name]
        if _HANDLE not in vars(module):
            vars(module)[_HANDLE] = module.register_forward_hook(_prove)
    if not str(model.config._attn_implementation).startswith(PREFIX):
        vars(model)[_BEFORE] = model.config._attn_implementation
    model.set_attn_implementation(register_attention(text))
    _tell_configs(model, text, dropout)
    open_doors(model)
    return attention_of(model)


def restore_attention(model: Any) -> dict[str, str]:
    """Gives a model that was built from a configuration of ours the attention that it names; {} if it names none."""
    text = getattr(model.config, FIELD, None)
    return use_attention(model, text, dropout=getattr(model.config, DROPOUT_FIELD, None)) if text else {}


def remove_attention(model: Any) -> None:
    """Takes it off: the attention that the model had before, and nothing of ours in model or configuration."""
    if not attention_of(model) and not getattr(model.config, FIELD, None):
        return
    close_doors(model)
    for _, module in attention_modules(model):
        vars(module).pop(SLOT, None)
        handle = vars(module).pop(_HANDLE, None)
        if handle is not None:
            handle.remove()
    for config in _configs(model.config):
        for key in (FIELD, DROPOUT_FIELD, "attn_implementation"):
            vars(config).pop(key, None)
    model.set_attn_implementation(vars(model).pop(_BEFORE, "sdpa" if model._supports_sdpa else "eager"))


def attention_of(model: nn.Module) -> dict[str, str]:
    """Module path -> text of every self-attention that has an entry of ours; empty when the model has none."""
    found = {name: vars(module).get(SLOT) for name, module in attention_modules(model)}
    return {name: str(layer.entry) for name, layer in found.items() if layer is not None and not layer.cross}


def attention_engines(model: nn.Module) -> list[tuple[str, str, str, str]]:
    """(module paths, entry, engine, why not the ones before it) of the self-attentions that have run, alike ones together."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, module in attention_modules(model):
        layer: LayerAttention | None = vars(module).get(SLOT)
        if layer is None or layer.cross or not layer.called:
            continue
        before = list(takewhile(lambda one: one[1] is not None, layer.engines))
        ran = layer.engines[len(before)][0] if layer.engines else "linear attention's own"
        reasons = "; ".join(str(reason) for _, reason in before)
        found.setdefault((str(layer.entry), ran, reasons), []).append(name)
    return [(", ".join(names), *what) for what, names in found.items()]


def attention_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of every module whose forward looks its attention up in transformers' interface, in order."""
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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls: query [B,H,N,D], key and value [B,G,M,D] -> ([B,N,H,D], None)."""
    layer: LayerAttention | None = vars(module).get(SLOT)
    if layer is None:
        raise InputError(f"{type(module).__name__}: no pattern was given to it; call jieyue.use(model, attention=...)")
    _refuse(module, layer, attention_mask, kwargs)
    layer.note_call(query, key, value)
    is_causal = kwargs.get("is_causal")
    causal = not layer.cross and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    probability = dropout if layer.dropout is None else (layer.dropout if module.training else 0.0)
    state = state_layer_of(key)
    if state is not None:
        if not causal:
            raise InputError(f"{type(module).__name__}: found a cache and is_causal=False, expected use_cache=False")
        out = state.attend(query, attention_mask, scaling, probability)
    elif not layer.cross and query.shape[2] != key.shape[2]:
        raise InputError(
            f"{type(module).__name__}: found {query.shape[2]} queries and {key.shape[2]} keys, so a cache that is not ours; "
            "expected none (one is made), or the cache that an earlier call of this model returned"
        )
    else:
        out = layer.entry_for(causal).attend(
            query, key, value, key_mask=attention_mask, scale=scaling, dropout=probability
        )
    return out.transpose(1, 2).contiguous(), None


def _refuse(module: nn.Module, layer: LayerAttention, attention_mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    for name in _NOT_HONOURED:
        if kwargs.get(name) is not None:
            raise InputError(f"{type(module).__name__}: passes {name}, which a pattern cannot honour; expected none")
    if kwargs.get("output_attentions"):
        raise InputError(f"{type(module).__name__}: output_attentions=True, but no attention matrix is ever formed")
    if kwargs.get("sliding_window") is not None and layer.window is None:
        raise InputError(
            f"{type(module).__name__}: passes sliding_window={kwargs['sliding_window']}, which was not there when use() looked; "
            "expected a window that the module or its configuration names"
        )
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
    for config in _configs(model.config):
        for key, does in (
            ("attn_logit_softcapping", "caps its logits"),
            ("attn_logit_soft_cap", "caps its logits"),
            ("relative_attention_num_buckets", "adds position biases"),
        ):
            if getattr(config, key, None):
                raise InputError(
                    f"use(attention=...): {type(model).__name__} {does} ({key}), which a pattern cannot honour"
                )
    for name, module in attention_modules(model):
        if getattr(module, "sinks", None) is not None:
            raise InputError(f"use(attention=...): {name} has sinks, which a pattern cannot honour")


def _check_list(model: Any, num_entries: int, num_layers: int) -> None:
    if not num_layers:
        raise InputError(
            f"use(attention=...): {type(model).__name__} has no self-attention of transformers' interface; expected at least one"
        )
    if num_entries > 1 and getattr(model.config, "num_hidden_groups", num_layers) < getattr(
        model.config, "num_hidden_layers", 0
    ):
        raise InputError(
            f"use(attention=...): found a list of {num_entries} entries, but the layers of {type(model).__name__} share one "
            "module; expected one entry, or layers unshared by jieyue.unshare(model)"
        )
    if num_entries > num_layers:
        raise InputError(
            f"use(attention=...): found a list of {num_entries} entries, expected at most one for each of the {num_layers} "
            f"self-attentions of {type(model).__name__}"
        )


def is_cross(name: str, module: nn.Module) -> bool:
    return bool(getattr(module, "is_cross_attention", False)) or any(word in name.lower() for word in _CROSS)


def _own_window(module: nn.Module) -> int | None:
    """How far the module's own window reaches to each side; None for attention over all keys.

    transformers counts a causal window with the query itself (w keys: offsets 0 … w-1), and ModernBERT stores its half
    window plus one; either way the pattern is ``local(w - 1)``.
    """
    config = getattr(module, "config", None)
    window = getattr(module, "sliding_window", None)
    if window is None and getattr(config, "layer_types", None) is None:
        window = getattr(config, "sliding_window", None)
    return None if window is None or window <= 0 else int(window) - 1


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for key in getattr(config, "sub_configs", {}):
        inner = getattr(config, key, None)
        if inner is not None:
            yield from _configs(inner)


def _tell_configs(model: Any, text: str, dropout: float | None) -> None:
    for config in _configs(model.config):
        config.attn_implementation = interface_name(text)
    setattr(model.config, FIELD, text)
    vars(model.config).pop(DROPOUT_FIELD, None)
    if dropout is not None:
        setattr(model.config, DROPOUT_FIELD, dropout)


def _prove(module: nn.Module, *_: Any) -> None:
    """After a module's forward pass: it must have come through ``attention_forward``."""
    layer = vars(module).get(SLOT)
    if layer is not None and not layer.called:
        raise RuntimeError(f"{type(module).__name__} has the pattern {layer.entry}, but its attention ran without it")
