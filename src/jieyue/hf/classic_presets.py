"""BERT and ALBERT that start from scratch, of equal width and depth: for comparing how layers share their weights.

Post-norm, learned positions (512), GELU. ALBERT applies one block at every layer and has no smaller embedding here
(``embedding_size`` = ``hidden_size``), so that sharing is the only difference. Weights are transformers' own start,
N(0, σ²) with σ = 0.02·√(768/width), from a seed. Plain ``AutoModel…`` loads what is saved.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AlbertConfig, BertConfig, PretrainedConfig, PreTrainedTokenizerBase

from jieyue.errors import InputError, message

from .loading import model_from_config

__all__ = ["CLASSIC_PRESETS", "build_classic", "classic_config"]

_TINY = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384}
_SMALL = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 1024}
CLASSIC_PRESETS: dict[str, dict[str, int]] = {
    "albert-tiny": _TINY,
    "albert-small": _SMALL,
    "bert-tiny": _TINY,
    "bert-small": _SMALL,
}
MAX_POSITIONS = 512
START = "normal"


def classic_config(name: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PretrainedConfig:
    """The configuration of a preset for a tokenizer's vocabulary; ``settings`` go to the configuration as they are."""
    if name not in CLASSIC_PRESETS:
        raise InputError(message(f"preset={name!r}", repr(name), f"one of {', '.join(CLASSIC_PRESETS)}"))
    sizes = CLASSIC_PRESETS[name]
    resolved: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": 0.02 * (768 / sizes["hidden_size"]) ** 0.5,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        **sizes,
    }
    if name.startswith("bert"):
        return BertConfig(**resolved | settings)
    shared = {"embedding_size": sizes["hidden_size"], "hidden_act": "gelu", "bos_token_id": tokenizer.cls_token_id}
    return AlbertConfig(**resolved | shared | {"eos_token_id": tokenizer.sep_token_id} | settings)


def build_classic(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    head: str = "masked-lm",
    start: str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Any:
    """The model of a preset with its starting weights, on the CPU in float32. The same seed gives the same weights."""
    if start not in (None, START):
        raise InputError(message(f"start={start!r} of {name}", repr(start), repr(START)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_from_config(classic_config(name, tokenizer, **settings), head)
