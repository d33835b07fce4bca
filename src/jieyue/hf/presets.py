"""Models that start from scratch, small enough to learn in minutes, loadable by anybody.

A plain ``EuroBertForMaskedLM``: pre-norm, rotary positions, input and output embeddings tied, no transform between the
last hidden state and the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import EuroBertConfig, EuroBertForMaskedLM, PreTrainedTokenizerBase

__all__ = ["PRESETS", "STARTS", "build", "start_weights"]

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192},
    "small": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
}
STARTS = ("orthogonal-copy", "normal")


def build(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    start: str = "orthogonal-copy",
    rotary_base: float = 10_000.0,
    seed: int = 0,
    **settings: Any,
) -> EuroBertForMaskedLM:
    config = EuroBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        mask_token_id=tokenizer.mask_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": rotary_base},
        **{**PRESETS[name], **settings},
    )
    model = EuroBertForMaskedLM(config)
    start_weights(model, start, seed)
    return model


def start_weights(model: nn.Module, start: str, seed: int, deviation: float = 0.08, gain: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) and name != "lm_head":
            nn.init.normal_(module.weight, std=deviation, generator=generator)
    if start == "orthogonal-copy":
        for module in model.modules():
            if hasattr(module, "v_proj"):
                q = torch.empty_like(module.v_proj.weight)
                nn.init.orthogonal_(q, generator=generator)
                with torch.no_grad():
                    module.v_proj.weight.copy_(gain * q)
                    module.o_proj.weight.copy_(gain * q.T)
