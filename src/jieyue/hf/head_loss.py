"""The loss that a model's head has for itself, as an objective: a sum over labels and their number, so that it can be cut.

    one class a row, a token, a masked token      Σ −log p(label)                     weight: labels that count
    the next token (causal)                       the same, labels one place later
    classes that do not exclude one another       Σ binary cross entropy               weight: labels x classes
    regression                                    Σ squared differences                weight: numbers
    start and end of an answer                    ½ Σ (−log p(start) − log p(end))     weight: rows inside the text

These are the losses of transformers' own heads; their mean over the whole batch is total/weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from jieyue.errors import InputError
from jieyue.tally import Tally
from jieyue.training.objective import IGNORED, token_loss
from jieyue.training.remedies.targets import bare, shifted_labels

from .row_losses import is_causal

__all__ = ["head_loss"]

_LABELS = ("labels", "start_positions", "end_positions")


class _Answered(Protocol):
    logits: Tensor
    start_logits: Tensor
    end_logits: Tensor


def head_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    """The objective of a transformers model with a head, from the batch that its own forward takes, labels included.

    ``InputError`` for a batch without labels, and for heads whose loss is none of the above (give an objective then).
    """
    if "labels" not in batch and "start_positions" not in batch:
        raise InputError("head_loss", f"a batch of {sorted(batch)}", "labels, or start and end positions")
    whole = bare(model)
    inputs = {name: value for name, value in batch.items() if name not in _LABELS}
    if "start_positions" in batch:
        return _span_loss(model(**inputs), batch["start_positions"], batch["end_positions"])
    labels = batch["labels"]
    if getattr(whole.config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs and labels.ndim == 2:
        inputs["decoder_input_ids"] = shifted_labels(whole, labels)
    out: _Answered = model(**inputs)
    logits = out.logits
    if labels.is_floating_point() or getattr(whole.config, "problem_type", None) == "regression":
        return _float_loss(logits, labels, getattr(whole.config, "problem_type", None))
    if is_causal(whole):
        logits, labels = logits[:, :-1], labels[:, 1:]
    if logits.shape[:-1] != labels.shape:
        found = f"{type(whole).__name__} with logits {[*out.logits.shape]} and labels {[*batch['labels'].shape]}"
        raise InputError("head_loss", found, "a label for each row of logits", "give an objective")
    return token_loss(logits, labels, IGNORED)


def _float_loss(logits: Tensor, labels: Tensor, kind: str | None) -> Tally:
    if kind == "multi_label_classification" or (kind is None and logits.ndim == 2 and logits.shape[-1] > 1):
        total = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
        return Tally(total, labels.numel())
    said = logits.squeeze(-1) if logits.ndim == labels.ndim + 1 else logits
    if said.shape != labels.shape:
        raise InputError("head_loss", f"labels {[*labels.shape]}", f"{[*said.shape]}, a number for each")
    return Tally((said - labels.to(said.dtype)).square().sum(), labels.numel())


def _span_loss(out: _Answered, start: Tensor, end: Tensor) -> Tally:
    """Half of both ends' losses; a place beyond the text counts nothing. Both ends of a row count, or none."""
    places = out.start_logits.shape[1]
    start, end = start.view(-1), end.view(-1)
    inside = [(one >= 0) & (one < places) for one in (start, end)]
    if not torch.equal(*inside):
        raise InputError("head_loss", "an answer with one end inside the text", "both ends inside or both outside")
    halves = [
        token_loss(logits, torch.where(counts, place, IGNORED))
        for logits, place, counts in zip((out.start_logits, out.end_logits), (start, end), inside, strict=True)
    ]
    return Tally(sum(half.total for half in halves) / 2, halves[0].weight)
