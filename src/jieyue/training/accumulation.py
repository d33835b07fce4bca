"""Exact accumulation: the gradient of a big batch from pieces that fit, equal to the undivided batch's.

    grad = (Σ_pieces ∂ total_piece) / N,    N = Σ_pieces weight_piece

Every piece is backpropagated as a *sum*, and ``.grad`` is scaled once by 1/N. So ragged label counts, a short last piece
and any micro-batch give the same update; the mean of the pieces' means does not (transformers #47688).
Memory: one piece's activations and one gradient. Source: Su 2019 (kexue.fm/archives/6794), with its flaws removed.
"""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from jieyue.budget import Plan
from jieyue.errors import BudgetError, InputError, check_known
from jieyue.tally import Tally

from .cached_gradients import CachedGradients
from .checkpointing import checkpointed
from .microbatch import MicroBatch, RandomState, device_of, is_out_of_memory, to_device
from .objective import Batch, Objective, num_rows
from .ranks import Ranks
from .trained import check_leaves, check_whole_batch_layers

__all__ = [
    "accumulate",
    "backward_pieces",
    "gradient_norm",
    "gradients_of",
    "scale_gradients",
    "under_autocast",
]


class How(TypedDict, total=False):
    """What ``accumulate`` takes by name besides."""

    allow: Collection[str]
    non_finite: str
    backward: Callable[[Tensor], object]
    autocast: torch.dtype | None


def accumulate(
    objective: Objective,
    model: nn.Module,
    batch: Batch,
    *,
    micro_batch: int | Plan | MicroBatch | None = None,
    plan: Plan | None = None,
    **how: Unpack[How],
) -> Tally:
    """Adds the gradient of the batch's mean loss to ``.grad`` and returns the batch's Tally (plain floats, all ranks).

    ``batch``: tensors (or lists) with one entry per row; only pieces move to the model's device. ``micro_batch``: rows
    a piece, or a ``MicroBatch``, which remembers a halving for later batches; in its place ``plan``: a ``Plan``, whose checkpointing is
    obeyed. A ``MicroBatch`` can trim padding or bound tokens. Gradients that were there before stay and are added to (one copy more).

    Out of memory: the same batch is run again from its beginning with the same random state, in pieces of half the
    rows, and a warning says so; at one row ``BudgetError``. Under DDP all ranks retry together; under FSDP2, whose ranks
    wait for one another inside every pass, the error is raised as it came.

    ``non_finite``: ``"stop"`` raises ``InputError`` for a loss or gradient that is not finite, ``"skip"`` drops the
    batch's gradient with a warning (optimizers leave parameters without gradient alone) and counts it in
    ``MicroBatch.skipped``, ``"allow"`` is for GradScaler, which decides itself (``backward=lambda x: scaler.scale(x).backward()``).
    A batch without any counted label raises too, and under ``"skip"`` is left out the same way: its Tally has weight 0.

    ``autocast``: runs the objective's passes with matrix products in that dtype (``torch.bfloat16``; float16 needs a
    GradScaler). An approximation: activations take half the bytes, the update is no longer that of full precision; weights,
    gradients and their sum stay in the weights' dtype.

    Refuses with ``InputError``: a batch without counted labels; trained weights that are not the model's (they would get the
    sum in place of the mean); layers that see the whole batch (BatchNorm) or move with every pass (spectral_norm) in
    training when it is cut, unless their class name or module name is in ``allow``: the update is then an approximation.
    """
    check_known("accumulate", how, How.__annotations__)
    if not isinstance(model, nn.Module):
        raise InputError(
            "accumulate", f"a model that is {type(model).__name__}", "objective, model and batch, in this order"
        )
    wanted = plan if micro_batch is None else micro_batch
    if wanted is None or (plan is not None and micro_batch is not None):
        raise InputError("accumulate", f"micro_batch={micro_batch} and plan={plan}", "one of the two")
    micro = wanted if isinstance(wanted, MicroBatch) else MicroBatch(wanted)
    allow, non_finite, autocast = how.get("allow", ()), how.get("non_finite", "stop"), how.get("autocast")
    backward = how.get("backward", Tensor.backward)
    if non_finite not in ("stop", "skip", "allow"):
        raise InputError("non_finite", repr(non_finite), "'stop', 'skip' or 'allow'")
    ranks = Ranks(model)
    device = device_of(model)
    if autocast is not None:
        objective = under_autocast(objective, device, autocast)
    parameters = [p for p in model.parameters() if p.requires_grad]
    check_whole_batch_layers(ranks.module, micro.rows < num_rows(batch) or ranks.world > 1, allow, micro.checkpointing)
    before = [(p, p.grad) for p in parameters if p.grad is not None]
    start = RandomState(device)
    finished = False
    try:
        while True:
            _clear(parameters)
            error, tally = _attempt(objective, ranks, batch, micro, backward)
            if error is None:
                break
            if not micro.halve(int(ranks.highest([num_rows(batch)], device)[0])):
                raise BudgetError(f"accumulate: one row a piece still runs out of memory ({error})") from None
            warnings.warn(f"out of memory; the same batch again in pieces of {micro.rows} rows", stacklevel=2)
            start.restore()
        if _counts(tally, micro, non_finite):
            ranks.sum_gradients(parameters)
            scale_gradients(parameters, (ranks.world if ranks.sharded else 1) / float(tally.weight))
            finished = non_finite == "allow" or _check_finite(parameters, tally, micro, non_finite)
    finally:
        if not finished:
            _clear(parameters)
        for parameter, earlier in before:
            parameter.grad = earlier if parameter.grad is None else _joined(parameter.grad, earlier)
    return tally


