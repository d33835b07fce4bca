"""What in a batch is target, read from its labels: the contract between remedies and objectives.

    decoder-only, prefix   ``input_ids`` and ``labels`` [B, T], the label of a token is the token itself (-100: not asked);
                           the model's row t speaks of label t + 1, as in transformers
    encoder-decoder        ``labels`` [B, T] and ``decoder_input_ids`` [B, T], the labels moved one place to the right
    anything else          ``labels`` [B] or [B, T] that belong to the model's rows as they are (masked LM, classes)

A model writes (``can_generate()``, as transformers has it) or it does not; ``config.is_encoder_decoder`` tells the second kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from jieyue.errors import InputError
from jieyue.training.objective import IGNORED, Batch

__all__ = [
    "bare",
    "decoder_inputs",
    "labels_of_rows",
    "labels_per_example",
    "logits_of",
    "shifted_labels",
    "special_ids",
    "target_inputs",
]

_SPECIALS = ("pad", "bos", "eos", "sep", "cls", "mask", "decoder_start", "forced_bos", "forced_eos")


@runtime_checkable
class HasLogits(Protocol):
    """What a model with a head gives."""

    logits: Tensor


@runtime_checkable
class _ShiftsLabels(Protocol):
    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor: ...


def bare(model: nn.Module) -> nn.Module:
    """The model inside what wraps it (DDP, torch.compile)."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def labels_of_rows(model: nn.Module, batch: Batch) -> Tensor:
    """The label that each of the model's rows is held to; [B, T − 1] where rows speak of the next token, then of rows[:, :-1]."""
    return batch["labels"][:, 1:] if _speaks_of_next(model, batch) else batch["labels"]


def labels_per_example(model: nn.Module, batch: Batch) -> Tensor:
    """n_b [B], how many labels each example has."""
    labels = labels_of_rows(model, batch)
    return (labels.reshape(len(labels), -1) != IGNORED).sum(1)


def decoder_inputs(model: nn.Module, batch: Batch) -> tuple[str, Tensor]:
    """The name and the tokens [B, T] of what the decoder reads."""
    if not _is_encoder_decoder(model):
        if not _speaks_of_next(model, batch):
            raise InputError(
                "a remedy of what the decoder reads", f"{type(bare(model)).__name__}", "a model that writes"
            )
        return "input_ids", batch["input_ids"]
    given = batch.get("decoder_input_ids")
    if given is None:
        given = shifted_labels(model, batch["labels"])
    return "decoder_input_ids", given


def shifted_labels(model: nn.Module, labels: Tensor) -> Tensor:
    """The labels moved one place to the right [B, T], by the model's own method: what its decoder reads."""
    whole = bare(model)
    if not isinstance(whole, _ShiftsLabels):
        raise InputError(f"{type(whole).__name__}", "no prepare_decoder_input_ids_from_labels", "one that shifts its labels",
                "put decoder_input_ids into the batch")  # fmt: skip
    return whole.prepare_decoder_input_ids_from_labels(labels=labels)


def target_inputs(model: nn.Module, batch: Batch, tokens: Tensor, specials: Tensor) -> Tensor:
    """Where ``tokens`` (of ``decoder_inputs``) are target and no special: bool [B, T]. Source and padding have no labels."""
    asked = batch["labels"] != IGNORED
    if asked.shape != tokens.shape:
        raise InputError("labels", f"shape {[*asked.shape]}", f"{[*tokens.shape]}, that of the decoder's tokens")
    if _is_encoder_decoder(model):
        asked = nn.functional.pad(asked[:, :-1], (1, 0))
    return asked & ~torch.isin(tokens, specials)


def special_ids(model: nn.Module) -> tuple[int, ...]:
    """The special tokens that the model's configurations name; ``InputError`` where they name no end."""
    found: set[int] = set()
    ends = False
    for config in (getattr(bare(model), "config", None), getattr(bare(model), "generation_config", None)):
        for name in _SPECIALS:
            value = getattr(config, f"{name}_token_id", None)
            values = value if isinstance(value, list | tuple) else [value]
            found.update(int(one) for one in values if one is not None)
            ends |= name in ("eos", "sep") and any(one is not None for one in values)
    if not ends:
        raise InputError("special tokens", "a model that names no eos_token_id or sep_token_id", "their ids",
                "pass specials=tokenizer.all_special_ids")  # fmt: skip
    return tuple(sorted(found))


@contextmanager
def logits_of(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the ``with``: the logits of every pass through ``model``, in order."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor | HasLogits) -> None:
        logits = out.logits if isinstance(out, HasLogits) else out
        if not isinstance(logits, Tensor):
            raise InputError("a remedy of the model's logits", type(out).__name__, "an output with .logits")
        found.append(logits)

    handle = bare(model).register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(bare(model), "config", None), "is_encoder_decoder", False))


def _speaks_of_next(model: nn.Module, batch: Batch) -> bool:
    writes = getattr(bare(model), "can_generate", None)
    return batch["labels"].ndim == 2 and not _is_encoder_decoder(model) and writes is not None and bool(writes())
