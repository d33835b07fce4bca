"""Cross entropy over a vocabulary without the logits of the whole sequence: a chunk of positions at a time. Exact.

    total = Σ_p [ log Σ_v exp z_pv − (1−ε) z_py − ε mean_v z_pv ],    z = hidden·weightᵀ + bias,    ε smoothing

A chunk's logits become its gradient in place, and go into the gradients of hidden and weight at once. So forward and backward
take the three matrix products that plain cross entropy takes, and the [P, V] logits, their softmax and their gradient
(three copies) shrink to one [C, V] chunk. Source: the idea of Liger-Kernel's fused linear cross entropy (2024).

Legend: P positions, H hidden size, V vocabulary, C positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor

from jieyue.autograd import Saved
from jieyue.errors import InputError
from jieyue.tally import Tally

from .microbatch import is_out_of_memory
from .objective import IGNORED

__all__ = ["held_back", "model_vocabulary_loss", "vocabulary_loss"]

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
        raise InputError("vocabulary_loss", found, "hidden [..., H], weight [V, H], labels [...]")
    if not 0 <= smoothing < 1 or chunk_bytes < 1:
        found = f"smoothing={smoothing}, chunk_bytes={chunk_bytes}"
        raise InputError("vocabulary_loss", found, "smoothing from 0 to below 1, chunk_bytes of at least 1")
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    flat = labels.flatten()
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias))
    with torch.autocast(device, enabled=False):
        rows, asked = _asked(hidden.flatten(0, -2), flat, ignored)
        total = _ChunkedLoss.apply(rows, weight, bias, asked, (smoothing, ignored, chunk_bytes), wanted)
    return Tally(total, (flat != ignored).sum())


def _asked(hidden: Tensor, labels: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """Only the positions that something is asked at; all of them where values cannot be looked at (compiling, some traces)."""
    if hidden.is_meta or torch.compiler.is_compiling():
        return hidden, labels
    try:
        places = (labels != ignored).nonzero()[:, 0]
    except DynamicOutputShapeException:  # a plan's trace to which the labels are unknown
        return hidden, labels
    if len(places) == len(labels):
        return hidden, labels
    return hidden.index_select(0, places), labels[places]


def model_vocabulary_loss(
    model: nn.Module,
    inputs: Mapping[str, Tensor | bool],
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
        raise InputError("model_vocabulary_loss", found, "a model whose output layer is nn.Linear")
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
    hidden = held_back(model, head, inputs)
    if shift:
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    return vocabulary_loss(hidden, head.weight, labels, head.bias, smoothing=smoothing, chunk_bytes=chunk_bytes)


def held_back(model: nn.Module, head: nn.Linear, inputs: Mapping[str, Tensor | bool]) -> Tensor:
    """What the model would hand its output layer ``head``, [B, T, H]; ``InputError`` where the logits are changed after it."""
    given: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        given.append(hidden)
        return hidden

    failure = InputError(
        f"model_vocabulary_loss({type(model).__name__})",
        "logits that are changed after the output layer",
        "logits straight from it",
        "use token_loss(model(...).logits, labels)",
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
    if len(given) != 1 or not _unchanged(logits, given[0]):
        raise failure
    return given[0]


def _unchanged(logits: Tensor, given: Tensor) -> bool:
    """Whether the model returned what it was given, at most in another dtype; a trace cannot look at values, but at that."""
    if logits is given or logits.shape != given.shape:
        return logits is given
    if isinstance(logits, FakeTensor):
        return logits.dtype != given.dtype
    return torch.equal(logits, given.to(logits.dtype))


_Options: TypeAlias = tuple[float, int, int]  # smoothing, ignored, chunk_bytes


class _WithOptions(Saved, Protocol):
    options: _Options


class _ChunkedLoss(torch.autograd.Function):
    """(hidden [P, H], weight [V, H], bias [V] or None, labels [P]) -> total; gradients are made on the way forward."""

    @staticmethod
    def forward(
        ctx: _WithOptions,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        options: _Options,
        wanted: bool,
    ) -> Tensor:
        smoothing, ignored, chunk_bytes = ctx.options = options
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
    def backward(ctx: _WithOptions, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, *found = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: what was found, as something that can be differentiated again
            return (*_Derivative.apply(hidden, weight, bias, grad, labels, ctx.options, *found), None, None, None)
        unit = grad.device.type == "cpu" and (isinstance(grad, FakeTensor) or float(grad) == 1)
        if not unit:  # accumulate asks for 1, and nothing is copied; on a GPU looking would cost a wait
            found = [None if one is None else one * grad.to(one.dtype) for one in found]
        return (*found, None, None, None)


class _Derivative(torch.autograd.Function):
    """The gradients that the first pass found, times ``grad``; its own gradient in the direction a of the hidden's, by chunks:

        z' = a·weightᵀ,  D = p∘(z' − Σ_v p z'):   ∂hidden = D·weight,  ∂weight = Dᵀ·hidden + (p − y)ᵀ·a

    Directions of the weights' gradients, and any further order, go through plain cross entropy."""

    @staticmethod
    def forward(
        ctx: _WithOptions,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grad: Tensor,
        labels: Tensor,
        options: _Options,
        *found: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.options = options
        ctx.save_for_backward(hidden, weight, bias, grad, labels, found[0])
        return tuple(None if one is None else one * grad.to(one.dtype) for one in found)

    @staticmethod
    def backward(ctx: _WithOptions, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, grad, labels, found = ctx.saved_tensors
        rest = (None,) * 5
        if all(one is None for one in directions):
            return (*(None,) * 4, *rest)
        if torch.is_grad_enabled() or directions[0] is None or any(one is not None for one in directions[1:]):
            return (*_plain_second(hidden, weight, bias, grad, labels, ctx.options, directions), *rest)
        smoothing, ignored, chunk_bytes = ctx.options
        direction, sums = directions[0], torch.promote_types(hidden.dtype, torch.float32)
        factor = grad.to(sums)
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=sums)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=sums)
        rows = max(1, chunk_bytes // (weight.shape[0] * sums.itemsize))
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            own, turned, asked = hidden[chunk], direction[chunk], labels[chunk]
            logits = own @ weight.T if bias is None else torch.addmm(bias, own, weight.T)
            powers = logits.to(sums).softmax(-1)
            counted = (asked != ignored)[:, None].to(sums)
            second = (turned @ weight.T).to(sums)
            second.sub_(torch.linalg.vecdot(powers, second)[:, None]).mul_(powers).mul_(counted * factor)
            powers.scatter_add_(1, torch.where(asked != ignored, asked, 0)[:, None], counted * (smoothing - 1))
            if smoothing:
                powers.sub_(smoothing / powers.shape[1])
            powers.mul_(counted * factor)
            of_hidden[chunk] = second.to(weight.dtype) @ weight
            of_weight.addmm_(second.T, own.to(sums)).addmm_(powers.T, turned.to(sums))
            if of_bias is not None:
                of_bias += second.sum(0)
        of_grad = (direction.to(sums) * found.to(sums)).sum().to(grad.dtype)
        return (
            of_hidden,
            of_weight.to(weight.dtype),
            None if of_bias is None or bias is None else of_bias.to(bias.dtype),
            of_grad,
            *rest,
        )


def _plain_second(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    labels: Tensor,
    options: _Options,
    directions: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of Σ ⟨direction, gradient⟩ in (hidden, weight, bias, grad), by autograd; differentiable again where asked."""
    again, (smoothing, ignored, _) = torch.is_grad_enabled(), options
    with torch.enable_grad():
        leaves = [
            None if one is None else one if again and one.requires_grad else one.detach().requires_grad_()
            for one in (hidden, weight, bias, grad)
        ]
        total = nn.functional.cross_entropy(
            nn.functional.linear(*leaves[:3]).to(grad.dtype),  # type: ignore[arg-type]
            labels, ignore_index=ignored, reduction="sum", label_smoothing=smoothing,
        )  # fmt: skip
        inputs = [one for one in leaves[:3] if one is not None]
        made = torch.autograd.grad(total, inputs, leaves[3], create_graph=True)
        asked = [way for way, one in zip(directions, leaves, strict=False) if one is not None]
        inner = sum((way * one).sum() for way, one in zip(asked, made, strict=True) if way is not None)
        assert isinstance(inner, Tensor)
        wanted = [one for one in leaves if one is not None]
        found = iter(torch.autograd.grad(inner, wanted, create_graph=again, allow_unused=True))
    return [None if one is None else next(found) for one in leaves]


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
