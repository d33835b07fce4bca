"""A span head: two logits a position, where an answer starts and where it ends.

``AutoModelForQuestionAnswering`` where the family has one (BERT, ALBERT, RoBERTa, ELECTRA, ModernBERT …); elsewhere (EuroBERT:
our presets) a token classifier of the two labels "start" and "end", which is the same head under another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .types import Config

__all__ = ["LABELS", "is_span_config", "span_class", "span_config", "span_logits"]

LABELS = {0: "start", 1: "end"}


def span_class(config: Config) -> str:
    """The Auto class that a span head of this configuration has."""
    import transformers

    known = type(config) in transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING
    return "AutoModelForQuestionAnswering" if known else "AutoModelForTokenClassification"


def span_config(config: Config) -> Config:
    """The configuration with the two labels, in place; a token classifier is known by them when it comes back."""
    config.id2label, config.label2id = dict(LABELS), {name: at for at, name in LABELS.items()}
    return config


def is_span_config(config: Config) -> bool:
    """Whether a token classifier of this configuration is a span head of ours."""
    return {int(at): name for at, name in (getattr(config, "id2label", None) or {}).items()} == LABELS


def span_logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits [B, 2, L] of start and end at every position."""
    output = model(**inputs)
    start, end = getattr(output, "start_logits", None), getattr(output, "end_logits", None)
    if start is None or end is None:
        found: Tensor = output.logits.transpose(1, 2)
        return found
    return torch.stack([start, end], dim=1)
