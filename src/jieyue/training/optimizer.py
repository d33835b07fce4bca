"""A big batch for any optimizer in one line: ``AccumulatedOptimizer(AdamW(...), steps=10)`` updates on every tenth step.

    update = inner(Σ grad / divisor),    divisor = micro-steps of the window, or Σ weight

Exact: the inner optimizer sees the undivided batch's gradient once per window, so its moments, bias corrections, weight
decay and clipping count updates and nothing else. The article's optimizer (Su 2019, kexue.fm/archives/6794) ran the inner
update on every micro-step with the learning rate set to 0: momentum went on moving the weights, so SGD with momentum 0.9
and n = 4 went 3.4 times too far; its clipping was bypassed, its last window lost, and bert4keras's counted micro-steps for
Adam's bias correction. None of that is here.
"""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from jieyue.errors import InputError

from .accumulation import gradient_norm, scale_gradients
from .overstepping import Watch, holders
from .parameter_groups import Closure, Group, computed_again

__all__ = ["AccumulatedOptimizer"]

Kept: TypeAlias = dict[str, Any]  # what a state_dict holds, by name
_WINDOW = "window"  # our key in the state_dict, beside torch's "state" and "param_groups"


class AccumulatedOptimizer(Optimizer):
    """An optimizer whose ``step()`` is called on every micro-batch and updates on every ``steps``-th.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(()))
    >>> optimizer = AccumulatedOptimizer(torch.optim.SGD([weight], lr=1.0), steps=2)
    >>> for target in (1.0, 3.0, 5.0):
    ...     (weight - target).square().backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> weight.item(), optimizer.updates, optimizer.flush(), weight.item()
    (4.0, 1, True, 6.0)

    ``steps``: micro-steps of a window; a number, a schedule ``{update: steps}`` with an entry for update 0, or a function
    of the update's number. ``flush()`` updates with what a started window holds (at the end of the data) and tells whether
    there was something. ``updated`` tells whether the last ``step()`` or ``flush()`` changed the weights.

    Losses are means by default, and the update divides by the micro-steps since the last one. Where micro-batches count
    different numbers of labels, backpropagate the *sum* and call ``step(weight=labels)``: it divides by Σ weight.
    ``max_grad_norm``: clips the divided gradient, once per update (clipping ``.grad`` yourself would clip a running sum).
    ``schedule``: a learning-rate scheduler on this or the inner optimizer, stepped after each update and saved with us;
    or step it yourself ``if optimizer.updated:``. One that is stepped more often than updates happen is warned of.
    ``non_finite``: ``"stop"`` raises ``InputError`` for a gradient that is not finite, ``"skip"`` leaves the window out with
    a warning and counts it in ``skipped``. ``GradScaler`` works as with any optimizer (``scaler.step(optimizer)`` and
    ``scaler.update()`` on every micro-step; its scale may change inside a window): a window in which any micro-batch
    overflowed is left out whole and counted. That path keeps the sum beside ``.grad``, one gradient more.

    ``param_groups`` and ``state`` are the inner optimizer's own, so schedulers and tools work on either. ``zero_grad()``
    inside a window does nothing, the sum lives in ``.grad`` (no second copy); ``model.zero_grad()`` there is made good.
    Step hooks run on every micro-step here, on every update at ``optimizer.optimizer``. ``state_dict()`` holds the gradient
    so far, so a run resumes inside a window; the inner optimizer's own state_dict is accepted too.

    ``train()`` and ``eval()`` are passed on to an inner optimizer that has them (schedule-free ones, whose weights in
    evaluation are others than in training); call them inside a window too.

    Refuses LBFGS and others that need a closure: they evaluate the loss of the whole batch several times per update.
    Under DDP every micro-batch is synchronised and ranks are averaged; for ragged ranks use ``accumulate``.
    """

    _step_supports_amp_scaling = True  # GradScaler hands us grad_scale and found_inf, and leaves the decision to us

    def __init__(
        self,
        optimizer: Optimizer,
        steps: int | Mapping[int, int] | Callable[[int], int],
        *,
        schedule: LRScheduler | None = None,
        max_grad_norm: float | None = None,
        non_finite: str = "stop",
    ) -> None:
        _check_inner(optimizer)
        if isinstance(schedule, ReduceLROnPlateau):
            raise InputError("schedule", "ReduceLROnPlateau", "a schedule of updates", "step it with its metric")
        if non_finite not in ("stop", "skip"):
            raise InputError("non_finite", repr(non_finite), "'stop' or 'skip'")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise InputError("max_grad_norm", str(max_grad_norm), "more than 0, or None")
        if isinstance(steps, Mapping) and 0 not in steps:
            raise InputError("steps", f"a schedule {dict(steps)}", "an entry for update 0")
        self.optimizer, self.steps, self.schedule = optimizer, steps, schedule
        self.max_grad_norm, self.non_finite = max_grad_norm, non_finite
        self.updates = self.skipped = 0
        self.updated = False
        self._held: dict[Tensor, Tensor] = {}
        self._counted, self._weight = 0, 0.0
        self._weighted: bool | None = None
        self._scaled: bool | None = None
        self._overflowed = False
        self._watch = Watch()
        # torch's own constructor would make a second state; this is the part that sets up hooks
        self.__setstate__({"defaults": dict(optimizer.defaults)})
        _steps_at(steps, 0)

    @property
    def param_groups(self) -> list[Group]:  # type: ignore[override]
        return self.optimizer.param_groups

    @property
    def state(self) -> defaultdict[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        return self.optimizer.state

    @property
    def pending(self) -> int:
        """Micro-steps since the last update."""
        return self._counted

    def step(  # type: ignore[override]
        self, closure: Closure | None = None, *, weight: float | Tensor | None = None
    ) -> float | None:
        """Counts one micro-step, and updates when the window is full. ``weight``: what its loss is a sum over."""
        self._watch.look((self, self.optimizer), self.updates)
        self._check_accelerate()
        loss = computed_again(closure)
        self._count(weight)
        self._absorb()
        self.updated = False
        if self._counted >= _steps_at(self.steps, self.updates):
            self._update()
        return loss

    def flush(self) -> bool:
        """Updates with the micro-steps since the last update, fewer than ``steps``; False when there are none."""
        self.updated = False
        if self._counted:
            self._update()
        return self.updated

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients between windows; inside one it does nothing, as they hold its sum."""
        if not self._counted:
            self.optimizer.zero_grad(set_to_none)

    def train(self) -> None:
        """Before training goes on, for an inner optimizer that has modes; others do nothing."""
        self._switch("train")

    def eval(self) -> None:
        """Before evaluating or saving, for an inner optimizer that has modes; others do nothing."""
        self._switch("eval")

    def _switch(self, mode: str) -> None:
        change = getattr(self.optimizer, mode, None)
        if callable(change):
            change()

    def _check_accelerate(self) -> None:
        """Refuses to be counted twice: accelerate, told to accumulate, calls ``step`` on every k-th micro-batch alone."""
        states = sys.modules.get("accelerate.state")
        if self._counted or states is None or states.GradientState().num_steps == 1:
            return
        if any(type(one).__name__ == "AcceleratedOptimizer" for one in holders(self)):
            found = f"accelerate with gradient_accumulation_steps={states.GradientState().num_steps} around it"
            do = "Accelerator(gradient_accumulation_steps=1), or the bare optimizer under accelerate"
            raise InputError("AccumulatedOptimizer", found, "one of the two that counts micro-steps", do)

    def add_param_group(self, param_group: Group) -> None:
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> Kept:
        """The inner optimizer's, and under ``"window"`` the counts and the gradient so far (by parameter number)."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        number: dict[Tensor, int] = {parameter: index for index, parameter in enumerate(self._parameters())}
        window: Kept = {
            "updates": self.updates,
            "skipped": self.skipped,
            "counted": self._counted,
            "weight": self._weight,
            "weighted": self._weighted,
            "scaled": self._scaled,
            "overflowed": self._overflowed,
            "gradients": {number[parameter]: gradient for parameter, gradient in self._held.items()},
        }
        if self.schedule is not None:
            window["schedule"] = self.schedule.state_dict()
        found: Kept = {**self.optimizer.state_dict(), _WINDOW: window}
        for post in self._optimizer_state_dict_post_hooks.values():
            changed = post(self, found)
            found = found if changed is None else changed
        return found

    def load_state_dict(self, state_dict: Kept) -> None:
        found = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, found)
            found = found if changed is None else changed
        window = found.pop(_WINDOW, None)
        self.optimizer.load_state_dict(found)
        self._drop()
        self.updates = self.skipped = 0
        self._watch = Watch()
        if window is not None:
            self._load_window(window)
        for post in self._optimizer_load_state_dict_post_hooks.values():
            post(self)

    def __getstate__(self) -> Kept:
        kept = {name: value for name, value in self.__dict__.items() if name != "step" and "_hooks" not in name}
        return kept | {"_watch": Watch()}

    def __repr__(self) -> str:
        steps = self.steps if isinstance(self.steps, int | Mapping) else "a function of the update"
        return f"AccumulatedOptimizer(steps={steps}, {self.optimizer!r})"

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _count(self, weight: float | Tensor | None) -> None:
        weighted = weight is not None
        if self._weighted not in (None, weighted):
            raise InputError("step", "some steps of a window with weight= and some without", "all of one kind")
        value = 1.0 if weight is None else float(weight)
        if not 0 <= value < math.inf:
            raise InputError("step", f"weight={value}", "a finite number of labels, 0 or more")
        self._weighted = weighted
        self._counted, self._weight = self._counted + 1, self._weight + value

    @torch.no_grad()
    def _absorb(self) -> None:
        """Makes ``_held`` the window's sum. Without a GradScaler it is what ``.grad`` holds; with one it is kept apart."""
        overflow, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        scaled = overflow is not None
        if self._scaled not in (None, scaled):
            raise InputError("step", "a GradScaler on some steps of a window only", "on all or none")
        self._scaled = scaled
        if scaled:
            self._overflowed = self._overflowed or bool(overflow)
        factor = None if scale is None else (scale.double().reciprocal() if isinstance(scale, Tensor) else 1 / scale)
        for parameter in self._parameters():
            held, fresh = self._held.get(parameter), parameter.grad
            if fresh is not None and fresh.is_sparse:  # else the indices of a window pile up
                kept = fresh is held
                fresh = parameter.grad = fresh.coalesce()
                held = fresh if kept else held
            if scaled:
                parameter.grad = None
                if fresh is None or self._overflowed:
                    continue
                if factor is not None:
                    (fresh._values() if fresh.is_sparse else fresh).mul_(factor)
                self._held[parameter] = fresh if held is None else held.add_(fresh)
            elif held is None or fresh is held:
                if fresh is not None:
                    self._held[parameter] = fresh
            else:
                self._held[parameter] = parameter.grad = _restored(held, fresh)

    def _update(self) -> None:
        parameters, weight = self._parameters(), self._weight
        try:
            if self._overflowed:
                self.skipped += 1
                return
            if not weight > 0:
                raise InputError("step", "a window of weight 0", "at least one counted label")
            for parameter, gradient in self._held.items():
                parameter.grad = gradient
            if weight != 1:
                scale_gradients(parameters, 1 / weight)
            norm = gradient_norm(parameters)
            if not math.isfinite(norm):
                self._refuse(norm)
                return
            if self.max_grad_norm is not None and norm > self.max_grad_norm:
                scale_gradients(parameters, self.max_grad_norm / (norm + 1e-6))  # as torch's clip_grad_norm_
            self.optimizer.step()
            self.updated = True
        finally:
            if not self.updated:
                for parameter in parameters:
                    parameter.grad = None
            self._drop()
        self.updates += 1
        if self.schedule is not None:
            self.schedule.step()

    def _refuse(self, norm: float) -> None:
        found = f"a gradient of norm {norm:g} in the window of update {self.updates}"
        if self.non_finite == "stop":
            raise InputError("step", found, "finite numbers", "lower the learning rate, or non_finite='skip'")
        self.skipped += 1
        warnings.warn(f"{found}: this update is left out ({self.skipped} so far)", stacklevel=4)

    def _drop(self) -> None:
        self._held = {}
        self._counted, self._weight = 0, 0.0
        self._weighted = self._scaled = None
        self._overflowed = False

    def _load_window(self, window: Kept) -> None:
        parameters = self._parameters()
        self.updates, self.skipped = window["updates"], window["skipped"]
        self._counted, self._weight, self._weighted = window["counted"], window["weight"], window["weighted"]
        self._scaled, self._overflowed = window["scaled"], window["overflowed"]
        for parameter in parameters if self._counted else []:
            parameter.grad = None
        for number, gradient in window["gradients"].items():
            parameter = parameters[number]
            self._held[parameter] = gradient.detach().to(parameter.device, parameter.dtype, copy=True)
            if not self._scaled:
                parameter.grad = self._held[parameter]
        if self.schedule is not None and "schedule" in window:
            self.schedule.load_state_dict(window["schedule"])


