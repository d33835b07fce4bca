"""A small causal model with fresh weights and an attention of ours: what generation is measured on."""

from __future__ import annotations

from typing import Any

from .attention import use_attention
from .loading import model_from_config

__all__ = ["fresh_decoder"]


def fresh_decoder(attention: str, *, hidden: int, num_layers: int, num_heads: int, num_positions: int) -> Any:
    """A Llama of this size for ``num_positions`` tokens of context, a vocabulary of 1000, in ``eval`` mode."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=num_positions,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = model_from_config(config, "causal-lm").eval()
    use_attention(model, attention)
    return model
