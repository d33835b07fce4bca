"""``use``: the one door through which a model gets our attention and our GELU, or loses them again."""

from __future__ import annotations

import warnings
from types import EllipsisType
from typing import Any

from torch import nn

from jieyue.activations.operator import Variant
from jieyue.attention import Pattern
from jieyue.errors import InputError

from .activations import use_gelu
from .attention import FIELD, PART_FIELD, remove_attention, use_attention

__all__ = ["use"]


def use(
    model: Any,
    *,
    attention: str | Pattern | EllipsisType | None = ...,
    dropout: float | None = None,
    part: str | None = None,
    gelu: Variant | EllipsisType = ...,
) -> dict[str, str]:
    """Gives a transformers model a kind of attention, another GELU, or both, in place; ``...`` leaves a thing as it is.

    ``attention``: a pattern or its text ("local(128)+atrous(8)"); linear attention ("linear(elu)", "linear(relu,
    window=64)"); near softmax with a linear map for the rest ("local(128)+linear(elu)"); one pattern for some key-value heads and
    another for the others ("heads(0,2: full(), else: local(128))"); or a comma-separated list of such
    entries tiled over the layers ("local(64),linear(elu)"); None takes it off. It replaces self-attention over all keys;
    cross-attention stays full, and layers with a window of their own keep it unless a list names them. Padding, causality,
    scale and grouped heads are the model's; ``generate()`` keeps a cache of the size that the entry needs: linear attention
    the same at any length. ``dropout``: in the place of the model's attention dropout in training. ``gelu``: "none",
    "tanh", "tanh-minimax", … as ``jieyue.gelu`` takes it. ``part``: the path of the module whose attentions change, such as
    "language_model" of a vision-language model; the others stay, and ``generate()`` of the whole keeps our cache.

    Returns module path -> what it has now, for the report. ``save_pretrained`` keeps the choice and ``jieyue.load`` restores
    it, and so does plain transformers after ``import jieyue.hf`` (decoders and encoders; with a plain cache); without, it refuses
    such a folder with a ValueError. Each layer proves at its first
    forward pass that its attention came through here. BLOOM, MPT, Falcon and MPNet, which are outside transformers' attention
    interface, get a forward of ours for as long.

    Causality and windows are those of the masks that the model asks for. A small forward pass shows first that ``full()``
    leaves the outputs as they are. Refuses, with ``InputError`` (a ValueError), what cannot be honoured: other models
    outside the interface, models whose own eager and SDPA attention differ, position biases that are not by
    offset alone, keys chosen by an indexer, mask functions of the model's own, prepared masks, soft-capping, sinks and position
    biases under ``linear(...)``,
    ``output_attentions``, caches that are not ours or were made before the last ``use``, a list of patterns for layers that
    share one module (ALBERT). Warns where nothing changes because each layer has a window of its own, and where a pattern
    counts along the patches of a picture. Cost: six forward passes of two rows of seven tokens.
    """
    is_model = isinstance(model, nn.Module)
    if not is_model:
        raise InputError(
            "use(model)", type(model).__name__, "a model", "model, tokenizer = jieyue.load(name) gives one"
        )
    if attention is ... and gelu is ... and dropout is None:
        raise InputError("use(model): found nothing to do, expected attention=..., gelu=... or dropout=...")
    given: dict[str, str] = {}
    before = getattr(getattr(model, "config", None), FIELD, None) or ""
    if attention is None:
        if dropout is not None:
            raise InputError(
                f"use(attention=None, dropout={dropout}): expected a dropout only together with an attention"
            )
        remove_attention(model)
    elif attention is not ... or dropout is not None:
        if attention is ... and not before:
            raise InputError(
                f"use(dropout={dropout}): the model has no attention of ours, expected attention=... as well"
            )
        text = before if attention is ... else str(attention)
        if attention is ... and part is None:
            part = getattr(model.config, PART_FIELD, None)
        given |= use_attention(model, text, dropout=dropout, part=part)
        if "linear(" in text and "linear(" not in before and vars(model).get("name_or_path"):
            warnings.warn(
                f"use(attention={text!r}): this model was trained with softmax attention. Under a linear map its weights are "
                "nearly uniform until it is trained again; `jieyue verify attention` measures their entropy and the loss",
                stacklevel=2,
            )
    if gelu is not ...:
        given |= {holder.path: f"gelu {holder.kind}" for holder in use_gelu(model, gelu)}
    return given
