"""The keywords that a model or its caller hands to an attention function: those that are understood, and a refusal of all others.

A list of what is known, not of what is not: an attention of a later transformers that passes something new is refused by default.
"""

from __future__ import annotations

from collections.abc import Mapping

from jieyue.errors import InputError

__all__ = ["refuse_callers_keywords", "refuse_keywords"]

# what attention functions of transformers are passed and none of SDPA and eager reads, or what is read here
_UNDERSTOOD = frozenset(
    (
        "cache_position", "deterministic", "encoder_hidden_states", "is_causal", "labels", "layer_idx", "logits_to_keep",
        "num_items_in_batch", "output_hidden_states", "output_router_logits", "past_key_values", "position_embeddings",
        "position_ids", "return_dict", "sliding_window", "token_type_ids", "use_cache",
    )
)  # fmt: skip
_DOES = {
    "softcap": "caps its logits",
    "s_aux": "has sinks",
    "sinks": "has sinks",
    "position_bias": "adds position biases",
    "attention_bias": "adds position biases",
    "indices": "chooses its keys by an indexer",
    "block_indices": "chooses its keys by an indexer",
    "cu_seq_lens_q": "packs documents",
    "cu_seq_lens_k": "packs documents",
    "seq_idx": "packs documents",
}


def refuse_keywords(name: str, kwargs: Mapping[str, object]) -> None:
    """``InputError`` for a keyword that no attention of ours reads, unless it is None or False; ``name``: whose attention."""
    for key, given in kwargs.items():
        if given is None or given is False or key in _UNDERSTOOD:
            continue
        if key == "output_attentions":
            raise InputError(f"{name}: output_attentions=True, but no attention matrix is ever formed")
        does = f"{_DOES[key]}: it " if key in _DOES else ""
        raise InputError(f"{name} {does}passes {key}, which a pattern cannot honour; expected none")


def refuse_callers_keywords(name: str, kwargs: Mapping[str, object], is_causal: bool) -> None:
    """The same for what a model was called with, before its first layer runs; ``is_causal``: what its masks will say."""
    refuse_keywords(name, {key: given for key, given in kwargs.items() if key == "output_attentions" or key in _DOES})
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
