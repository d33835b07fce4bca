"""ALBERT with layers of its own: ``unshare(model)``, one line after ``from_pretrained``; ``reshare`` for the way back.

ALBERT applies one block L times. For fine-tuning each layer may get a copy: the outputs are the same bit for bit at that
moment, and the L copies learn apart. What is made is still transformers' ALBERT (``num_hidden_groups`` says how many
blocks there are), so ``save_pretrained`` and ``AutoModel…`` need nothing of ours.

Source: J. Su, "ALBERT unshared" (kexue.fm 7187, 2020); Lan et al. 2020 for ALBERT (arXiv 1909.11942).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from jieyue.errors import InputError

from .activations import known_mismatch
from .sharing import merge, split
from .surgery import own_config

__all__ = ["Sharing", "encoder_of", "reshare", "set_blocks", "sharing_of", "unshare"]

_RECORD = "jieyue.json"
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Sharing:
    """How an ALBERT's layers share their weights, and what that costs to keep and to train.

    ``training_bytes``: weights, gradients and AdamW's two moments; activations are the same however layers share.
    """

    num_layers: int
    num_groups: int
    num_parameters: int
    weight_bytes: int
    trained_bytes: int

    @property
    def training_bytes(self) -> int:
        return self.weight_bytes + 3 * self.trained_bytes

    @property
    def text(self) -> str:
        """For a report: "12 layers in 3 blocks"."""
        return f"{self.num_layers} layers in {self.num_groups} block{'s' if self.num_groups > 1 else ''}"


def unshare(model: Model, groups: int | None = None, *, optimizer: Any = None) -> Model:
    """Gives an ALBERT's layers blocks of their own, in place; returns the model. Outputs stay bit for bit what they were.

    ``groups``: how many blocks there will be; None = one for each layer. Layers ``i`` with the same ``⌊i·groups/L⌋`` share one.
    Any number that divides L and is a multiple of the present one. ``optimizer``: one that exists already (``accelerate``'s
    or our wrapper of it too): its states are copied with the weights.

    The gradient of a shared block is the sum of those of its copies, so each copy's is about L times smaller; Adam does
    not mind, SGD wants a larger learning rate. Cost: ``sharing_of(model, groups)``; time per step as before, but for the update.

    Refuses, with ``InputError``: models without ALBERT's shared encoder, groups that do not divide, an optimizer that holds
    the shared weights and was not named, gradients that wait for a step, models wrapped for several processes.
    """
    encoder = encoder_of(model, "unshare")
    layers, before = encoder.config.num_hidden_layers, len(encoder.albert_layer_groups)
    after = layers if groups is None else groups
    asked = f"unshare(model, groups={groups})"
    if before == layers:
        raise InputError(asked, f"{layers} layers with {layers} blocks of their own", "layers that share")
    if after not in _choices(layers, before):
        raise InputError(
            asked, f"{layers} layers in {before} blocks", f"groups one of {_listed(_choices(layers, before))}"
        )

    def put(copies: list[list[nn.Module]]) -> None:
        set_blocks(model, [block for several in copies for block in several])

    split(model, list(encoder.albert_layer_groups), after // before, put, optimizer=optimizer, asked=asked)
    wrong = known_mismatch(model)
    if wrong and vars(model).get("name_or_path") and not (Path(vars(model)["name_or_path"]) / _RECORD).is_file():
        warnings.warn(f"unshare: {wrong}: jieyue.use(model, gelu='tanh')", stacklevel=2)
    return model


def reshare(model: Model, groups: int = 1, *, optimizer: Any = None) -> Model:
    """Neighbouring blocks become their mean, in place; returns the model. Exact while they are equal, as after ``unshare``.

    ``groups``: how many blocks are left, a divisor of the present number. After training this is an approximation: the mean
    of layers that went apart is a starting point for more training. ``optimizer``: one that holds the blocks' weights goes on
    with the mean of their states; one that exists and is not named is refused, as it would train weights of no model.
    Refuses, with ``InputError``, other numbers and models without blocks.
    """
    encoder = encoder_of(model, "reshare")
    before = len(encoder.albert_layer_groups)
    allowed = [n for n in range(1, before) if before % n == 0]
    if groups not in allowed:
        found = f"{encoder.config.num_hidden_layers} layers in {before} blocks"
        expected = f"groups one of {_listed(allowed)}" if allowed else "a model that was unshared"
        raise InputError(f"reshare(model, groups={groups})", found, expected)
    blocks, many = list(encoder.albert_layer_groups), before // groups
    neighbours = [blocks[first : first + many] for first in range(0, before, many)]
    set_blocks(model, merge(neighbours, optimizer, f"reshare(model, groups={groups})"))
    return model


def sharing_of(model: nn.Module, groups: int | None = None) -> Sharing:
    """The sharing that the model has, or would have with ``groups`` blocks; nothing is copied, meta tensors will do.

    >>> from transformers import AlbertConfig, AlbertModel
    >>> small = AlbertConfig(vocab_size=8, embedding_size=4, hidden_size=8, num_hidden_layers=6, num_attention_heads=2,
    ...     intermediate_size=8, max_position_embeddings=4)
    >>> model = AlbertModel(small)
    >>> [sharing_of(model, n).num_parameters for n in (1, 3, 6)]
    [640, 1568, 2960]
    """
    encoder = encoder_of(model, "sharing_of")
    layers, before = encoder.config.num_hidden_layers, len(encoder.albert_layer_groups)
    after = before if groups is None else groups
    if after < 1 or layers % after:
        raise InputError(f"sharing_of(model, groups={groups})", f"{layers} layers", "a number that divides them")
    block = list(encoder.albert_layer_groups[0].parameters())
    own = {id(p) for p in encoder.albert_layer_groups.parameters()}
    rest = [p for p in model.parameters() if id(p) not in own]
    count = sum(p.numel() for p in rest) + after * sum(p.numel() for p in block)
    weights, trained = (
        sum(p.nbytes for p in rest if p.requires_grad or every)
        + after * sum(p.nbytes for p in block if p.requires_grad or every)
        for every in (True, False)
    )
    return Sharing(layers, after, count, weights, trained)


def encoder_of(model: nn.Module, asked: str) -> Any:
    """The one module that holds ALBERT's blocks; ``InputError`` where there is none."""
    found = [
        module for module in model.modules() if isinstance(getattr(module, "albert_layer_groups", None), nn.ModuleList)
    ]
    if len(found) != 1:
        which = f"{len(found)} encoders of ALBERT in " if found else ""
        raise InputError(
            f"{asked}(model)",
            f"{which}{type(model).__name__}",
            "an ALBERT of transformers (any head)",
            "for other modules that share one block: jieyue.hf.sharing.unshare_modules(model, path)",
        )
    return found[0]


def set_blocks(model: nn.Module, blocks: list[nn.Module]) -> None:
    """Puts these blocks in the place of the model's, and tells its configuration: a copy, as other models may have the same."""
    encoder = encoder_of(model, "set_blocks")
    listed = nn.ModuleList(blocks)
    listed.training = encoder.training
    encoder.albert_layer_groups = listed
    own_config(model, encoder).num_hidden_groups = len(blocks)


def _choices(layers: int, before: int) -> list[int]:
    return [n for n in range(before + 1, layers + 1) if layers % n == 0 and n % before == 0]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none that fits"
