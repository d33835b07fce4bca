"""Seconds of an update, predicted from a short measured run of two shallow copies of the model on this machine.

    seconds(n layers) = pieces · p(n) + u(n),    p(n) = p(a) + (n − a)·(p(b) − p(a))/(b − a),    likewise u

p: forward and backward pass of one piece; u: what an update costs once (division by N, norm, clipping, optimizer). The
copies have a and b layers at the model's own width and length, so embeddings, head and loss are in p(a) and cancel in the
difference. A model of at most ``b`` layers is run whole. Pieces of more than ``TOKENS`` tokens are timed on fewer rows and
counted proportionally.

Cost: some forward and backward passes of a + b layers a kind of setting, and the memory of that many. Results are kept as
long as the ``Calibration``, in memory. Goal: within 20 % on an otherwise idle machine.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch

from jieyue.timer import take_turns
from jieyue.training.accumulation import backward_pieces, gradient_norm, gradients_of, scale_gradients
from jieyue.training.checkpointing import checkpointed
from jieyue.training.in_backward import Folding
from jieyue.training.microbatch import to_device

from .prediction import TrainingStep
from .setting import Setting
from .subject import Subject

__all__ = ["Calibration", "through_depths", "update_once"]

TOKENS = 2048
ENOUGH_SECONDS = 1.0  # of repeats of one call


def through_depths(shallow: tuple[int, float], deeper: tuple[int, float], layers: int) -> float:
    """The straight line through (layers, seconds) of two depths, at another; never below that of the shallow one.

    >>> through_depths((1, 3.0), (3, 5.0), 12)
    14.0
    """
    (a, at_a), (b, at_b) = shallow, deeper
    return at_a + max(0.0, at_b - at_a) * (layers - a) / (b - a)


class Calibration:
    """Measures what settings of one subject need and remembers it, so that settings alike in a part share its run."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._pieces: dict[Setting, float] = {}
        self._updates: dict[tuple[str, bool], float] = {}

    def seconds(self, setting: Setting, effective_batch: int) -> float:
        """Predicted seconds of one update of ``effective_batch`` rows as long as the subject's, in this setting."""
        rows = min(setting.micro_batch, max(1, TOKENS // self.subject.positions))
        kind = replace(setting, micro_batch=rows)
        if not setting.in_backward:  # what a piece takes is then the same for every optimizer
            kind = replace(kind, optimizer="adamw")
        update = (setting.optimizer, setting.in_backward)
        if kind not in self._pieces:
            self._pieces[kind] = self._through(kind, _piece_seconds)
        if update not in self._updates:
            self._updates[update] = self._through(setting, _update_seconds)
        return self._pieces[kind] * effective_batch / rows + self._updates[update]

    def _through(self, setting: Setting, measure: Callable[[TrainingStep, Setting], float]) -> float:
        period = (
            1 if setting.attention is None else setting.attention.count(",") + 1
        )  # layers until the pattern repeats
        depths = (period, 3 * period)
        if self.subject.layers <= depths[1]:
            return measure(self.subject.step(setting), setting)
        shallow, deeper = ((depth, measure(self.subject.step(setting, depth), setting)) for depth in depths)
        return through_depths(shallow, deeper, self.subject.layers)


def update_once(model: torch.nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float = 1.0) -> None:
    """What follows the last piece: division, the finiteness check, clipping, the optimizer's step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    scale_gradients(parameters, 1.0)
    gradient_norm(parameters)
    if max_grad_norm > 0:
        torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()


def _piece_seconds(step: TrainingStep, setting: Setting) -> float:
    """Forward and backward pass of one piece, with earlier pieces' gradients there to be added to."""
    model = step.build_model().to(step.device).train()
    batch = to_device(dict(step.example_batch(setting.micro_batch, step.length)), torch.device(step.device))

    def run() -> None:
        with checkpointed(model, setting.checkpointing):
            backward_pieces(step.objective, model, [batch])

    with nullcontext() if step.weigh is None else Folding(model, step.make_optimizer(model), 1.0):
        return _seconds(run)


def _update_seconds(step: TrainingStep, setting: Setting) -> float:
    model = step.build_model().to(step.device).train()
    optimizer = step.make_optimizer(model)
    if step.weigh is not None:
        return _seconds(partial(_fold_nothing, Folding(model, optimizer, 1.0)))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 1e-3)
    assert gradients_of(list(model.parameters()))
    return _seconds(lambda: update_once(model, optimizer, step.max_grad_norm))


def _fold_nothing(folding: Folding) -> None:
    """What an update folded into the backward pass costs once."""
    for parameter in folding.trained:
        folding.begin(parameter)
    folding.finite()
    folding.finish()


def _seconds(call: Callable[[], None]) -> float:
    """The fastest of a few calls after a first one, as an update is measured: seven, or three where one takes long, two where it takes
    more than ``ENOUGH_SECONDS``.

    What else the machine does only ever adds to a call, and the line through two depths makes much of what was added.
    """
    call()
    started = time.perf_counter()
    call()
    second = time.perf_counter() - started
    repeats = 2 * max(1, int(min(3, ENOUGH_SECONDS / 2 / max(second, 1e-6)))) + 1
    if second > ENOUGH_SECONDS:
        fastest = min(second, *take_turns({"": call}, 1, warmup=0)[""])
    else:
        fastest = min(take_turns({"": call}, repeats, warmup=0)[""])
    gc.collect()
    return fastest
