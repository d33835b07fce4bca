"""The keywords that a model or its caller hands to an attention function: those that are understood, and a refusal of all others.

A list of what is known, not of what is not: an attention of a later transformers that passes something new is refused by default.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import TransformersKwargs

from jieyue.errors import InputError

from .masks import Ask

__all__ = ["PACKED", "known_keywords", "refuse_callers_keywords", "refuse_keywords", "with_keywords"]

# what attention functions of transformers are passed and none of SDPA and eager reads, or what is read here
_UNDERSTOOD = frozenset(
    (
        "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "deterministic", "encoder_hidden_states", "is_causal", "key_bias",
        "labels", "layer_idx", "logits_to_keep", "max_length_k", "max_length_q", "num_items_in_batch", "output_hidden_states",
        "output_router_logits", "past_key_values", "position_bias", "position_embeddings", "position_ids", "return_dict", "s_aux",
        "seq_idx", "sliding_window", "softcap", "token_type_ids", "use_cache",
    )
)  # fmt: skip
_DOES = {
    "attention_bias": "adds biases",
    "indices": "chooses its keys by an indexer",
    "block_indices": "chooses its keys by an indexer",
}
_MODELS_OWN = ("softcap", "s_aux", "position_bias")  # read from a model's layers, refused from its caller
PACKED = ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k")


def refuse_keywords(name: str, kwargs: Mapping[str, object]) -> None:
    """``InputError`` for a keyword that no attention of ours reads, unless it is None or False; ``name``: whose attention."""
    for key, given in kwargs.items():
        if given is None or given is False or key in _UNDERSTOOD:
            continue
        if key == "output_attentions":
            raise InputError(f"{name}: output_attentions=True, but no attention matrix is ever formed")
        does = f"{_DOES[key]}: it " if key in _DOES else ""
        raise InputError(f"{name} {does}passes {key}, which a pattern cannot honour; expected none")


def known_keywords(model: PreTrainedModel) -> frozenset[str]:
    """What some forward inside the model, its loss or transformers' list of passed-on keywords names."""
    calls = [type(module).forward for module in model.modules()]
    loss = getattr(model, "loss_function", None)
    named = {
        name for call in [*calls, *([loss] if callable(loss) else [])] for name in inspect.signature(call).parameters
    }
    return frozenset(named) | frozenset(TransformersKwargs.__annotations__)


def refuse_callers_keywords(name: str, kwargs: Mapping[str, object], is_causal: bool) -> None:
    """The same for what a model was called with, before its first layer runs; ``is_causal``: what its masks will say."""
    refuse_keywords(name, {key: given for key, given in kwargs.items() if key == "output_attentions" or key in _DOES})
    for key in _MODELS_OWN:
        if kwargs.get(key) is not None:
            raise InputError(f"{name}: passes {key}, which its own layers do not have; expected none")
    if kwargs.get("sliding_window") is not None:
        raise InputError(
            f"{name}: called with sliding_window={kwargs['sliding_window']}, which its masks do not have; expected a window in "
            "its configuration, or use(attention='local(...)')"
        )
    stated = kwargs.get("is_causal")
    if stated is not None and bool(stated) != is_causal:
        raise InputError(
            f"{name}: called with is_causal={stated}, but its configuration asks for masks with is_causal={is_causal}; expected "
            "config.is_causal to say it"
        )


def with_keywords(name: str, ask: Ask, kwargs: Mapping[str, object], num_queries: int, num_keys: int) -> Ask:
    """``ask`` with the soft-capping, sinks, position biases and packed documents that a call's keywords say.

    ``softcap`` a number, ``s_aux`` [H], ``position_bias`` [H, N + M - 1] from ``biases`` or zeros of any shape; ``seq_idx`` [B, N]
    or ``cu_seq_lens_q`` (ends of documents, 0 first) where the mask keeps no documents apart. ``InputError`` for anything else.
    """
    softcap, sinks, bias = (kwargs.get(key) for key in _MODELS_OWN)
    if softcap is not None:
        assert isinstance(softcap, int | float)
        ask = replace(ask, softcap=float(softcap))
    if sinks is not None:
        assert isinstance(sinks, Tensor)
        ask = replace(ask, sinks=sinks.flatten())
    if isinstance(bias, Tensor) and bias.ndim == 2:
        ask = replace(ask, offset_bias=bias)
    elif isinstance(bias, Tensor) and (torch.compiler.is_compiling() or bool(bias.any())):
        raise InputError(
            f"{name} adds position biases: it passes position_bias of shape {list(bias.shape)}, expected biases by offset alone, as "
            "T5's are"
        )
    if kwargs.get("key_bias"):
        ask = replace(ask, key_bias=True)
    packed = _documents(name, kwargs, num_queries)
    if packed is None or ask.segments is not None:
        return ask
    if num_queries != num_keys:
        raise InputError(f"{name}: found packed documents behind a cache, expected use_cache=False")
    return replace(ask, segments=packed)


def _documents(name: str, kwargs: Mapping[str, object], count: int) -> Tensor | None:
    index, ends = kwargs.get("seq_idx"), kwargs.get("cu_seq_lens_q")
    if isinstance(index, Tensor):
        return index
    if not isinstance(ends, Tensor):
        return None
    other = kwargs.get("cu_seq_lens_k")
    if int(ends[-1]) != count or (isinstance(other, Tensor) and not torch.equal(other, ends)):
        raise InputError(
            f"{name}: found cu_seq_lens_q {ends.tolist()} for a row of {count} tokens, expected the ends of its documents, the "
            "same as cu_seq_lens_k"
        )
    return torch.bucketize(torch.arange(count, device=ends.device), ends[1:], right=True)[None]
