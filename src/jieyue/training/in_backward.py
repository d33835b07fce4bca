"""Updates folded into the backward pass: a gradient goes into the optimizer's moments as it appears, and is freed at once.

    SGD with momentum    v ← μ·v + Σ_pieces g/N,   w ← w − η·v            exact: v is linear in the gradient
    Tiger                the same for its momentum, and w moves by its sign                  exact
    Adam                 m ← β₁·m + (1−β₁)·Σ g/N,  s ← β₂·s + (1−β₂)·Σ (g/N)²       approximate: Adam squares the sum

So no gradient of the model ever exists, only that of the layer whose backward pass runs: a whole copy of the weights less
than accumulation needs. The price is that N must be known before the first piece, and that nothing can be taken back.
Where the batch is a single piece, ``weightwise.step_in_backward`` is exact for every optimizer that treats each weight alone.
Source: the idea of LOMO (Lv et al. 2023) for SGD; AdamA (Zhang et al. 2023, arXiv 2305.19982) for Adam.
"""

from __future__ import annotations

import math
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from jieyue.budget import Plan
from jieyue.errors import BudgetError, InputError
from jieyue.tally import Tally

from .accumulation import backward_pieces
from .checkpointing import checkpointed
from .microbatch import MicroBatch, is_out_of_memory
from .objective import Batch, Objective, num_rows
from .parameter_groups import Group
from .ranks import Ranks
from .tiger import MOMENTUM, Tiger
from .trained import check_whole_batch_layers

__all__ = ["Folding", "update_in_backward", "update_in_backward_approx"]


def update_in_backward(
    objective: Objective,
    model: nn.Module,
    batch: Batch,
    optimizer: SGD | Tiger,
    *,
    weight: float,
    micro_batch: int | Plan | MicroBatch,
) -> Tally:
    """``accumulate`` and ``optimizer.step()`` for SGD with momentum and for Tiger, without a gradient buffer. Exact.

    ``weight``: N, what the whole batch counts (labels), known beforehand as the division happens on the way; a batch that
    counts anything else raises ``InputError``. The momentum is torch's own, so ordinary steps may follow or come before.

    Refused, with the reason: momentum 0 and Nesterov (the update needs the gradient itself, not only v), step hooks on the
    optimizer (clipping needs the whole gradient before any of it is used), several processes, sparse gradients, earlier
    gradients in ``.grad``. Out of memory cannot be retried, nor a non-finite gradient left out, since the momentum has
    moved by then: both raise, weights as before, and the momentum has to come from a checkpoint.
    """
    _check_kind(optimizer, (SGD, Tiger))
    for group in optimizer.param_groups if isinstance(optimizer, SGD) else ():
        found = "momentum=0" if not group["momentum"] else "nesterov=True" if group["nesterov"] else ""
        if found:
            allowed = "momentum above 0, without Nesterov: the update is then a function of the momentum alone"
            raise InputError("update_in_backward", found, allowed, "use accumulate")
    return _update(objective, model, batch, optimizer, weight, micro_batch)


def update_in_backward_approx(
    objective: Objective,
    model: nn.Module,
    batch: Batch,
    optimizer: Adam | AdamW,
    *,
    weight: float,
    micro_batch: int | Plan | MicroBatch,
) -> Tally:
    """``accumulate`` and ``optimizer.step()`` for Adam and AdamW without a gradient buffer. An approximation (AdamA).

    The first moment is exact; the second sums the squares of the pieces' gradients in place of the square of their sum, so
    it depends on the micro-batch (with one piece the update is Adam's) and steps come out larger where pieces agree.
    Arguments and refusals as in ``update_in_backward``; refused too: amsgrad, and Adam's weight decay (AdamW's is fine).
    """
    _check_kind(optimizer, (Adam, AdamW))
    for group in optimizer.param_groups:
        coupled = group["weight_decay"] and not group.get("decoupled_weight_decay", isinstance(optimizer, AdamW))
        found = "amsgrad=True" if group["amsgrad"] else "Adam with weight_decay" if coupled else ""
        if found:
            raise InputError("update_in_backward_approx", found, "Adam without it, or AdamW", "use accumulate")
    return _update(objective, model, batch, optimizer, weight, micro_batch)


