"""BERT and ALBERT that start from scratch, of equal width and depth: for comparing how layers share their weights.

Post-norm, learned positions (512), GELU, no dropout. ALBERT applies one block at every layer and has no smaller embedding
here (``embedding_size`` = ``hidden_size``), so that sharing is the only difference. Plain ``AutoModel…`` loads what is saved.

Starts (``presets.STARTS``), all weights N(0, σ²) with σ = 0.02·√(768/width) from a seed, as transformers draws them:

- ``"orthogonal-copy"``: besides, every attention copies and finds what is alike, as in ``presets``; the embedding's map (ALBERT)
  and the head's transform are the identity, so that a token which attention brings to a place is what the head looks for
  there; positions are drawn half as large, so that the same token elsewhere is still alike.
- ``"normal"``: nothing besides. A few hundred updates leave such a model at what it would guess without any context.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AlbertConfig, BertConfig, PretrainedConfig, PreTrainedTokenizerBase

from jieyue.errors import InputError, near

from .loading import model_from_config
from .preset_sizes import CLASSIC_PRESETS
from .presets import PRESETS, STARTS, start_copying

__all__ = ["CLASSIC_PRESETS", "build_classic", "classic_config", "refuse_misspelt"]

MAX_POSITIONS = 512
POSITIONS = 0.5  # of σ


def refuse_misspelt(name: str) -> None:
    """``InputError`` for a name that is nearly a preset's and no folder's, before anybody asks the hub for it."""
    known = [*PRESETS, *CLASSIC_PRESETS]
    if name not in known and "/" not in name and not Path(name).exists() and (hint := near(name, known, cutoff=0.8)):
        raise InputError(f"model={name!r}", "no preset and no folder of that name", f"a preset or a folder{hint}")


def classic_config(name: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PretrainedConfig:
    """The configuration of a preset for a tokenizer's vocabulary; ``settings`` go to the configuration as they are."""
    if name not in CLASSIC_PRESETS:
        raise InputError(f"preset={name!r}", repr(name), f"one of {', '.join(CLASSIC_PRESETS)}")
    sizes = CLASSIC_PRESETS[name]
    resolved: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": 0.02 * (768 / sizes["hidden_size"]) ** 0.5,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **sizes,
    }
    if name.startswith("bert"):
        return BertConfig(**resolved | settings)
    shared = {
        "embedding_size": sizes["hidden_size"],
        "hidden_act": "gelu",
        "classifier_dropout_prob": 0.0,
        "bos_token_id": tokenizer.cls_token_id,
    }
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
    start = STARTS[0] if start is None else start
    if start not in STARTS:
        raise InputError(f"start={start!r} of {name}", repr(start), f"one of {', '.join(STARTS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_from_config(classic_config(name, tokenizer, **settings), head)
        if start != "normal":
            _let_copy(model)
    return model


@torch.no_grad()
def _let_copy(model: nn.Module) -> None:
    """The orthogonal start (see the module's text), drawn from torch's own generator."""
    for query, key, value, output in _attentions(model):
        start_copying(value, output, query, key)
    for name, module in model.named_modules():
        if name.endswith(("embedding_hidden_mapping_in", "predictions.dense", "predictions.transform.dense")):
            nn.init.eye_(module.get_parameter("weight"))
        elif name.endswith("position_embeddings"):
            module.get_parameter("weight").mul_(POSITIONS)


def _attentions(model: nn.Module) -> Iterator[tuple[Any, Any, Any, Any]]:
    """The query, key, value and output projections of every attention block; a shared block comes once."""
    from transformers.models.albert.modeling_albert import AlbertAttention
    from transformers.models.bert.modeling_bert import BertAttention

    for module in model.modules():
        if isinstance(module, AlbertAttention):
            yield module.query, module.key, module.value, module.dense
        elif isinstance(module, BertAttention):
            own: Any = module.self
            yield own.query, own.key, own.value, module.output.dense