def _check_inner(optimizer: Optimizer) -> None:
    if not isinstance(optimizer, Optimizer):
        raise InputError("AccumulatedOptimizer", type(optimizer).__name__, "a torch.optim.Optimizer")
    if isinstance(optimizer, AccumulatedOptimizer):
        raise InputError("AccumulatedOptimizer", "another AccumulatedOptimizer", "one, with the product of steps")
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if isinstance(optimizer, LBFGS) or (closure is not None and closure.default is inspect.Parameter.empty):
        raise InputError(
            "AccumulatedOptimizer",
            f"{type(optimizer).__name__}, which evaluates the loss of the whole batch several times per update",
            "an optimizer that needs its gradient only",
            "call it with a closure that runs accumulate(...) over the batch",
        )


def _steps_at(steps: int | Mapping[int, int] | Callable[[int], int], update: int) -> int:
    """Micro-steps of the window that ends in update number ``update``."""
    if isinstance(steps, Mapping):
        steps = steps[max(start for start in steps if start <= update)]
    found = steps(update) if callable(steps) else steps
    if not isinstance(found, int) or found < 1:
        raise InputError("steps", f"{found!r} for update {update}", "an integer of at least 1")
    return found


def _restored(held: Tensor, fresh: Tensor | None) -> Tensor:
    """The window's sum where ``.grad`` was replaced: cleared meanwhile (add the two), or summed by autograd out of place."""
    if fresh is None:
        return held
    summed_already = fresh.requires_grad or (held.is_sparse and not fresh.is_sparse)  # create_graph; sparse then dense
    return fresh.detach() if summed_already else held.add_(fresh)