class _Momentum:
    """SGD's velocity, fed piece by piece. ``begin`` once per weight and update, ``add`` per piece, ``finish`` moves it."""

    def __init__(self) -> None:
        self.undamped: set[Tensor] = set()

    def begin(self, parameter: Tensor, group: Group, state: dict[str, Tensor]) -> None:
        velocity = state.get("momentum_buffer")
        if velocity is None:  # the first velocity is the gradient itself, undamped
            state["momentum_buffer"] = torch.zeros_like(parameter).add_(parameter, alpha=group["weight_decay"])
            self.undamped.add(parameter)
        else:
            velocity.mul_(group["momentum"])
            velocity.add_(parameter, alpha=group["weight_decay"] * (1 - group["dampening"]))

    def add(self, parameter: Tensor, gradient: Tensor, group: Group, state: dict[str, Tensor], share: float) -> None:
        sign = -1 if group["maximize"] else 1
        damped = 1 if parameter in self.undamped else 1 - group["dampening"]
        state["momentum_buffer"].add_(gradient, alpha=sign * damped * share)

    def finish(self, parameter: Tensor, group: Group, state: dict[str, Tensor]) -> None:
        parameter.add_(state["momentum_buffer"], alpha=-float(group["lr"]))


class _Moments:
    """Adam's two moments, the second of the pieces' squares."""

    def begin(self, parameter: Tensor, group: Group, state: dict[str, Tensor]) -> None:
        if not state:
            device = parameter.device if group["fused"] or group["capturable"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        first, second = group["betas"]
        state["step"] += 1
        state["exp_avg"].mul_(first)
        state["exp_avg_sq"].mul_(second)

    def add(self, parameter: Tensor, gradient: Tensor, group: Group, state: dict[str, Tensor], share: float) -> None:
        first, second = group["betas"]
        sign = -1 if group["maximize"] else 1
        state["exp_avg"].add_(gradient, alpha=sign * (1 - first) * share)
        state["exp_avg_sq"].addcmul_(gradient, gradient, value=(1 - second) * share * share)

    def finish(self, parameter: Tensor, group: Group, state: dict[str, Tensor]) -> None:
        rate, (first, second), step = float(group["lr"]), group["betas"], float(state["step"])
        parameter.mul_(1 - rate * group["weight_decay"])
        root = (state["exp_avg_sq"].sqrt() / math.sqrt(1 - second**step)).add_(group["eps"])
        parameter.addcdiv_(state["exp_avg"], root, value=-rate / (1 - first**step))


class _Sign:
    """Tiger's momentum, fed piece by piece."""

    def __init__(self, optimizer: Tiger) -> None:
        self.optimizer = optimizer

    def begin(self, parameter: Tensor, group: Group, state: dict[str, Tensor]) -> None:
        self.optimizer.decay(parameter, group["beta"])

    def add(self, parameter: Tensor, gradient: Tensor, group: Group, state: dict[str, Tensor], share: float) -> None:
        self.optimizer.state[parameter][MOMENTUM].add_(gradient, alpha=(1 - group["beta"]) * share)

    def finish(self, parameter: Tensor, group: Group, state: dict[str, Tensor]) -> None:
        self.optimizer.move(parameter, group["lr"], group["weight_decay"])


def _rule_of(optimizer: Optimizer) -> _Momentum | _Moments | _Sign:
    if isinstance(optimizer, Tiger):
        return _Sign(optimizer)
    return _Momentum() if isinstance(optimizer, SGD) else _Moments()


class Folding:
    """One update under way: inside the ``with``, each gradient goes into the moments times 1/``weight`` and is freed.

    ``finish()`` then moves the weights. ``optimizer``: SGD with momentum, Tiger (exact) or Adam (approximate), as the functions
    above check.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, weight: float) -> None:
        self.rule = _rule_of(optimizer)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
        self.state_of = optimizer.state
        self.share = 1 / weight
        self.touched: dict[Tensor, None] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> Folding:
        for parameter in self.trained:
            self._hooks.callback(parameter.register_post_accumulate_grad_hook(self._fold).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    @torch.no_grad()
    def begin(self, parameter: Tensor) -> None:
        """What happens once a weight and update, before its first gradient."""
        self.touched[parameter] = None
        self.rule.begin(parameter, self.group_of[parameter], self.state_of[parameter])

    @torch.no_grad()
    def _fold(self, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None or parameter not in self.group_of:
            return
        if gradient.is_sparse:
            raise InputError("update in backward", "a sparse gradient", "dense ones", "use sparse=False")
        if parameter not in self.touched:
            self.begin(parameter)
        self.rule.add(parameter, gradient, self.group_of[parameter], self.state_of[parameter], self.share)

    def finite(self) -> bool:
        """Whether all moments are."""
        moments = (value for p in self.touched for value in self.state_of[p].values() if isinstance(value, Tensor))
        return all(bool(torch.isfinite(value).all()) for value in moments)

    @torch.no_grad()
    def finish(self) -> None:
        for moved in self.touched:
            self.rule.finish(moved, self.group_of[moved], self.state_of[moved])


def _update(
    objective: Objective,
    model: nn.Module,
    batch: Batch,
    optimizer: Optimizer,
    weight: float,
    micro_batch: int | Plan | MicroBatch,
) -> Tally:
    micro = micro_batch if isinstance(micro_batch, MicroBatch) else MicroBatch(micro_batch)
    _check(model, optimizer, weight)
    check_whole_batch_layers(model, micro.rows < num_rows(batch), (), micro.checkpointing)
    folding = Folding(model, optimizer, weight)
    with folding, checkpointed(model, micro.checkpointing):
        try:
            tally = backward_pieces(objective, model, micro.pieces(batch)).detach()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise BudgetError(
                f"update in backward: pieces of {micro.rows} rows run out of memory ({str(error).partition(chr(10))[0]});"
                " found momentum that has moved already; resume from a checkpoint with a smaller micro_batch"
            ) from error
    _check_afterwards(tally, weight, folding)
    folding.finish()
    return tally


def _check_kind(optimizer: Optimizer, kinds: tuple[type[Optimizer], ...]) -> None:
    if type(optimizer) not in kinds:
        torchs = " or ".join(kind.__name__ for kind in kinds if kind is not Tiger)
        allowed = f"torch.optim's {torchs} itself" + (", or jieyue's Tiger" if Tiger in kinds else "")
        raise InputError("update in backward", type(optimizer).__name__, allowed, "use accumulate")


def _check(model: nn.Module, optimizer: Optimizer, weight: float) -> None:
    asked = "update in backward"
    if not 0 < weight < math.inf:
        raise InputError(asked, f"weight={weight}", "the number of labels of the whole batch, counted first")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        found = "hooks on the optimizer's step"
        raise InputError(asked, found, "none: clipping needs the whole gradient at once", "use accumulate")
    if Ranks(model).world > 1:
        raise InputError(asked, "several processes", "one: their gradients are summed first", "use accumulate")
    if any(p.grad is not None for p in model.parameters()):
        raise InputError(asked, "gradients from before", "none in .grad", "optimizer.zero_grad() first")


def _check_afterwards(tally: Tally, weight: float, folding: Folding) -> None:
    spoiled = "the weights are as before, but the optimizer's state has moved; resume from a checkpoint"
    if tally.weight != weight:
        raise InputError("update in backward", f"a batch of weight {tally.weight}", f"weight={weight}", spoiled)
    if not math.isfinite(tally.total) or not folding.finite():
        found = f"loss {float(tally.mean()):g} or a gradient that is not finite"
        raise InputError("update in backward", found, "finite numbers", spoiled)
