"""Batches from plain texts, the loss of each of their rows, and how far two models' losses differ on the same rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from jieyue.errors import InputError

if TYPE_CHECKING:
    from .types import Tokenizer

__all__ = ["as_written", "is_causal", "mean_difference", "row_losses", "text_batches"]

IGNORED = -100


def text_batches(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], *, rows: int = 8, max_tokens: int = 128, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Batches with labels from plain texts: 15 % of the tokens masked for a masked-LM head, the text itself for a causal one.

    Other heads get no labels. ``InputError`` without any text.
    """
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError("texts: found none that is not blank, expected at least one")
    masked, causal = _is_masked(model), is_causal(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for start in range(0, len(texts), rows):
        batch = dict(
            tokenizer(
                texts[start : start + rows], truncation=True, max_length=max_tokens, padding=True, return_tensors="pt"
            )
        )
        ids, real = batch["input_ids"], batch["attention_mask"].bool()
        special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
        if causal:
            batch["labels"] = ids.masked_fill(~real, IGNORED)
        elif masked:
            chosen = (torch.rand(ids.shape, generator=generator) < 0.15) & real & ~special
            batch["labels"] = ids.masked_fill(~chosen, IGNORED)
            batch["input_ids"] = ids.masked_fill(chosen, tokenizer.mask_token_id)
        batches.append(batch)
    return batches


def as_written(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of ``text_batches`` without labels, the tokens that were hidden put back: the text as a reader has it.

    Labels are the row's own tokens, whether it asks for the next or for a hidden one.
    """
    found = dict(batch)
    labels = found.pop("labels", None)
    if labels is not None:
        found["input_ids"] = torch.where(labels == IGNORED, found["input_ids"], labels)
    return found


def row_losses(model: nn.Module, logits: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
    """Cross entropy summed over each row's labels, and their number; causal models predict the next token."""
    if is_causal(model):
        logits, labels = logits[:, :-1], labels[:, 1:]
    if labels.shape != logits.shape[:-1] or labels.is_floating_point():
        return [], []
    rows = len(labels)
    each = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none")
    counted = (labels != IGNORED).view(rows, -1).sum(1)
    return each.double().view(rows, -1).sum(1).tolist(), counted.double().tolist()


def _is_masked(model: nn.Module) -> bool:
    return type(model).__name__.endswith(("ForMaskedLM", "ForPreTraining", "WithLMHeadModel"))


def is_causal(model: nn.Module) -> bool:
    """Whether the model's row t speaks of token t + 1, by its class's name."""
    name = type(model).__name__
    decoder = name.endswith(("ForCausalLM", "LMHeadModel")) and not _is_masked(model)
    return decoder and not getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def mean_difference(totals: list[float], base: list[float], weights: list[float]) -> tuple[float, float]:
    """Mean difference per label and its standard error, a ratio of sums over rows."""
    n, whole = len(totals), sum(weights)
    mean = (sum(totals) - sum(base)) / whole
    spread = sum((a - b - mean * w) ** 2 for a, b, w in zip(totals, base, weights, strict=True))
    return mean, math.sqrt(spread * n / (n - 1)) / whole if n > 1 else math.inf
