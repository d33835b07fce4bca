"""What a sparse model is trained by: the text itself, or the full model on the same rows.

    none      Σ −log p of the tokens that are asked for
    logits    Σ KL(full ‖ sparse) over the vocabulary, at the same positions
    outputs   Σ over tokens of the mean over layers of ‖h − h_full‖² / ‖h_full‖²
    means     outputs, and with as much weight the same of a row's mean last state m: tokens · ‖m − m_full‖² / ‖m_full‖²

Where a token cannot know what full attention told it, the nearest guess is the average over texts: the tokens come nearer to the full
model's states while what they all lack, their text's own, goes missing in their mean. An encoder is judged by that mean.

All are sums over tokens with their number, so that they can be divided. Logits are formed some positions at a time, and again in
the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

from jieyue.errors import InputError
from jieyue.tally import Tally
from jieyue.training.objective import IGNORED
from jieyue.training.vocabulary_loss import held_back, model_vocabulary_loss

__all__ = ["Distilled", "text_loss"]

CHUNK = 128  # positions whose logits are formed at once


class _Layered(Protocol):
    hidden_states: tuple[Tensor, ...]


def text_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    """Sum of −log p over the tokens that are asked for, and how many these are; ``labels`` [B, L] are shifted already."""
    return model_vocabulary_loss(model, _inputs(batch), batch["labels"])


class Distilled:
    """Learning from ``teacher``, a model that stays as it is; ``what``: "outputs", "means" or "logits"."""

    def __init__(self, teacher: nn.Module, what: str) -> None:
        self.teacher, self.what = teacher.eval().requires_grad_(False), what

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
        own = next(model.parameters())
        teacher = model if isinstance(own, FakeTensor) else self.teacher.to(own.device)  # a trace: of the same shapes
        if self.what == "logits":
            return _logits_loss(model, teacher, batch)
        return _outputs_loss(model, teacher, batch, self.what == "means")


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor | bool]:
    return {name: value for name, value in batch.items() if name != "labels"} | {"use_cache": False}


def _outputs_loss(model: nn.Module, teacher: nn.Module, batch: Mapping[str, Tensor], with_means: bool) -> Tally:
    inputs = {name: value for name, value in batch.items() if name != "labels"} | {"output_hidden_states": True}
    with torch.no_grad():
        full: _Layered = teacher(**inputs)
    said: _Layered = model(**inputs)
    layers = list(zip(said.hidden_states[1:], full.hidden_states[1:], strict=True))
    counted = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).to(layers[0][0].dtype)
    total = (torch.stack([_apart(*pair) for pair in layers]).mean(0) * counted).sum()
    if with_means:
        tokens = counted.sum(1)
        shares = counted / tokens.clamp(min=1)[:, None]
        own, whole = ((shares[..., None] * states).sum(1) for states in layers[-1])
        total = total + (_apart(own, whole) * tokens).sum()
    return Tally(total, counted.sum())


def _apart(own: Tensor, whole: Tensor) -> Tensor:
    """‖own − whole‖² / ‖whole‖² over the last axis."""
    return (own - whole).square().sum(-1) / whole.square().sum(-1).clamp(min=1e-9)


def _logits_loss(model: nn.Module, teacher: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    head, known = _head(model), _head(teacher)
    with torch.no_grad():
        full = held_back(teacher, known, _inputs(batch)).flatten(0, 1)
    said = held_back(model, head, _inputs(batch)).flatten(0, 1)
    counted = (batch["labels"] != IGNORED).flatten().to(said.dtype)
    weights = (head.weight, head.bias, known.weight, known.bias)
    parts = zip(said.split(CHUNK), full.split(CHUNK), counted.split(CHUNK), strict=True)
    total = sum((checkpoint(_divergence, *part, *weights, use_reentrant=False) for part in parts), said.new_zeros(()))
    return Tally(total, counted.sum())


def _divergence(
    said: Tensor,
    full: Tensor,
    counted: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    known: Tensor,
    known_bias: Tensor | None,
) -> Tensor:
    """Σ KL(full ‖ said) over the positions that count."""
    with torch.no_grad():
        target = nn.functional.linear(full, known, known_bias).float().log_softmax(-1)
    own = nn.functional.linear(said, weight, bias).float().log_softmax(-1)
    return ((target.exp() * (target - own)).sum(-1) * counted).sum()


def _head(model: nn.Module) -> nn.Linear:
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    if not isinstance(head, nn.Linear):
        raise InputError("distill='logits'", f"{type(model).__name__}", "a model whose output layer is nn.Linear")
    return head