def backward_pieces(
    objective: Objective,
    model: nn.Module,
    pieces: Iterable[Batch],
    backward: Callable[[Tensor], object] = Tensor.backward,
    ranks: Ranks | None = None,
) -> Tally:
    """Forward and backward of each piece, as sums; ``.grad`` then holds the sum, not yet divided. The step's whole work."""
    if isinstance(objective, CachedGradients):  # the loss sees all pieces at once, those of other ranks too
        return objective.backward_pieces(model, pieces, backward, ranks or Ranks(model))
    device = device_of(model)
    own = None if (ranks or Ranks(model)).sharded else {id(p) for p in model.parameters()}
    summed = Tally(0.0, 0)
    for piece in pieces:
        tally = objective(model, to_device(piece, device))
        if not isinstance(tally, Tally):
            raise InputError("objective", type(tally).__name__, "a Tally(total, weight)")
        total = tally.total
        if isinstance(total, Tensor) and total.requires_grad:
            if own is not None:  # the leaves of sharded weights are not the weights themselves
                check_leaves(total, own)
            backward(total)
            total = total.detach().double() if total.device.type != "mps" else total.detach()
        elif tally.weight > 0:
            raise InputError("objective", "a total without a graph", "one that depends on trained weights")
        summed = summed + Tally(total, tally.weight)
        del tally, total
    return summed


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients that exist; of a sparse one its values."""
    found = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
            found.append(parameter.grad._values() if parameter.grad.is_sparse else parameter.grad)
    return found


@torch.no_grad()
def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiplies every gradient in place."""
    for gradient in gradients_of(parameters):
        gradient.mul_(factor)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """The 2-norm of all gradients, as a Python float: finite if and only if all entries are, whatever their squares."""
    gradients = gradients_of(parameters)
    norm = _plain(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
    if math.isfinite(norm):
        return norm
    return math.hypot(*(_plain(torch.linalg.vector_norm(g, dtype=torch.float64)) for g in gradients))


def _attempt(
    objective: Objective,
    ranks: Ranks,
    batch: Batch,
    micro: MicroBatch,
    backward: Callable[[Tensor], object],
) -> tuple[str | None, Tally]:
    """One run over all pieces: (what ran out of memory on any rank or None, the tally over all ranks)."""
    device = device_of(ranks.module)
    failure, tally, missing = None, Tally(0.0, 0), 0
    if ranks.sharded:
        own = len(micro.cuts(batch))
        missing = int(ranks.highest([own], device)[0]) - own
    try:
        with checkpointed(ranks.module, micro.checkpointing):
            tally = backward_pieces(objective, ranks.module, micro.pieces(batch), backward, ranks)
            template = {name: value[:1] for name, value in batch.items()}
            backward_pieces(_weightless(objective), ranks.module, [template] * missing, backward)
        tally = tally.detach()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or ranks.sharded:
            raise
        failure = str(error).partition("\n")[0]
    if failure is not None:  # here the traceback is gone, and with it the activations its frames held
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    failed, total, weight = ranks.sum([float(failure is not None), float(tally.total), float(tally.weight)], device)
    if failed and failure is None:
        failure = "on another rank"
    return failure, Tally(total, weight)


def _weightless(objective: Objective) -> Objective:
    """The same passes, counting nothing: what a rank with fewer pieces runs so that the others need not wait."""

    def run(model: nn.Module, batch: Batch) -> Tally:
        tally = objective(model, batch)
        return Tally(tally.total * 0, tally.weight * 0)

    return run


def under_autocast(objective: Objective, device: torch.device, dtype: torch.dtype) -> Objective:
    """The objective, its passes with matrix products in ``dtype`` (bfloat16 or float16)."""
    if dtype not in (torch.bfloat16, torch.float16):
        raise InputError("autocast", str(dtype), "torch.bfloat16 or torch.float16")
    surroundings = partial(torch.autocast, device.type, dtype)
    if isinstance(objective, CachedGradients):
        return objective.within(surroundings)

    def run(model: nn.Module, batch: Batch) -> Tally:
        with surroundings():
            return objective(model, batch)

    return run


def _clear(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _check_finite(parameters: list[nn.Parameter], tally: Tally, micro: MicroBatch, non_finite: str) -> bool:
    norm = gradient_norm(parameters)
    if math.isfinite(norm) and math.isfinite(tally.total):
        return True
    found = f"loss {float(tally.mean()):g}, gradient {norm:g}"
    if non_finite == "stop":
        raise InputError("accumulate", found, "finite numbers", "lower the learning rate, or non_finite='skip'")
    micro.skipped += 1
    warnings.warn(f"{found}: this update is left out ({micro.skipped} so far)", stacklevel=3)
    return False


def _counts(tally: Tally, micro: MicroBatch, non_finite: str) -> bool:
    """Whether there is something to update with; False: left out, as ``skip`` asks."""
    if tally.weight > 0:
        return True
    found = f"a batch of weight {tally.weight}"
    if tally.weight < 0 or non_finite != "skip":
        do = "" if tally.weight < 0 else "non_finite='skip' leaves such batches out"
        raise InputError("accumulate", found, "at least one counted label", do)
    micro.skipped += 1
    warnings.warn(f"{found}: this update is left out ({micro.skipped} so far)", stacklevel=3)
    return False


@torch.no_grad()
def _joined(fresh: Tensor, earlier: Tensor) -> Tensor:
    """Their sum, in the memory of one of them: the dense one where the other is sparse."""
    if fresh.is_sparse and not earlier.is_sparse:
        return earlier.add_(fresh)
    return fresh.add_(earlier)


def _plain(number: Tensor) -> float:
    return float(number.full_tensor() if hasattr(number, "full_tensor") else number)
