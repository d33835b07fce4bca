"""Models that start from scratch, small enough to learn to read in minutes, loadable by anybody.

A preset is a plain ``EuroBertForMaskedLM``: pre-norm, rotary positions (room for 8192), input and output embeddings tied,
no transform between the last hidden state and the vocabulary, so a token that attention brings to a place is already what
the head looks for there. ``AutoModelForMaskedLM`` loads what is saved; no code of ours is needed.

Starts (``STARTS``), all weights N(0, 0.08²) from a seed:

- ``"orthogonal-copy"``: in every layer, besides, value and output projections are Q/2 and Qᵀ/2 of one random orthogonal Q,
  query and key projections both 0.7·R of another, R. So output · value = I/4: attention copies what it reads; and a query
  fits the keys of its own token best: attention finds what is alike, both from the first step. With it a small reader
  learns to answer within minutes; without it, it abstains from every question for far longer (the corpus' CARD.md).
- ``"normal"``: nothing besides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import EuroBertConfig, PreTrainedTokenizerBase

from jieyue.errors import InputError

from .loading import model_from_config
from .preset_sizes import PRESETS

__all__ = ["PRESETS", "STARTS", "build", "preset_config", "start_copying", "start_weights"]

STARTS = ("orthogonal-copy", "normal")
MAX_POSITIONS = 8192
DEVIATION = 0.08
GAIN = 0.5
MATCH = 0.7


def preset_config(name: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> EuroBertConfig:
    """The configuration of a preset for a tokenizer's vocabulary; ``settings`` go to ``EuroBertConfig`` as they are.

    Refuses unknown presets and tokenizers without padding, mask, [CLS] or [SEP] (``InputError``).
    """
    if name not in PRESETS:
        raise InputError(f"preset={name!r}", repr(name), f"one of {', '.join(PRESETS)}")
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }
    if missing := [key.removesuffix("_id") for key, value in special.items() if value is None]:
        raise InputError(f"preset {name!r}", f"a tokenizer without {', '.join(missing)}", "pad, cls, sep and mask")
    resolved = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": True,
        "initializer_range": DEVIATION,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        **special,
        **PRESETS[name],
        **settings,
    }
    return EuroBertConfig(**resolved)


def build(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    head: str = "masked-lm",
    start: str = "orthogonal-copy",
    seed: int = 0,
    **settings: Any,
) -> Any:
    """The model of a preset with its starting weights, on the CPU in float32. The same seed gives the same weights."""
    model = model_from_config(preset_config(name, tokenizer, **settings), head)
    start_weights(model, start, seed=seed)
    return model


@torch.no_grad()
def start_weights(model: nn.Module, start: str, *, seed: int = 0) -> None:
    """Draws every weight matrix of a model anew (see the module's text); norms and biases stay as they are.

    ``"orthogonal-copy"`` needs layers with ``v_proj`` and ``o_proj`` of transposed shapes (as many key heads as query
    heads); a model without them is refused with ``InputError``.
    """
    if start not in STARTS:
        raise InputError(f"start={start!r}", repr(start), f"one of {', '.join(STARTS)}")
    generator = torch.Generator().manual_seed(seed)
    drawn: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding) and id(module.weight) not in drawn:  # tied weights once
            drawn.add(id(module.weight))
            module.weight.normal_(std=DEVIATION, generator=generator)
    if start == "normal":
        return
    layers: list[Any] = [
        module for module in model.modules() if hasattr(module, "v_proj") and hasattr(module, "o_proj")
    ]
    if not layers or any(layer.v_proj.weight.shape != layer.o_proj.weight.T.shape for layer in layers):
        found = f"{len(layers)} layers with v_proj and o_proj" + (" of other shapes" if layers else "")
        raise InputError(f"start={start!r}", found, "value and output projections of transposed shapes")
    for layer in layers:
        query, key = getattr(layer, "q_proj", None), getattr(layer, "k_proj", None)
        near: tuple[Any, ...] = ()
        if query is not None and key is not None:
            near = (query, key) if query.weight.shape == key.weight.shape == layer.v_proj.weight.shape else ()
        start_copying(layer.v_proj, layer.o_proj, *near, generator=generator)


@torch.no_grad()
def start_copying(
    value: nn.Linear,
    output: nn.Linear,
    query: nn.Linear | None = None,
    key: nn.Linear | None = None,
    *,
    generator: torch.Generator | None = None,
) -> None:
    """One attention's projections as ``"orthogonal-copy"`` has them; query and key stay as they are where they are not given.

    The weights of value and output are of transposed shapes, those of query and key of value's. ``generator``: None = torch's.
    """
    q = torch.empty(value.weight.shape, dtype=torch.float32)
    nn.init.orthogonal_(q, generator=generator)
    value.weight.copy_(GAIN * q)
    output.weight.copy_(GAIN * q.T)
    if query is not None and key is not None:
        nn.init.orthogonal_(q, generator=generator)
        query.weight.copy_(MATCH * q)
        key.weight.copy_(MATCH * q)
