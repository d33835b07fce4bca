"""Models that start from scratch, small enough to learn in minutes, loadable by anybody.

A plain ``EuroBertForMaskedLM``: pre-norm, rotary positions, input and output embeddings tied, no transform between the
last hidden state and the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import EuroBertConfig, EuroBertForMaskedLM, PreTrainedTokenizerBase

from jieyue.errors import InputError, message

__all__ = ["PRESETS", "STARTS", "build", "preset_config", "start_weights"]

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192},
    "small": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
}
STARTS = ("orthogonal-copy", "normal")


def preset_config(name: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> EuroBertConfig:
    """The configuration of a preset for a tokenizer's vocabulary; ``settings`` replace its sizes. ``InputError`` if unknown."""
    if name not in PRESETS:
        raise InputError(message("preset", repr(name), f"one of {', '.join(PRESETS)}"))
    return EuroBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        mask_token_id=tokenizer.mask_token_id,
        **{**PRESETS[name], **settings},
    )


def build(
    name: str, tokenizer: PreTrainedTokenizerBase, *, start: str = "orthogonal-copy", seed: int = 0, **settings: Any
) -> EuroBertForMaskedLM:
    """A preset with fresh weights, the same for the same seed; see ``start_weights`` for ``start``."""
    model = EuroBertForMaskedLM(preset_config(name, tokenizer, **settings))
    start_weights(model, start, seed)
    return model


def start_weights(model: nn.Module, start: str, seed: int, deviation: float = 0.08, gain: float = 0.5) -> None:
    """Fills a fresh model in place. Every matrix from N(0, ``deviation``²); nothing else is touched.

    ``"orthogonal-copy"``: then, in every layer, the value projection becomes ``gain``·Q and the output projection
    ``gain``·Qᵀ of one random orthogonal Q, so that attention copies what it reads from the first update on; a reader that
    starts so learns to copy answers within minutes. ``"normal"``: nothing more. ``InputError`` for another name.
    """
    if start not in STARTS:
        raise InputError(message("start", repr(start), f"one of {', '.join(STARTS)}"))
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) and name != "lm_head":
            nn.init.normal_(module.weight, std=deviation, generator=generator)
    if start != "orthogonal-copy":
        return
    for module in model.modules():
        value, output = getattr(module, "v_proj", None), getattr(module, "o_proj", None)
        if isinstance(value, nn.Linear) and isinstance(output, nn.Linear):
            orthogonal = nn.init.orthogonal_(torch.empty_like(value.weight), generator=generator)
            with torch.no_grad():
                value.weight.copy_(gain * orthogonal)
                output.weight.copy_(gain * orthogonal.T)
