"""Causal models that start from scratch, small enough to learn to chat in minutes, loadable and servable by anybody.

A preset is a plain ``LlamaForCausalLM``: pre-norm, rotary positions, groups of four query heads that share a key head (a
quarter of the memory of a talk), input and output embeddings tied. ``[SEP]`` ends a turn and with it generation.
All weights are N(0, 0.02·√(768/width)²) from a seed, those that add to the residual stream divided by √(2·layers) (GPT-2's rule).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from jieyue.errors import InputError

from .preset_sizes import CAUSAL_PRESETS

__all__ = ["CAUSAL_PRESETS", "build_causal", "causal_config", "set_generation"]

MAX_POSITIONS = 8192


def causal_config(name: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> LlamaConfig:
    """The configuration of a preset for a tokenizer's vocabulary; ``settings`` go to ``LlamaConfig`` as they are."""
    if name not in CAUSAL_PRESETS:
        raise InputError(f"preset={name!r}", repr(name), f"one of {', '.join(CAUSAL_PRESETS)}")
    resolved = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": True,
        "initializer_range": 0.02 * (768 / CAUSAL_PRESETS[name]["hidden_size"]) ** 0.5,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        **CAUSAL_PRESETS[name],
        **settings,
    }
    return LlamaConfig(**resolved)


@torch.no_grad()
def build_causal(name: str, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """The model of a preset with its starting weights, on the CPU in float32. The same seed gives the same weights."""
    config = causal_config(name, tokenizer, **settings)
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    inward = config.initializer_range / (2 * config.num_hidden_layers) ** 0.5
    for path, weight in model.named_parameters():  # tied weights come once
        if weight.ndim >= 2:
            adds = path.endswith(("o_proj.weight", "down_proj.weight"))
            weight.normal_(std=inward if adds else config.initializer_range, generator=generator)
    set_generation(model, tokenizer)
    return model


def set_generation(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """What ``generate``, and every server that reads ``generation_config.json``, does by default: top-k 5, as in the article.

    The end of a turn is [SEP] where the tokenizer has one, else its end of text.
    """
    ending = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        do_sample=True,
        top_k=5,
        max_new_tokens=64,
        eos_token_id=ending,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ending,
        bos_token_id=tokenizer.bos_token_id,
    )
