"""What a language model's loss is at every position of its rows, and how far an encoder's states are from another model's.

The logits of a whole row are never made where the model's output layer can be held back: a chunk of positions at a time.

Letters: B rows, N positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from jieyue.errors import InputError
from jieyue.training.objective import IGNORED
from jieyue.training.vocabulary_loss import held_back

__all__ = ["states_of", "token_losses"]

CHUNK_BYTES = 2**24


class _Stated(Protocol):
    last_hidden_state: Tensor


@torch.no_grad()
def token_losses(model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """−log p of each label, float32 [B, N]; 0 where ``labels`` [B, N] is -100. Position t is asked for labels[t], nothing is shifted.

    Cost: a forward pass; [C, V] logits of at most ``CHUNK_BYTES`` beside it where the output layer is linear and last.
    """
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    asked = dict(inputs) | {"use_cache": False}
    flat, found = labels.flatten(), torch.zeros(labels.numel(), device=labels.device)
    places = (flat != IGNORED).nonzero()[:, 0]
    try:
        if not isinstance(head, nn.Linear):
            raise InputError("no linear output layer")
        states, weight, bias = held_back(model, head, asked).flatten(0, 1), head.weight, head.bias
    except InputError:  # logits that are scaled or capped behind the output layer: all of them
        states, weight, bias = model(**asked).logits.flatten(0, 1), None, None
    width = states.shape[1] if weight is None else weight.shape[0]
    for at in places.split(max(1, CHUNK_BYTES // (4 * width))):
        logits = states[at] if weight is None else nn.functional.linear(states[at], weight, bias)
        found[at] = nn.functional.cross_entropy(logits.float(), flat[at], reduction="none")
    return found.view(labels.shape)


@torch.no_grad()
def states_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The last hidden states [B, N, H] of an encoder without a head."""
    out: _Stated = model(**inputs)
    return out.last_hidden_state
