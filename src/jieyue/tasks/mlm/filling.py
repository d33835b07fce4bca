"""Masks in a text filled with what a masked language model finds likeliest there, all of a text at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from jieyue.data.batch import pad_of
from jieyue.errors import InputError
from jieyue.tasks import Prediction
from jieyue.tasks.batches import answers_in_batches

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["fill_masks"]

MASK = "[MASK]"  # understood beside the tokenizer's own


def fill_masks(model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int = 32) -> list[Prediction]:
    """The texts, letter for letter but for their masks; confidence: the geometric mean of the filled tokens' probabilities.

    ``InputError`` for a text without a mask, for one longer than the model reads, and for a tokenizer without a mask token.
    """
    own = tokenizer.mask_token
    if own is None or tokenizer.mask_token_id is None:
        raise InputError("tokenizer", "no mask token", "one of a masked language model")
    pieces = [text.replace(MASK, str(own)).split(str(own)) for text in texts]
    rows = []
    for text, parts in zip(texts, pieces, strict=True):
        if len(parts) < 2:
            raise InputError("row", f"{text!r:.60} without a mask", f"a text with {own}")
        ids = list(tokenizer(str(own).join(parts))["input_ids"])
        if ids.count(tokenizer.mask_token_id) != len(parts) - 1 or len(ids) > tokenizer.model_max_length:
            raise InputError("row", f"{len(ids)} tokens", f"at most {tokenizer.model_max_length}, masks included")
        rows.append(ids)

    def collate(batch: list[list[int]]) -> dict[str, Tensor]:
        width, pad = max(map(len, batch)), pad_of(tokenizer)
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch])
        return {"input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids in batch]), "attention_mask": mask}

    def read(batch: list[list[int]], tensors: dict[str, Tensor]) -> list[list[tuple[str, float]]]:
        logs = model(**tensors).logits.float().log_softmax(-1)
        logs[..., list(tokenizer.all_special_ids)] = -torch.inf
        best = logs.max(-1)
        found = []
        for row, ids in enumerate(batch):
            places = [at for at, token in enumerate(ids) if token == tokenizer.mask_token_id]
            words = [str(tokenizer.decode([int(best.indices[row, at])])).strip().removeprefix("##") for at in places]
            found.append([(word, float(best.values[row, at])) for word, at in zip(words, places, strict=True)])
        return found

    filled = answers_in_batches(model, rows, len, collate, read, batch_size=batch_size)
    return [_told(parts, found) for parts, found in zip(pieces, filled, strict=True)]


def _told(parts: Sequence[str], found: Sequence[tuple[str, float]]) -> Prediction:
    text = parts[0] + "".join(word + part for (word, _), part in zip(found, parts[1:], strict=True))
    return Prediction(text, math.exp(sum(log for _, log in found) / len(found)))
