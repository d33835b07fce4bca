"""Each weight moves as soon as its gradient is complete, in the backward pass itself: exact, for a batch that is one piece.

    for each weight, when its gradient appears:   g/N, perhaps clipped  →  optimizer's step of that weight  →  g is freed

Gradients of at most a few layers exist at a time, for any optimizer that treats each weight alone (AdamW, Adafactor, Muon). The
norm of the whole gradient is not known before the last weight has moved; so clipping is by that of the step before, or none.
Source: torch's "optimizer step in backward"; LOMO (Lv et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from jieyue.budget import Plan
from jieyue.errors import BudgetError, InputError
from jieyue.tally import Tally

from .accumulation import backward_pieces
from .checkpointing import checkpointed
from .microbatch import MicroBatch, is_out_of_memory
from .objective import Objective, num_rows
from .ranks import Ranks
from .trained import check_whole_batch_layers

__all__ = ["ALONE", "Moves", "PreviousNorm", "moving", "step_in_backward"]

ALONE = (
    "SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adafactor", "Muon", "MuonAdamW", "Tiger",
    "AdamMini",
)  # fmt: skip
_SPOILED = "some weights have moved already: resume from a checkpoint, with smaller batches or without this"


@dataclass
class PreviousNorm:
    """Clipping by the norm of the gradient of the step before: g ← g · min(1, ``max_norm``/``norm``). None at the first step.

    Not what clipping usually is: an outlier's own step is not held, the one after it is.
    """

    max_norm: float
    norm: float | None = None

    @property
    def factor(self) -> float:
        """What this step's gradient is multiplied by."""
        return 1.0 if self.norm is None else min(1.0, self.max_norm / (self.norm + 1e-6))


class Moves:
    """Moves each weight when its gradient is there; ``share``: 1/N, known after the forward pass."""

    def __init__(self, optimizer: Optimizer, clip: PreviousNorm | None) -> None:
        self.optimizer, self.factor = optimizer, 1.0 if clip is None else clip.factor
        self.group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self.share = 1.0
        self.norms: list[float] = []

    @torch.no_grad()
    def __call__(self, parameter: Tensor) -> None:
        gradient, group = parameter.grad, self.group_of.get(id(parameter))
        if gradient is None or group is None:
            parameter.grad = None
            return
        gradient.mul_(self.share)
        wide = torch.promote_types(gradient.dtype, torch.float32)
        norm = float(torch.linalg.vector_norm(gradient, dtype=wide))
        if not math.isfinite(norm):
            raise InputError("step in backward", "a gradient that is not finite", "finite numbers", _SPOILED)
        self.norms.append(norm)
        gradient.mul_(self.factor)
        optimizer = self.optimizer
        groups, optimizer.param_groups = optimizer.param_groups, [{**group, "params": [parameter]}]
        try:
            type(optimizer).step(optimizer)
        finally:
            optimizer.param_groups, parameter.grad = groups, None


@contextmanager
def moving(model: nn.Module, moves: Moves) -> Iterator[None]:
    """Inside the ``with``, each trained weight moves when its gradient is there."""
    with ExitStack() as hooks:
        for parameter in model.parameters():
            if parameter.requires_grad:
                hooks.callback(parameter.register_post_accumulate_grad_hook(moves).remove)
        yield


def step_in_backward(
    objective: Objective,
    model: nn.Module,
    batch: Mapping[str, Tensor],
    optimizer: Optimizer,
    *,
    micro_batch: int | Plan | MicroBatch,
    clip: PreviousNorm | None = None,
) -> Tally:
    """The undivided batch's update, each weight moved in the backward pass; the batch's Tally. Exact, but for ``clip``.

    ``micro_batch`` must take the whole batch in one piece (its checkpointing and trimming are obeyed); ``optimizer``: of
    ``ALONE``. A schedule's wrapper of ``step`` is passed by, so the schedule goes on being stepped by the caller.

    Refused before anything moves: more pieces, several processes, step hooks, earlier gradients, a batch without counted
    labels, a loss that is not finite. A gradient that is not finite, and an out-of-memory in the backward pass, raise when some
    weights have moved already: resume from a checkpoint then.
    """
    micro = micro_batch if isinstance(micro_batch, MicroBatch) else MicroBatch(micro_batch)
    _check(model, batch, optimizer, micro)
    check_whole_batch_layers(model, False, (), micro.checkpointing)
    moves = Moves(optimizer, clip)

    def weighed(model: nn.Module, piece: Mapping[str, Tensor]) -> Tally:
        tally = objective(model, piece)
        _check_tally(tally)
        moves.share = 1 / float(tally.weight)
        return tally

    with moving(model, moves), checkpointed(model, micro.checkpointing):
        try:
            tally = backward_pieces(weighed, model, micro.pieces(batch)).detach()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise BudgetError(f"step in backward: {micro.rows} rows run out of memory ({error}); {_SPOILED}") from error
    if clip is not None:
        clip.norm = math.hypot(*moves.norms)
    return tally


def _check(model: nn.Module, batch: Mapping[str, Tensor], optimizer: Optimizer, micro: MicroBatch) -> None:
    asked = "step in backward"
    if len(micro.cuts(batch)) != 1:
        found = f"{num_rows(batch)} rows in pieces of {micro.rows}"
        raise InputError(asked, found, "the whole batch in one piece", "use accumulate, or update_in_backward")
    kind = type(optimizer).__name__
    if kind not in ALONE:
        raise InputError(asked, kind, f"one that treats each weight alone: {', '.join(ALONE)}")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise InputError(asked, "hooks on the optimizer's step", "none", "clip=PreviousNorm(...), or accumulate")
    if Ranks(model).world > 1:
        raise InputError(asked, "several processes", "one: their gradients are summed first", "use accumulate")
    if any(p.grad is not None for p in model.parameters()):
        raise InputError(asked, "gradients from before", "none in .grad", "optimizer.zero_grad() first")


def _check_tally(tally: Tally) -> None:
    total, weight = tally.detach().total, float(tally.weight)
    if not weight > 0:
        raise InputError("step in backward", f"a batch of weight {weight:g}", "a counted label")
    if not math.isfinite(float(total)):
        raise InputError("step in backward", f"a loss of {float(total):g}", "a finite one", "nothing has moved")
