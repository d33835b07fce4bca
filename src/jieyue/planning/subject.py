"""A model that is known by its configuration alone, with the plain objective of its head, as training steps.

    masked-lm        cross entropy over the vocabulary at labelled positions
    causal-lm        the same, position t asked for token t+1
    classification   cross entropy over the classes, one label a row

Nothing here reads a weight: models are fresh ones of the configuration, and under fake tensors they cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jieyue.errors import InputError, message
from jieyue.hf.depth import num_layers, with_layers
from jieyue.hf.loading import model_from_config
from jieyue.hf.optimizers import make_optimizer, optimizer_named
from jieyue.hf.trainer import training_arguments
from jieyue.hf.use import use
from jieyue.tally import Tally
from jieyue.training.accumulation import under_autocast
from jieyue.training.objective import IGNORED, token_loss
from jieyue.training.vocabulary_loss import model_vocabulary_loss

from .prediction import TrainingStep
from .setting import DTYPES, Setting

__all__ = ["OBJECTIVES", "Subject"]

OBJECTIVES = ("masked-lm", "causal-lm", "classification")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """``config``: transformers' configuration; ``head``: of ``OBJECTIVES``; ``positions``: tokens of a row, the longest."""

    config: Any
    head: str
    positions: int
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.head not in OBJECTIVES:
            raise InputError(message("head", repr(self.head), f"one of {', '.join(OBJECTIVES)}"))
        room = getattr(self.config, "max_position_embeddings", None)
        if self.positions < 1 or (isinstance(room, int) and self.positions > room):
            raise InputError(message(f"length={self.positions}", f"a model of {room} positions", f"from 1 to {room}"))

    @property
    def layers(self) -> int:
        return num_layers(self.config)

    def step(self, setting: Setting, layers: int | None = None) -> TrainingStep:
        """The update in this setting; ``layers``: of a shallower model, None = all."""
        objective = partial(_loss, self.head, setting.chunked)
        autocast = DTYPES[setting.dtype]
        options = optimizer_named(setting.optimizer).options
        arguments = training_arguments("unused", steps=1, device=self.device, **options)
        return TrainingStep(
            build_model=partial(self.build, setting.attention, layers),
            objective=objective if autocast is None else under_autocast(objective, torch.device(self.device), autocast),
            example_batch=self.example,
            make_optimizer=partial(make_optimizer, args=arguments),
            length=self.positions,
            device=self.device,
            weigh=partial(_weigh, self.head) if setting.in_backward else None,
        )

    def build(self, attention: str | None = None, layers: int | None = None) -> nn.Module:
        """A fresh model; ``attention``: a pattern in place of its own."""
        config = with_layers(self.config, self.layers if layers is None else layers)
        if hasattr(config, "use_cache"):
            config.use_cache = False
        model = model_from_config(config, self.head)
        if attention is not None:
            use(model, attention=attention)
        return model

    def example(self, rows: int, positions: int) -> dict[str, Tensor]:
        """Random tokens; the last one of every row is padding (and so there is a mask), every other one is labelled."""
        ids = torch.randint(min(10, self.config.vocab_size - 1), self.config.vocab_size, (rows, positions))
        mask = torch.ones_like(ids)
        mask[:, positions - 1 :] = positions == 1
        if self.head == "classification":
            return {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(rows, dtype=torch.long)}
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, IGNORED)}


def _weigh(head: str, batch: Mapping[str, Tensor]) -> float:
    """The labels that the loss counts."""
    labels = batch["labels"][:, 1:] if head == "causal-lm" else batch["labels"]
    return float((labels != IGNORED).sum())


def _loss(head: str, chunked: bool, model: Any, batch: Mapping[str, Tensor]) -> Tally:
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labels, shift = batch["labels"], head == "causal-lm"
    if chunked:
        return model_vocabulary_loss(model, inputs, labels, shift=shift)
    logits = model(**inputs).logits
    return token_loss(logits[:, :-1], labels[:, 1:]) if shift else token_loss(logits, labels)
