"""One attention call of a transformers model, under an entry of ours: what it asks for is honoured, or refused by name.

transformers hands over q, k, v, the mask that ``masks.asked_mask`` made, and keyword arguments. What the model wants is read
from the mask; a keyword that is not known (``keywords``) is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jieyue.errors import InputError

from .keywords import refuse_keywords, with_keywords
from .layers import SLOT, LayerAttention
from .masks import Ask, ask_of, asked_mask
from .memory import state_layer_of
from .saved_attention import PREFIX, layer_from_config

__all__ = ["PREFIX", "attention_forward", "interface_name", "register_attention"]


def interface_name(text: str) -> str:
    """The name under which transformers knows a model's attention: its text behind ``jieyue:``."""
    return PREFIX + text


def register_attention(text: str) -> str:
    """Makes transformers know the name, once; a configuration that has it can then be built. Returns the name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(interface_name(text), attention_forward)
    AttentionMaskInterface.register(interface_name(text), asked_mask)
    return interface_name(text)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """The function that transformers calls: query [B,H,N,D], key [B,G,M,D], value [B,G,M,V] -> ([B,N,H,V], None)."""
    layer: LayerAttention | None = vars(module).get(SLOT) or layer_from_config(module)
    if layer is None:
        raise InputError(f"{type(module).__name__}: no pattern was given to it; call jieyue.use(model, attention=...)")
    name = type(module).__name__
    refuse_keywords(name, kwargs)
    ask = _asked(module, layer, attention_mask, kwargs.get("is_causal"))
    ask = with_keywords(name, ask, kwargs, query.shape[2], key.shape[2])
    if layer.watch is not None:
        return layer.watch(module, query, key, value, ask, scaling).transpose(1, 2).contiguous(), None
    layer.hear(name, ask)
    probability = dropout if layer.dropout is None else (layer.dropout if module.training else 0.0)
    layer.note_call(query, key, value, ask, probability)
    if query.shape[2] != key.shape[2] and not layer.cross:
        _check_rows(name, query.shape[2], key.shape[2], ask)
    state = state_layer_of(key)
    if state is not None:
        if not ask.causal:
            raise InputError(f"{name}: found a cache and attention to later tokens, expected use_cache=False")
        number = getattr(module, "layer_idx", None)
        out = state.attend(layer, number, (query, key, value), ask, scaling, probability)
    else:
        layer.pass_by()
        entry = layer.entry_for(ask.causal and not layer.cross)
        out = entry.attend(query, key, value, ask, scale=scaling, dropout=probability)
    return out.transpose(1, 2).contiguous(), None


def _asked(module: nn.Module, layer: LayerAttention, mask: Tensor | None, stated: object) -> Ask:
    """What the call wants. Without a mask, or where SDPA would leave it out, the module's ``is_causal`` must not contradict."""
    name = type(module).__name__
    own = getattr(module, "is_causal", True)  # as SDPA reads it
    said = own if stated is None else stated
    if mask is None:
        if layer.cross or not layer.by_sdpa:
            return Ask(causal=False)
        if said:
            raise InputError(
                f"{name}: has no mask but is_causal=True, so that its own eager and SDPA attention differ; expected a mask"
            )
        return Ask(causal=False)
    ask = ask_of(mask)
    if ask is None:
        raise InputError(
            f"{name}: found an attention_mask of shape {list(mask.shape)} of its own or the caller's making, expected [B, M] "
            "with 1 = keep; a prepared four-dimensional mask cannot be honoured by a pattern"
        )
    # A keyword may be False only because there is a mask (Moonshine): one of the two words must agree
    if layer.by_sdpa and ask.skipped and not layer.cross and ask.causal not in (bool(own), bool(said)):
        raise InputError(
            f"{name}: its mask is {'' if ask.causal else 'not '}causal, but the module says is_causal={said}, so that its own "
            "eager and SDPA attention differ; expected a model that agrees with itself"
        )
    return ask


def _check_rows(name: str, num_queries: int, num_keys: int, ask: Ask) -> None:
    """Fewer queries than keys are the newest tokens, behind a cache or without those that are not asked for; else refused."""
    if torch.compiler.is_compiling() or (ask.causal and (ask.rows, ask.columns) == (num_queries, num_keys)):
        return
    if num_queries < num_keys and not ask.causal:
        raise InputError(
            f"{name}: found keys of earlier calls, and attention to later tokens as well, which a cache cannot give; expected "
            "a causal model (config.is_decoder=True), or use_cache=False"
        )
    raise InputError(
        f"{name}: found {num_queries} queries and {num_keys} keys in self-attention, expected as many: it keeps keys in a place "
        "of its own; call with use_cache=False"
    )
