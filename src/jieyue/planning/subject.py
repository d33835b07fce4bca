"""A model that is known by its configuration alone, with the plain objective of its head, as training steps.

    masked-lm              cross entropy over the vocabulary at labelled positions
    causal-lm              the same, position t asked for token t+1
    sequence-to-sequence   the same over the decoder's positions, as many as the encoder's
    classification         cross entropy over the classes, one label a row
    image-classification   the same; a row is an image, its ``positions`` the pixels of a side
    span                   cross entropy over the places where an answer starts and where it ends

Nothing here reads a weight: models are fresh ones of the configuration, and under fake tensors they cost nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from jieyue.errors import InputError
from jieyue.hf.depth import has_stages, layer_period, num_layers, with_layers
from jieyue.hf.loading import model_from_config
from jieyue.hf.optimizers import make_optimizer, optimizer_named
from jieyue.hf.trainer import training_arguments
from jieyue.hf.use import use
from jieyue.tally import Tally
from jieyue.training.accumulation import under_autocast
from jieyue.training.objective import IGNORED, token_loss
from jieyue.training.vocabulary_loss import model_vocabulary_loss

from .alike import fewest_layers, told_by
from .depths import Depth
from .prediction import TrainingStep
from .setting import DTYPES, Setting

if TYPE_CHECKING:
    from jieyue.hf.depth import PretrainedConfig

__all__ = ["OBJECTIVES", "VOCABULARY_HEADS", "Subject"]

VOCABULARY_HEADS = ("masked-lm", "causal-lm", "sequence-to-sequence")
OBJECTIVES = (*VOCABULARY_HEADS, "classification", "image-classification", "span")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """``config``: transformers' configuration; ``head``: of ``OBJECTIVES``; ``positions``: tokens of a row, the longest.
    ``depths``: by the attention that was asked for, how the whole model is told by a few layers."""

    config: PretrainedConfig
    head: str
    positions: int
    device: str = "cpu"
    depths: dict[str | None, Depth] = field(init=False, default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.head not in OBJECTIVES:
            raise InputError("head", repr(self.head), f"one of {', '.join(OBJECTIVES)}")
        room = None if self.head == "image-classification" else getattr(self.config, "max_position_embeddings", None)
        if self.positions < 1 or (isinstance(room, int) and self.positions > room):
            raise InputError(f"length={self.positions}", f"a model of {room} positions", f"from 1 to {room}")

    @property
    def layers(self) -> int:
        """Layers that are alike; 1 for a model in stages, which is never cut."""
        return 1 if has_stages(self.config) else num_layers(self.config)

    def step(self, setting: Setting, layers: int | None = None) -> TrainingStep:
        """The update in this setting; ``layers``: of a shallower model, None = all."""
        objective = partial(_loss, self.head, setting.chunked)
        autocast = DTYPES[setting.dtype]
        options = optimizer_named(setting.optimizer).options
        arguments = training_arguments("unused", steps=1, device=self.device, **options)
        step = TrainingStep(
            build_model=partial(self.build, setting.attention, layers),
            objective=objective if autocast is None else under_autocast(objective, torch.device(self.device), autocast),
            example_batch=self.example,
            make_optimizer=partial(make_optimizer, args=arguments),
            length=self.positions,
            device=self.device,
            weigh=partial(_weigh, self.head) if setting.in_backward else None,
            in_backward=setting.moving,
        )
        depth = self._depth(setting) if layers is None else None
        return step if depth is None else told_by(step, depth)

    def _depth(self, setting: Setting) -> Depth | None:
        """How the whole model's costs are told by a few layers; None where it has few, or two stacks of them."""
        layers = self.layers
        if getattr(self.config, "is_encoder_decoder", False) or has_stages(self.config):
            return None
        period = layer_period(self.config, setting.attention)
        shallow = fewest_layers(layers, period)
        if 2 * shallow > layers:
            return None
        if setting.attention not in self.depths:
            build = partial(self.build, setting.attention)
            self.depths[setting.attention] = Depth(layers=layers, period=period, shallow=shallow, build=build)
        kind = (setting.optimizer, setting.in_backward, setting.moving)
        return replace(self.depths[setting.attention], kind=kind)

    def build(self, attention: str | None = None, layers: int | None = None) -> nn.Module:
        """A fresh model; ``attention``: a pattern in place of its own; ``layers``: the first ones alone."""
        config = copy.deepcopy(self.config) if layers in (None, self.layers) else with_layers(self.config, layers)
        if hasattr(config, "use_cache"):
            config.use_cache = False
        if self.head == "classification" and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = 0  # decoders look for the last token that is none
        model = model_from_config(config, self.head)
        if attention is not None:
            use(model, attention=attention)
        return model

    def example(self, rows: int, positions: int) -> dict[str, Tensor]:
        """Random tokens; the last one of every row is padding (and so there is a mask), every other one is labelled."""
        one_each = torch.zeros(rows, dtype=torch.long)
        if self.head == "image-classification":
            channels = getattr(self.config, "num_channels", 3)
            return {"pixel_values": torch.zeros(rows, channels, positions, positions), "labels": one_each}
        vocabulary = self.config.get_text_config().vocab_size
        ids = torch.randint(min(10, vocabulary - 1), vocabulary, (rows, positions))
        mask = torch.ones_like(ids)
        mask[:, positions - 1 :] = positions == 1
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.head == "classification":
            return batch | {"labels": one_each}
        if self.head == "span":
            return batch | {"labels": torch.zeros(rows, 2, dtype=torch.long)}
        if self.head == "sequence-to-sequence":
            batch |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        return batch | {"labels": torch.where(mask == 1, ids, IGNORED)}


def _weigh(head: str, batch: Mapping[str, Tensor]) -> float:
    """The labels that the loss counts."""
    labels = batch["labels"][:, 1:] if head == "causal-lm" else batch["labels"]
    return float((labels != IGNORED).sum())


def _loss(head: str, chunked: bool, model: nn.Module, batch: Mapping[str, Tensor]) -> Tally:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels, shift = batch["labels"], head == "causal-lm"
    if chunked:
        return model_vocabulary_loss(model, inputs, labels, shift=shift)
    output = model(**inputs)
    if head == "span":
        start, end = output.start_logits, output.end_logits
        return token_loss(start, labels[:, 0]) + token_loss(end, labels[:, 1])
    return token_loss(output.logits[:, :-1], labels[:, 1:]) if shift else token_loss(output.logits, labels)
