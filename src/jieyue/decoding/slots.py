"""Logits at some positions only: the vocabulary head is applied to the answer slots, not to the whole sequence.

A masked-LM head works on each position alone, so slicing the hidden states before it gives the same logits, for
A / N of the head's time and memory (V is often larger than everything else).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeAlias

import numpy
import torch
from torch import Tensor, nn

from jieyue.errors import InputError

__all__ = ["BodyOutput", "body_of", "logits_at", "narrowed", "positions_of", "slot_logits", "slot_probabilities"]


class _ModelOutput(Protocol):
    last_hidden_state: Tensor

    def __getitem__(self, place: int, /) -> Tensor: ...


BodyOutput: TypeAlias = tuple[Tensor, ...] | _ModelOutput


def body_of(model: nn.Module) -> nn.Module | None:
    """The encoder below the head, found through wrappers (DDP, torch.compile); None where there is none to be seen."""
    for wrapper in ("_orig_mod", "module", "_orig_mod"):
        model = getattr(model, wrapper, model)
    body = getattr(model, "base_model", None)
    return body if isinstance(body, nn.Module) and body is not model else None


def slot_logits(model: nn.Module, inputs: Mapping[str, Tensor | bool], first: int, num_slots: int) -> Tensor:
    """``model(**inputs).logits[:, first:first + num_slots]`` [B, A, V], the head computed there only where possible.

    Possible for every model with a ``base_model`` whose first output the head reads (all of transformers' masked-LM
    classes): its output is narrowed on the way to the head. Otherwise the full logits are computed and sliced.
    Exact up to the order of sums inside the head's matrix product. Safe beside other threads that use the same model.
    """
    return _narrowed_logits(model, inputs, lambda states: states[:, first : first + num_slots], num_slots)


def logits_at(model: nn.Module, inputs: Mapping[str, Tensor | bool], places: Tensor) -> Tensor:
    """Logits [B, M, V] at ``places`` [B, M] of each row, the head computed there only where possible: see ``slot_logits``."""

    def pick(states: Tensor) -> Tensor:
        return states.gather(1, places[:, :, None].expand(-1, -1, states.shape[2]))

    return _narrowed_logits(model, inputs, pick, places.shape[1])


@contextmanager
def narrowed(model: nn.Module, length: int, pick: Callable[[Tensor], Tensor]) -> Iterator[list[bool]]:
    """While open, what the body of ``model`` gives for ``length`` positions is ``pick``ed on its way to the head.

    Gives a list that is empty as long as that did not happen (a model without a body that can be seen).
    """
    body, own_thread = body_of(model), threading.get_ident()
    picked: list[bool] = []

    def narrow(module: nn.Module, arguments: tuple[Tensor, ...], output: BodyOutput) -> BodyOutput:
        if threading.get_ident() != own_thread:
            return output
        hidden = output[0]
        if not isinstance(hidden, Tensor) or hidden.ndim != 3 or hidden.shape[1] != length:
            return output
        picked.append(True)
        if isinstance(output, tuple):
            return (pick(hidden), *output[1:])
        output.last_hidden_state = pick(hidden)
        return output

    handle = body.register_forward_hook(narrow) if body is not None else None
    try:
        yield picked
    finally:
        if handle is not None:
            handle.remove()


def _narrowed_logits(
    model: nn.Module, inputs: Mapping[str, Tensor | bool], pick: Callable[[Tensor], Tensor], count: int
) -> Tensor:
    tokens = inputs["input_ids"]
    assert isinstance(tokens, Tensor)
    length = tokens.shape[1]
    with narrowed(model, length, pick) as picked:
        logits: Tensor = model(**inputs).logits
    if not picked and logits.ndim == 3 and logits.shape[1] == length:
        return pick(logits)
    if logits.shape[1] != count:
        raise InputError(
            "slot_logits(model)",
            f"logits of shape {list(logits.shape)} for {length} positions",
            f"[B, {length}, V], one row of logits for every position",
            "use a masked language model",
        )
    return logits


def slot_probabilities(model: nn.Module, inputs: Mapping[str, Tensor], first: int, num_slots: int) -> numpy.ndarray:
    """P [B, A, L] (float32, on the host): at each slot, the probability of the token that stands at each input position.

    The full softmax over the vocabulary, of which only the L tokens that the input holds leave the device: a passage's
    own tokens and [SEP] are all that a constrained reader asks for. Cost: the logits, and B·A·L gathered numbers.
    """
    logits = slot_logits(model, inputs, first, num_slots)
    tokens = inputs["input_ids"][:, None, :].expand(-1, num_slots, -1)
    probabilities: numpy.ndarray = (
        logits.log_softmax(dim=-1, dtype=torch.float32).gather(-1, tokens).exp().cpu().numpy()
    )
    return probabilities


def positions_of(model: nn.Module) -> int | None:
    """How many tokens a row may have; None where the model sets no limit.

    The rows of the position table, less those that RoBERTa's family keeps for padding; without a table (rotary and
    relative positions) what the configuration says, times the factor of dynamic rotary positions, which leave the trained
    length in it.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    config = getattr(model, "config", None)
    positions, rope = (getattr(config, name, None) for name in ("max_position_embeddings", "rope_parameters"))
    stretched = rope["factor"] if rope and rope.get("rope_type") == "dynamic" else 1
    return int(positions * stretched) if positions else None
