"""The model of a run: a preset that starts from scratch, or any model that transformers loads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jieyue.decoding.slots import positions_of
from jieyue.errors import InputError, message
from jieyue.hf.loading import load_config, load_model, load_tokenizer, model_from_config
from jieyue.hf.prefix import as_prefix_lm
from jieyue.hf.presets import PRESETS, build, preset_config
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.hf.use import use

NO_LIMIT = 1_000_000  # positions of a model that sets none

__all__ = ["ModelSource", "open_model", "with_attention"]


@dataclass(frozen=True)
class ModelSource:
    """``build()`` makes the model; ``blueprint()`` without its trained weights (free under fake tensors), ``plain()`` without
    the pattern as well."""

    name: str
    is_preset: bool
    tokenizer: Any
    positions: int
    plain: Callable[[], Any]
    blueprint: Callable[[], Any]
    build: Callable[[], Any]


def open_model(
    name: str,
    texts: Callable[[], Iterable[str]],
    *,
    head: str = "masked-lm",
    vocabulary: Path | None = None,
    start: str = "orthogonal-copy",
    seed: int = 0,
    new_head: bool = False,
    attention: str | None = None,
) -> ModelSource:
    """A preset's name, a folder or a hub name. No weight is allocated before ``build()``.

    ``head``: of ``hf.loading.HEADS``. ``attention``: a pattern in place of full self-attention (``jieyue.use``). A preset's
    vocabulary is learned from ``texts()``, or read from ``vocabulary`` (a ``vocab.txt``).
    """
    if name in PRESETS and not Path(name).is_dir():
        if head not in ("masked-lm", "prefix"):
            raise InputError(
                message(f"model={name!r}", f"the head {head!r}", "a masked LM or a prefix LM", "name a checkpoint")
            )
        own = make_tokenizer(learn_vocabulary(texts()) if vocabulary is None else vocabulary)
        fresh = preset_config(name, own)
        return ModelSource(
            name,
            True,
            own,
            fresh.max_position_embeddings,
            lambda: _ready(model_from_config(fresh, head), head, own),
            lambda: with_attention(_ready(model_from_config(fresh, head), head, own), attention),
            lambda: with_attention(_ready(build(name, own, start=start, seed=seed), head, own), attention),
        )
    tokenizer = load_tokenizer(name)
    config = load_config(name)
    with torch.device("meta"):
        positions = positions_of(model_from_config(config, head))
    return ModelSource(
        name,
        False,
        tokenizer,
        positions or NO_LIMIT,
        lambda: _ready(model_from_config(config, head), head, tokenizer),
        lambda: with_attention(_ready(model_from_config(config, head), head, tokenizer), attention),
        lambda: with_attention(_ready(load_model(name, head, new_head=new_head), head, tokenizer), attention),
    )


def _ready(model: Any, head: str, tokenizer: Any) -> Any:
    """A prefix LM with its mask, and the tokenizer's special tokens."""
    return as_prefix_lm(model, tokenizer) if head == "prefix" else model


def with_attention(model: Any, attention: str | None) -> Any:
    """The model, its self-attention replaced by a pattern where one is given."""
    if attention is not None:
        use(model, attention=attention)
    return model
