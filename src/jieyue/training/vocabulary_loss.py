"""Cross entropy over a vocabulary without the logits of the whole sequence: a chunk of positions at a time. Exact.

    total = Σ_p [ log Σ_v exp z_pv − (1−ε) z_py − ε mean_v z_pv ],    z = hidden·weightᵀ + bias,    ε smoothing

A chunk's logits become its gradient in place, and go into the gradients of hidden and weight at once. So forward and backward
take the three matrix products that plain cross entropy takes, and the [P, V] logits, their softmax and their gradient
(three copies) shrink to one [C, V] chunk. Source: the idea of Liger-Kernel's fused linear cross entropy (2024).

Legend: P positions, H hidden size, V vocabulary, C positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from jieyue.errors import InputError, message
from jieyue.tally import Tally

from .microbatch import is_out_of_memory
from .objective import IGNORED

__all__ = ["model_vocabulary_loss", "vocabulary_loss"]

CHUNK_BYTES = 2**24


def vocabulary_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    ignored: int = IGNORED,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tally:
    """``token_loss(hidden @ weight.T + bias, labels)``, its logits never whole: sum over the labels that count, their number.

    ``hidden`` [..., H]; ``weight`` [V, H] (tied to the embedding or not); ``bias`` [V]; ``labels`` [...], ``ignored`` where
    nothing is asked. Cost: one [C, V] buffer of at most ``chunk_bytes`` (one position if that is larger), and the gradients
    of hidden and weight, made in the forward pass where something asks for gradients. Numbers narrower than float32 are
    summed in float32. A second derivative (``create_graph=True``, gradient penalties) is exact too, at plain memory.

    >>> tally = vocabulary_loss(torch.zeros(2, 3, 5), torch.ones(4, 5), torch.tensor([[1, 2, -100], [0, -100, -100]]))
    >>> round(float(tally.mean()), 4), int(tally.weight)
    (1.3863, 3)
    """
    if hidden.shape[:-1] != labels.shape or weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        found = f"hidden {[*hidden.shape]}, weight {[*weight.shape]}, labels {[*labels.shape]}"
        raise InputError(message("vocabulary_loss", found, "hidden [..., H], weight [V, H], labels [...]"))
    if not 0 <= smoothing < 1 or chunk_bytes < 1:
        found = f"smoothing={smoothing}, chunk_bytes={chunk_bytes}"
        raise InputError(message("vocabulary_loss", found, "smoothing from 0 to below 1, chunk_bytes of at least 1"))
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    flat = labels.flatten()
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias))
    with torch.autocast(device, enabled=False):
        total = _ChunkedLoss.apply(hidden.flatten(0, -2), weight, bias, flat, (smoothing, ignored, chunk_bytes, wanted))
    return Tally(total, (flat != ignored).sum())


def model_vocabulary_loss(
    model: Any,
    inputs: Mapping[str, Any],
    labels: Tensor,
    *,
    shift: bool = False,
    smoothing: float = 0.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tally:
    """The token loss of a language model whose logits are never made: its output layer is held back and its loss chunked.

    ``model(**inputs).logits`` would be the logits; ``labels`` [B, T]. ``shift``: position t is asked for label t+1 (causal
    models). Works for every model of transformers whose logits come straight from ``get_output_embeddings()``, tied or
    not, with a bias or without: that is checked on every call, for free, as the model must return what the held-back layer
    was given. Where forward hooks on the model read its output, the logits are made for them: the same loss at plain memory.
    Refused: models that scale, cap or add to their logits afterwards (Gemma 2, BART); use ``token_loss`` there.
    """
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    if not isinstance(head, nn.Linear):
        found = f"{type(model).__name__} with output layer {type(head).__name__}"
        raise InputError(message("model_vocabulary_loss", found, "a model whose output layer is nn.Linear"))
    if model._forward_hooks:
        logits = model(**inputs).logits
        logits, labels = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
        total = nn.functional.cross_entropy(
            logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32)),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=smoothing,
        )
        return Tally(total, (labels != IGNORED).sum())
    hidden = _held_back(model, head, inputs)
    if shift:
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    return vocabulary_loss(hidden, head.weight, labels, head.bias, smoothing=smoothing, chunk_bytes=chunk_bytes)


def _held_back(model: Any, head: nn.Linear, inputs: Mapping[str, Any]) -> Tensor:
    """What the model would hand its output layer."""
    given: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        given.append(hidden)
        return hidden

    failure = InputError(
        message(
            f"model_vocabulary_loss({type(model).__name__})",
            "logits that are changed after the output layer",
            "logits straight from it",
            "use token_loss(model(...).logits, labels)",
        )
    )
    earlier = head.__dict__.get("forward")
    head.__dict__["forward"] = keep
    try:
        logits = model(**inputs).logits
    except RuntimeError as error:
        if not given or is_out_of_memory(error):
            raise
        raise failure from error
    finally:
        if earlier is None:
            del head.__dict__["forward"]
        else:
            head.__dict__["forward"] = earlier
    same = len(given) == 1 and logits.shape == given[0].shape
    if not same or not (logits is given[0] or torch.equal(logits, given[0].to(logits.dtype))):
        raise failure
    return given[0]


class _ChunkedLoss(torch.autograd.Function):
    """(hidden [P, H], weight [V, H], bias [V] or None, labels [P]) -> total; gradients are made on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, options: Any) -> Tensor:
        smoothing, ignored, chunk_bytes, wanted = options
        asks = [wanted and asked for asked in ctx.needs_input_grad[:3]]
        sums = torch.promote_types(hidden.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden) if asks[0] else None
        grad_weight = torch.zeros_like(weight, dtype=sums) if asks[1] else None
        grad_bias = torch.zeros_like(bias, dtype=sums) if bias is not None and asks[2] else None
        total = torch.zeros((), dtype=sums, device=hidden.device)
        rows = max(1, chunk_bytes // (weight.shape[0] * sums.itemsize))
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            own = hidden[chunk]
            logits = own @ weight.T if bias is None else torch.addmm(bias, own, weight.T)
            loss, gradient = _loss_and_gradient(logits.to(sums), labels[chunk], smoothing, ignored, any(asks))
            total += loss
            if grad_hidden is not None:
                grad_hidden[chunk] = gradient.to(weight.dtype) @ weight
            if grad_weight is not None:
                grad_weight.addmm_(gradient.T, own.to(sums))
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
            del logits, gradient  # before the next chunk's are made
        ctx.smoothing, ctx.ignored = smoothing, ignored
        ctx.save_for_backward(
            hidden,
            weight,
            bias,
            labels,
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, *found = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: derivatives of this derivative are asked for, so it is made plainly
            inputs = [t if t is not None and t.requires_grad else None for t in (hidden, weight, bias)]
            total = nn.functional.cross_entropy(
                nn.functional.linear(hidden, weight, bias).to(grad.dtype),
                labels,
                ignore_index=ctx.ignored,
                reduction="sum",
                label_smoothing=ctx.smoothing,
            )
            made = iter(torch.autograd.grad(total, [t for t in inputs if t is not None], grad, create_graph=True))
            return (*(None if t is None else next(made) for t in inputs), None, None)
        unit = grad.device.type == "cpu" and (isinstance(grad, FakeTensor) or float(grad) == 1)
        if not unit:  # accumulate asks for 1, and nothing is copied; on a GPU looking would cost a wait
            found = [None if one is None else one * grad.to(one.dtype) for one in found]
        return (*found, None, None)


def _loss_and_gradient(
    logits: Tensor, labels: Tensor, smoothing: float, ignored: int, asked: bool
) -> tuple[Tensor, Tensor]:
    """(sum of the losses, ∂/∂logits); the gradient is written over the logits."""
    counted = labels != ignored
    target = torch.where(counted, labels, 0)[:, None]
    highest = logits.amax(1, keepdim=True)
    chosen = logits.gather(1, target) * (1 - smoothing)
    if smoothing:
        chosen += logits.mean(1, keepdim=True) * smoothing
    powers = logits.sub_(highest).exp_()
    normaliser = powers.sum(1, keepdim=True)
    losses = normaliser.log() + highest - chosen
    total = torch.where(counted, losses[:, 0], 0).sum()
    if asked:
        asks = counted[:, None].to(powers.dtype)
        powers.mul_(asks / normaliser)
        if smoothing:
            powers.sub_(asks * (smoothing / powers.shape[1]))
        powers.scatter_add_(1, target, asks * (smoothing - 1))
    return total, powers
