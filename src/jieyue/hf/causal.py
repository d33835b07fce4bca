"""Models that write from left to right: a masked language model turned causal, and the proof that a model is."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig

from jieyue.errors import InputError

__all__ = ["as_decoder", "made_causal"]


def as_decoder(config: Any) -> Any:
    """The configuration of the same model looking back only: told so (BERT's family), or that of the class which does.

    EuroBERT is Llama that looks both ways: the same layers, and weights of the same names.
    """
    if config.model_type == "eurobert":
        own = {"model_type", "architectures", "transformers_version", "mask_token_id", "classifier_pooling"}
        return LlamaConfig(**{name: value for name, value in config.to_dict().items() if name not in own})
    if getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    return config


@torch.no_grad()
def made_causal(model: Any) -> Any:
    """The model itself where it looks back only, else one of its class that does, with its weights; in evaluation mode.

    Proven on five tokens: what comes later changes no earlier logits. ``InputError`` where that cannot be had.
    """
    if _looks_back_only(model):
        return model.eval()
    twin = type(model)(as_decoder(model.config))
    twin.load_state_dict(model.state_dict())
    twin.tie_weights()
    twin = twin.to(next(model.parameters()).dtype)
    if not _looks_back_only(twin):
        raise InputError(f"{type(model).__name__}: found logits that depend on later tokens, expected a causal model")
    return twin.eval()


def _looks_back_only(model: Any) -> bool:
    model.eval()
    first = torch.arange(5)[None] % model.config.vocab_size
    second = first.clone()
    second[0, -1] = (second[0, -1] + 1) % model.config.vocab_size
    one, two = (model(input_ids=ids, use_cache=False).logits[0, :-1].float() for ids in (first, second))
    return bool(torch.allclose(one, two, rtol=1e-4, atol=1e-5))
