"""Predicts the peak memory of one training step by running it on fake tensors: shapes without storage.

The traced step is the very step that will run: ``build_model`` makes the model, ``objective`` and the accumulation of
``jieyue.training`` run two pieces (the second with the first one's gradients alive), then come the division by N, the
finiteness check, the clipping and the optimizer. Whatever the objective calls is seen: expanded masks, the attention path
that dropout selects, fused or per-tensor optimizers, checkpointed layers.

    predicted peak = highest sum of live storage bytes = what torch's allocator will hold

Scratch that kernels take through torch's allocator is measured once a shape (``kernels``). Cost: about a second a trace, and
no memory that depends on the model. Not seen: what a kernel allocates outside torch's allocator (MKL packing), what malloc
rounds up, saved random states (5 KB a checkpointed layer), gradients that several processes exchange (a bucket of 25 MiB).
Source: ``FakeTensorMode``, ``torch.distributed._tools.mem_tracker.MemTracker`` (private to torch, as is what ``gradient_sums`` asks).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType
from torch.distributed._tools.mod_tracker import ModTracker
from torch.utils._python_dispatch import TorchDispatchMode

from jieyue.budget import Cost
from jieyue.errors import InputError, message
from jieyue.hf.tracing import fakes_as_real
from jieyue.training.accumulation import backward_pieces, gradients_of, scale_gradients
from jieyue.training.checkpointing import checkpointed
from jieyue.training.in_backward import Folding
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import Batch, Objective, num_rows
from jieyue.training.weightwise import Moves, PreviousNorm, moving

from .depths import Depth
from .fake_model import fake_model
from .gradient_sums import InPlaceSums, sole_owner
from .kernels import KernelScratch
from .known_values import KnownValues
from .operators import Arguments, Keywords, Operator, Result, Types

__all__ = ["Scalars", "Tracker", "TrainingStep", "finish", "live_parts", "predict", "run_update", "trace", "with_state"]


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """The update to be predicted: the same callables that training will use.

    ``build_model()``: a new model from its configuration (not ``from_pretrained``, which would read weights).
    ``example_batch(rows, length)``: a batch of the widest shape that can occur; of its values count those that a step asks
    for (padding, labels that are counted). ``mask``: the name of the padding mask by which pieces are trimmed, if they are,
    ``columns``: as ``MicroBatch`` has them.
    ``make_optimizer(model)``: the optimizer. ``max_grad_norm``: 0 for no clipping. ``device``: "cpu", or a GPU type where
    this torch has one. ``length``: positions of a row. ``weigh(batch)``: the labels that a batch counts; given, the
    update is folded into the backward pass (``training.in_backward``): no gradients between pieces, no clipping.
    ``in_backward``: each weight moves in the backward pass (``training.weightwise``), of a batch in one piece.
    ``depth``: how the model is told by a shallower one, where it may be. ``known``: what was traced of this very step, by rows of the
    batch, rows of a piece and checkpointing (``search.traced``).
    """

    build_model: Callable[[], nn.Module]
    objective: Objective
    example_batch: Callable[[int, int], Mapping[str, Tensor]]
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    length: int
    max_grad_norm: float = 1.0
    device: str = "cpu"
    weigh: Callable[[Mapping[str, Tensor]], float] | None = None
    mask: str | None = None
    columns: Collection[str] | None = None
    in_backward: bool = False
    depth: Depth | None = None
    known: dict[tuple[int, int, bool], Cost] = field(init=False, default_factory=dict, compare=False, repr=False)

    def at(self, length: int) -> TrainingStep:
        """The same step on shorter (or longer) rows."""
        return replace(self, length=length)


def predict(step: TrainingStep, *, effective_batch: int, micro_batch: int, checkpointing: bool = False) -> Cost:
    """Bytes at the peak of one update of ``effective_batch`` rows in pieces of ``micro_batch``, after the first update.

    Returns a ``Cost`` whose parts add up to ``peak_bytes``: weights (with buffers), gradients, optimizer state,
    activations (made in forward passes), temporary (everything else: gradients of activations, the batch itself).
    ``fixed_bytes`` is left 0, see ``jieyue.planning.choice``. What follows from the batch's own integers and truth values is
    followed (``known_values``); refuses with ``InputError`` an objective whose shapes depend on what the model computed.
    """
    if not 1 <= micro_batch <= effective_batch:
        raise InputError(message("micro_batch", str(micro_batch), f"1 to effective_batch={effective_batch} rows"))
    if step.in_backward and micro_batch != effective_batch:
        raise InputError(message("in_backward", f"pieces of {micro_batch} rows", "the whole batch in one piece"))
    tracker = Tracker()
    try:
        model, optimizer, waiting = trace(step, effective_batch, micro_batch, checkpointing, tracker)
        return _cost(tracker, model, optimizer, waiting, torch.device(step.device))
    except (DynamicOutputShapeException, DataDependentOutputException) as error:
        raise InputError(
            message(
                "predict",
                f"an objective whose shapes depend on values ({error})",
                "one whose shapes follow from the batch's shapes",
                "mask instead of selecting, or pad the selection to a fixed number",
            )
        ) from error


def trace(
    step: TrainingStep, effective: int, micro: int, checkpointing: bool, tracker: Tracker
) -> tuple[nn.Module, torch.optim.Optimizer, int]:
    """One update on fake tensors under ``tracker``: the model, the optimizer with its state, and the bytes of rows that no traced
    piece holds, which wait on the host."""
    rows, device = min(effective, 2 * micro), torch.device(step.device)
    real = step.example_batch(rows, step.length)
    if num_rows(real) != rows:
        raise InputError(message(f"example_batch({rows}, ...)", f"{num_rows(real)} rows", f"{rows} rows"))
    mode, sums = FakeTensorMode(), InPlaceSums(sole_owner())
    known = KnownValues(mode)
    with fakes_as_real():
        model = fake_model(mode, step.build_model, device).train()
        with mode:
            optimizer = with_state(step, model)
            batch = known.faked(real)  # on the host: only pieces travel
            waiting = _storage_bytes([v for v in batch.values() if isinstance(v, Tensor)]) / rows * (effective - rows)
            tracker.track_external(model, optimizer, *batch.values())
            tracker.watch(model)
            trained = [p for p in model.parameters() if p.requires_grad]
            with tracker.gradients(trained), tracker:
                pieces = MicroBatch(micro, mask=step.mask, columns=step.columns).pieces(batch)
                modes = (KernelScratch(), known, sums)
                run_update(step, model, optimizer, pieces, modes, checkpointing, tracker.pieces_done)
    return model, optimizer, round(waiting)


def with_state(step: TrainingStep, model: nn.Module) -> torch.optim.Optimizer:
    """The step's optimizer of a model of fake tensors, with its state, as it has it from the second update on."""
    with Scalars():  # tables of quantised numbers are read back as they are made
        optimizer = step.make_optimizer(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    with Scalars(integers=True):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def _cost(
    tracker: Tracker, model: nn.Module, optimizer: torch.optim.Optimizer, waiting: int, device: torch.device
) -> Cost:
    """The peak by part; ``waiting``: bytes of rows that no traced piece holds, which wait on the host."""
    peak, gradient_bytes, activation_bytes = tracker.peak(device)
    weight_bytes, optimizer_bytes = live_parts(model, optimizer)
    peak += waiting if device.type == "cpu" else 0
    return Cost(
        peak_bytes=peak,
        weight_bytes=weight_bytes,
        gradient_bytes=gradient_bytes,
        optimizer_bytes=optimizer_bytes,
        activation_bytes=activation_bytes,
        temporary_bytes=peak - weight_bytes - gradient_bytes - optimizer_bytes - activation_bytes,
    )


def live_parts(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Bytes of the weights, with buffers, and of the optimizer's state."""
    return _storage_bytes([*model.parameters(), *model.buffers()]), _storage_bytes(_state_tensors(optimizer))


def run_update(
    step: TrainingStep,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pieces: Iterable[Batch],
    modes: Iterable[TorchDispatchMode],
    checkpointing: bool,
    pieces_done: Callable[[Folding | None], None] = lambda folding: None,
) -> None:
    """One update on fake tensors, from the first piece to the optimizer's step; ``modes`` see all but the latter, the last
    one first. The gradients stay. ``pieces_done``: is called before what follows the last piece."""
    trained = [p for p in model.parameters() if p.requires_grad]
    with ExitStack() as stack:
        folding = None if step.weigh is None else stack.enter_context(Folding(model, optimizer, 1.0))
        if step.in_backward:
            stack.enter_context(moving(model, Moves(optimizer, PreviousNorm(step.max_grad_norm or math.inf))))
        with ExitStack() as inner:
            inner.enter_context(checkpointed(model, checkpointing))
            for mode in (Scalars(integers=step.in_backward), *modes):
                inner.enter_context(mode)
            backward_pieces(step.objective, model, pieces)
        pieces_done(folding)
        if not step.in_backward:
            finish(step, trained, optimizer, folding)


def finish(
    step: TrainingStep, trained: list[nn.Parameter], optimizer: torch.optim.Optimizer, folding: Folding | None
) -> None:
    """What follows the last piece."""
    if folding is not None:
        with Scalars(integers=True):
            folding.finite()
            folding.finish()
        return
    scale_gradients(trained, 0.5)
    torch.nn.utils.get_total_norm(gradients_of(trained))
    if step.max_grad_norm > 0:
        torch.nn.utils.clip_grad_norm_(trained, step.max_grad_norm)
    with Scalars(integers=True):
        optimizer.step()


class Scalars(TorchDispatchMode):
    """Answers 1 where a fraction is read from a fake tensor (an optimizer's norms, the chunked loss's upstream gradient).

    Integers and truth values, which shapes may depend on, are not answered (but for an optimizer's step counts).
    """

    def __init__(self, integers: bool = False) -> None:
        super().__init__()
        self.integers = integers

    def __torch_dispatch__(
        self, func: Operator, types: Types, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Result:
        if func is torch.ops.aten._local_scalar_dense.default:
            if args[0].dtype.is_floating_point:
                return 1.0
            if self.integers:
                return 1
        return func(*args, **(kwargs or {}))


class _NoModules(ModTracker):
    """Hooks no module: a hook that waits for the gradients of all inputs of a module holds those that have come, so a
    layer's gradient would live on until that of the position biases that all layers share is there."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: Result) -> None: ...


class Tracker(MemTracker):
    """MemTracker without its statistics by module, which forbid a second pass, take most of its time and hold gradients."""

    def __init__(self) -> None:
        super().__init__()
        self._mod_tracker = _NoModules()

    def watch(self, model: nn.Module) -> None:
        """Is told of the model before its update."""

    def pieces_done(self, folding: Folding | None) -> None:
        """Is told when the last piece is done."""

    def gradients(self, parameters: Iterable[nn.Parameter]) -> ExitStack:
        """Inside the ``with``, what becomes a ``.grad`` is counted as gradient."""

        def mark(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self._update_and_maybe_create_winfos(parameter.grad, _MemRefType.GRAD)

        stack = ExitStack()
        for parameter in parameters:
            stack.callback(parameter.register_post_accumulate_grad_hook(mark).remove)
        return stack

    def peak(self, device: torch.device) -> tuple[int, int, int]:
        """Bytes at the peak of that kind of device: all, gradients, activations."""
        snapshot = self.get_tracker_snapshot("peak")
        parts: dict[Result, int] = next((found for where, found in snapshot.items() if where.type == device.type), {})
        return parts.get("Total", 0), parts.get(_MemRefType.GRAD, 0), parts.get(_MemRefType.ACT, 0)


def _state_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def _storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of distinct storages: tied weights and views count once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
