"""A batch without its padding: the rows of a batch share one long row, one behind the other, and none sees another.

    [B, L] with padding  ->  [1, Σ lengths], positions that start again, the row of each token as ``seq_idx``
    states [1, Σ lengths, D]  ->  [B, L, D], zeros where padding was

This happens on the way into the body of a model and on the way out, below its pooler and its head, so that a head, a loss and
whoever calls the model see the batch that they know. Exact where attention keeps documents apart (``attention.segments``): only an
attention of ours does. ``packing_of`` tries it on a small batch and refuses a model whose outputs would change.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jieyue.decoding.slots import BodyOutput, body_of
from jieyue.errors import InputError

from .attention import attention_of, forget_attention, remove_attention, use_attention
from .probe import TOLERATED, made_up_ids, undisturbed

__all__ = ["Packing", "packing_of"]

_Given: TypeAlias = Tensor | bool | None
_LENGTHS = (5, 3, 6)  # of the rows that it is tried on


@dataclass
class Packing:
    """How rows of ``model`` are packed. ``first_position``: of every row (RoBERTa's family begins behind its padding number);
    None where the model takes no positions. ``worn``: whether its attention became ours, ``full()``, for this alone.
    """

    model: PreTrainedModel
    first_position: int | None
    worn: bool = False

    @contextmanager
    def rows(self) -> Iterator[None]:
        """While open, every batch that the model is called with goes through its body without padding, where it has any.

        ``InputError`` for a batch that is not padded on the right, or that brings tensors of another kind.
        """
        body = body_of(self.model) or self.model
        way = _Way(self.first_position)
        handles = [body.register_forward_pre_hook(way.pack, with_kwargs=True, prepend=True)]
        pooled = getattr(body, "pooler", None) is not None and isinstance(getattr(body, "encoder", None), nn.Module)
        for module in [body.encoder, body] if pooled else [body]:
            assert isinstance(module, nn.Module)
            handles.append(module.register_forward_hook(way.unpack))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def take_off(self) -> None:
        """The attention that the model had before, where it became ours for packing."""
        if self.worn:
            remove_attention(self.model)
            self.worn = False


def packing_of(model: nn.Module) -> Packing:
    """How to pack the rows of this model; its attention becomes ours, ``full()``, unless it is ours already.

    ``InputError`` for a model that ``use`` refuses, and for one whose states change when rows share a row: one that takes
    positions by another way, or that lets tokens meet outside of attention. Cost: three forward passes of three short rows, and
    those of ``use``. The model's configuration does not tell of it.
    """
    bare = body_of(model)
    if not isinstance(model, PreTrainedModel):
        raise InputError("packed=True", type(model).__name__, "a model of transformers")
    worn = not attention_of(model)
    if worn:
        use_attention(model, "full()")
        forget_attention(model)
    try:
        return Packing(model, _first_position(model, bare or model), worn)
    except BaseException:
        if worn:
            remove_attention(model)
        raise


def _first_position(model: PreTrainedModel, body: nn.Module) -> int | None:
    """The first position under which packed rows give what padded ones do."""
    takes = inspect.signature(type(body).forward).parameters
    ids = made_up_ids(model, max(_LENGTHS) * 2)
    if ids is None or "attention_mask" not in takes:
        raise InputError("packed=True", f"{type(model).__name__} without rows of tokens", "an encoder of texts")
    lengths = torch.tensor(_LENGTHS, device=ids.device)
    rows = ids.flatten()[: len(lengths) * max(_LENGTHS)].view(len(lengths), -1)
    given = {
        "input_ids": rows,
        "attention_mask": (torch.arange(rows.shape[1], device=ids.device) < lengths[:, None]).long(),
    }
    padding = getattr(model.config, "pad_token_id", None)
    firsts = [0] if not isinstance(padding, int) else [0, padding + 1]
    kept = given["attention_mask"].bool()
    apart, reason = torch.inf, ""
    with undisturbed(model):
        expected = body(**given)[0]
        for first in firsts if "position_ids" in takes else [None]:
            try:
                with Packing(model, first).rows():
                    found = body(**given)[0]
            except (InputError, TypeError, IndexError, RuntimeError) as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            apart = float((found - expected)[kept].abs().max() / expected[kept].abs().max())
            if apart <= TOLERATED.get(expected.dtype, 0.1):
                return first
    found = reason if apart == torch.inf else f"states that change by {apart:.1e} of the largest when rows share a row"
    raise InputError(
        "packed=True", f"{type(model).__name__}: {found}", "a model that honours position_ids and documents"
    )


@dataclass
class _Way:
    """One way in and out of a body: where the tokens of the batch that is inside stood."""

    first_position: int | None
    kept: list[Tensor] = field(default_factory=list)  # bool [B, L] of the batch that is inside

    def pack(
        self, body: nn.Module, args: tuple[_Given, ...], kwargs: dict[str, _Given]
    ) -> tuple[tuple[()], dict[str, _Given]] | None:
        names = tuple(inspect.signature(type(body).forward).parameters)[1:]
        given = dict(zip(names, args, strict=False)) | kwargs
        self.kept.clear()
        mask = given.get("attention_mask")
        if not isinstance(mask, Tensor) or len(mask) < 2 or mask.ndim != 2 or bool(mask.all()):
            return None
        kept = mask.bool()
        if bool((kept[:, 1:] & ~kept[:, :-1]).any()):
            raise InputError("packed=True", "rows with padding on the left or inside", "padding on the right")
        if given.get("output_hidden_states") or given.get("use_cache"):
            raise InputError("packed=True", "output_hidden_states or use_cache", "neither: last states come back alone")
        packed: dict[str, _Given] = {}
        for name, value in given.items():
            if isinstance(value, Tensor):
                if value.shape[:2] != kept.shape:
                    raise InputError(
                        "packed=True", f"{name} of shape {[*value.shape]}", f"[{len(kept)}, {kept.shape[1]}]"
                    )
                value = value[kept][None]
            packed[name] = value
        packed["attention_mask"] = None
        row, place = kept.nonzero(as_tuple=True)
        packed["seq_idx"] = row[None]
        if self.first_position is not None and given.get("position_ids") is None:
            packed["position_ids"] = place[None] + self.first_position
        self.kept.append(kept)
        return (), packed

    def unpack(
        self, module: nn.Module, args: tuple[_Given, ...], output: Tensor | BodyOutput
    ) -> Tensor | BodyOutput | None:
        if not self.kept:
            return None
        (kept,) = self.kept
        states = output if isinstance(output, Tensor) else output[0]
        if states.shape[:2] != (1, int(kept.sum())):  # put back below the pooler already
            return None
        whole = states.new_zeros((*kept.shape, states.shape[2])).masked_scatter(kept[:, :, None], states[0])
        if isinstance(output, Tensor):
            return whole
        if isinstance(output, tuple):
            return (whole, *output[1:])
        output.last_hidden_state = whole
        return output
