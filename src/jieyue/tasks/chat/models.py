"""The model of a dialogue run: a causal preset that starts from scratch, or any model that writes, or can be made to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from jieyue.data.history import template_for
from jieyue.decoding.slots import positions_of
from jieyue.errors import InputError
from jieyue.hf.causal import as_decoder, made_causal
from jieyue.hf.causal_presets import CAUSAL_PRESETS, build_causal, causal_config, set_generation
from jieyue.hf.classic_presets import refuse_misspelt
from jieyue.hf.loading import check_tokenizer, load_config, load_model, load_tokenizer, model_from_config
from jieyue.hf.lossless_pieces import learn_lossless_vocabulary, make_lossless_tokenizer
from jieyue.hf.tokenizers import make_tokenizer
from jieyue.tasks.config import RunConfig
from jieyue.tasks.models import NO_LIMIT, ModelSource, with_attention

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["open_chat_model"]


def open_chat_model(config: RunConfig, texts: Callable[[], Iterable[str]], *, seed: int = 0) -> ModelSource:
    """A model that writes: a causal preset, or any causal language model; a masked one is turned causal.

    The tokenizer gets a chat template and a padding token where it has none.
    """
    name, vocabulary, attention = config.model, config.vocabulary, config.attention
    if config.unshare is not None:
        raise InputError("unshare", f"a dialogue model, {name!r}", "an ALBERT")
    if name in CAUSAL_PRESETS and not Path(name).is_dir():
        own: Tokenizer
        own = make_tokenizer(vocabulary) if vocabulary else make_lossless_tokenizer(learn_lossless_vocabulary(texts()))
        own.chat_template = template_for(own)
        if own.bos_token_id is None:
            own.bos_token, own.eos_token = own.cls_token, own.sep_token
        fresh = causal_config(name, own)
        plain: Callable[[], nn.Module] = partial(model_from_config, fresh, "causal-lm")
        build_it: Callable[[], nn.Module] = partial(build_causal, name, own, seed=seed)
        positions = fresh.max_position_embeddings
    else:
        refuse_misspelt(name)
        own, decoder = load_tokenizer(name), as_decoder(load_config(name))
        has_template, own.chat_template = bool(own.chat_template), template_for(own)
        if own.pad_token_id is None:
            own.pad_token = own.eos_token
        plain, build_it = (
            partial(model_from_config, decoder, "causal-lm"),
            partial(_loaded_causal, name, own, has_template),
        )
        with torch.device("meta"):
            drawn = plain()
        check_tokenizer(name, own, drawn)
        positions = positions_of(drawn) or NO_LIMIT
    return ModelSource(
        name=name,
        is_preset=name in CAUSAL_PRESETS,
        tokenizer=own,
        positions=positions,
        plain=plain,
        blueprint=lambda: with_attention(plain(), attention),
        build=lambda: with_attention(build_it(), attention),
    )


def _loaded_causal(name: str, tokenizer: Tokenizer, has_template: bool) -> nn.Module:
    config = load_config(name)
    causal = as_decoder(config)
    model = made_causal(load_model(name, "causal-lm", config=None if causal is config else causal))
    if not has_template:
        set_generation(model, tokenizer)
    return model
