"""Any transformers model as ``step(tokens, state)`` for ``decoding.search``, with a cache: causal, encoder-decoder, prefix.

    steps(model)(prompts [B, N], mask [B, N] or None) -> logits [B, V], state      padding on the left for causal models
    steps(model)(tokens [B], state)                   -> logits [B, V], state

An encoder reads its source once; its keys are not moved when hypotheses of one source change places. A model whose attention
is a pattern of ours keeps the cache that its pattern needs.

Letters: B rows, N tokens of the longest prompt, M tokens seen, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache

from jieyue.decoding.search import Step
from jieyue.decoding.slots import narrowed
from jieyue.errors import InputError

from .batched_decoding import DecodingRows, Stepper
from .prefix import is_prefix_lm

__all__ = ["Remembered", "Reread", "rereading", "steps"]


class Remembered:
    """What an encoder-decoder remembers between steps: its cache, the encoded source, and which of its tokens were padding.

    ``owner`` [B]: the source that each row was made from; ``kept`` [B, M]: 1 = a token, 0 = padding.
    """

    def __init__(self, cache: Any, kept: Tensor, encoded: Any) -> None:
        self.cache, self.kept, self.encoded = cache, kept, encoded
        self.owner = torch.arange(len(kept), device=kept.device)

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was; more or fewer rows than before are allowed."""
        if torch.equal(index, torch.arange(len(self.owner), device=index.device)):
            return
        same_sources = torch.equal(self.owner[index], self.owner)
        if isinstance(self.cache, EncoderDecoderCache) and same_sources:
            self.cache.self_attention_cache.batch_select_indices(index)
            return
        self.cache.batch_select_indices(index)
        self.kept, self.owner = self.kept[index], self.owner[index]
        self.encoded["last_hidden_state"] = self.encoded["last_hidden_state"][index]


def steps(model: Any) -> Step:
    """``step`` of a model with a language-modelling head, in evaluation mode. See the file's head for what it takes."""
    if model.training:
        raise InputError("steps(model): found a model in training mode, expected model.eval(): dropout is no decoder")
    if getattr(model.config, "is_encoder_decoder", False):
        return _encoder_decoder(model)
    return _causal(model)


def _causal(model: Any) -> Step:
    decoder = Stepper(model)

    def step(tokens: Tensor, state: DecodingRows | Tensor | None) -> tuple[Tensor, DecodingRows]:
        if isinstance(state, DecodingRows):
            return decoder.step(state, tokens), state
        rows, logits = decoder.begin_padded(tokens, state)
        return logits, rows

    return step


class Reread:
    """All tokens so far: ``tokens`` [B, M], ``kept`` [B, M], and how many of them are the prompts' (``num_source``)."""

    def __init__(self, tokens: Tensor, kept: Tensor) -> None:
        self.tokens, self.kept, self.num_source = tokens, kept, tokens.shape[1]

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was; more or fewer rows than before are allowed."""
        self.tokens, self.kept = self.tokens[index], self.kept[index]


def rereading(model: Any) -> Step:
    """``steps`` of a prefix LM without a cache: every step reads all tokens anew. The oracle, and what published code pays."""
    if not is_prefix_lm(model):
        raise InputError(f"rereading(model): found {type(model).__name__}, expected a prefix LM (hf.prefix)")

    def step(tokens: Tensor, state: Any) -> tuple[Tensor, Reread]:
        tokens = tokens[:, None] if tokens.ndim == 1 else tokens
        if isinstance(state, Reread):
            state.tokens = torch.cat([state.tokens, tokens], 1)
            state.kept = torch.cat([state.kept, torch.ones_like(tokens)], 1)
        else:
            state = Reread(tokens, torch.ones_like(tokens) if state is None else state.to(tokens))
        segments = torch.zeros_like(state.tokens)
        segments[:, state.num_source :] = 1
        with narrowed(model, state.tokens.shape[1], lambda states: states[:, -1:]):
            out = model(state.tokens, attention_mask=state.kept, token_type_ids=segments, use_cache=False)
        return out.logits[:, -1], state

    return step


def _encoder_decoder(model: Any) -> Step:
    first = _first_token(model)

    def step(tokens: Tensor, state: Any) -> tuple[Tensor, Remembered]:
        if not isinstance(state, Remembered):
            kept = torch.ones_like(tokens) if state is None else state.to(tokens)
            encoded = model.get_encoder()(input_ids=tokens, attention_mask=kept, return_dict=True)
            state = Remembered(None, kept, encoded)
            tokens = torch.full_like(tokens[:, 0], first)
        out = model(
            encoder_outputs=state.encoded,
            attention_mask=state.kept,
            decoder_input_ids=tokens[:, None] if tokens.ndim == 1 else tokens,
            past_key_values=state.cache,
            use_cache=True,
        )
        state.cache = out.past_key_values
        return out.logits[:, -1], state

    return step


def _first_token(model: Any) -> int:
    """What the decoder begins with."""
    for config in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            found = getattr(config, name, None)
            if found is not None:
                return int(found)
    raise InputError("steps(model): found no decoder_start_token_id and no bos_token_id, expected one of them")
