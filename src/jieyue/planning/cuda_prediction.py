"""Predicts what one training run holds and reserves on a GPU: the very step on fake tensors, its sizes replayed.

The trace begins with the weights and runs whole updates one after another (the first one makes the optimizer's state among the
first gradients, which is where later ones find their places), as a run does; each tensor's coming and going is a moment, and
``cuda_memory`` replays them by the allocator's rules. Where there is a GPU its own operators are traced. Where there is none
(autograd asks an accelerator even for fake tensors), the CPU's are, which keep the same tensors but for masks of dropout (in the
activations' type in place of bytes), attention with dropout (all pairs) and optimizers without a fused kernel.

Scratch that the trace does not show is added: cuBLAS's workspaces, and what the backward passes of attention take beside their
results (δ of each row and, in half precision, a float32 copy of dq; sources: ``attention_backward.cu``, ``flash_api.cpp``). Not
seen: the scratch of embeddings' backward passes, cuDNN, memory of other libraries and of the CUDA context.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import _RefType, _UpdateType, _WeakRefInfo
from torch.utils._python_dispatch import TorchDispatchMode

from jieyue.errors import InputError, message
from jieyue.hf.tracing import fakes_as_real
from jieyue.training.microbatch import MicroBatch

from .cuda_memory import CachingAllocator, Moment, Reached, replay, workspace_bytes
from .fake_model import fake_model
from .gradient_sums import InPlaceSums, sole_owner
from .kernels import KernelScratch
from .known_values import KnownValues
from .operators import Arguments, Keywords, Operator, Result, Types
from .prediction import Scalars, Tracker, TrainingStep, run_update

__all__ = ["moments_of", "predict_cuda", "reached_last"]

UPDATES = 2  # the second one is like all later ones
_ATEN = torch.ops.aten
_PRODUCTS = {_ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default, _ATEN.baddbmm.default, _ATEN._addmm_activation.default,
             _ATEN.mm.out, _ATEN.bmm.out, _ATEN.addmm_.default}  # fmt: skip
_FLASH_BACKWARD = _ATEN._scaled_dot_product_flash_attention_backward.default
_EFFICIENT_BACKWARD = _ATEN._scaled_dot_product_efficient_attention_backward.default
_CPU_BACKWARD = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default
_HALF = (torch.float16, torch.bfloat16)


def predict_cuda(
    step: TrainingStep,
    *,
    effective_batch: int,
    micro_batch: int,
    checkpointing: bool = False,
    capability: tuple[int, int] = (8, 0),
) -> Reached:
    """What ``torch.cuda.max_memory_allocated`` and ``max_memory_reserved`` will tell of an update after the first.

    ``step.device``: where it is traced, a CUDA device where there is one, else "cpu"; ``capability``: of the GPU, for cuBLAS's
    workspace. ``InputError`` for a CUDA device that is not there. Cost: two traces of the whole batch; no memory that depends
    on the model.
    """
    if torch.device(step.device).type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            message("step.device", repr(step.device), "'cpu' where there is no GPU: its operators are traced")
        )
    workspace = workspace_bytes(capability)
    first, last = moments_of(
        step, effective_batch=effective_batch, micro_batch=micro_batch, checkpointing=checkpointing, workspace=workspace
    )
    return reached_last(first, last)


def reached_last(first: list[Moment], last: list[Moment]) -> Reached:
    """What ``last`` reaches after ``first``, whose own peaks are forgotten."""
    allocator, held = CachingAllocator(), dict[int, int]()
    replay(first, allocator, held)
    allocator.forget_peaks()
    return replay(last, allocator, held)


def moments_of(
    step: TrainingStep, *, effective_batch: int, micro_batch: int, checkpointing: bool, workspace: int
) -> tuple[list[Moment], list[Moment]]:
    """The moments of ``step.device``'s tensors until the last update, and in it.

    ``workspace``: bytes that each thread which multiplies takes once, 0 for none.
    """
    if not 1 <= micro_batch <= effective_batch:
        raise InputError(message("micro_batch", str(micro_batch), f"1 to effective_batch={effective_batch} rows"))
    device, mode = torch.device(step.device), FakeTensorMode()
    known, recorder = KnownValues(mode), _Recorder(device.type)
    real = step.example_batch(effective_batch, step.length)
    with fakes_as_real(), ExitStack() as stack:
        model = fake_model(mode, step.build_model, device).train()
        stack.enter_context(mode)
        with Scalars():
            optimizer = step.make_optimizer(model)
        batch = known.faked(real)  # on the host: only pieces travel
        recorder.track_external(model)
        stack.enter_context(recorder)
        kernels, sums = _CudaKernels(workspace, device), InPlaceSums(sole_owner())
        for _ in range(UPDATES):
            begun = len(recorder.moments)
            pieces = MicroBatch(micro_batch, mask=step.mask, columns=step.columns).pieces(batch)
            run_update(step, model, optimizer, pieces, (KernelScratch(), kernels, known, sums), checkpointing)
            optimizer.zero_grad(set_to_none=True)
        return recorder.moments[:begun], recorder.moments[begun:]


class _Recorder(Tracker):
    """Notes when each storage on devices of ``kind`` comes and goes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.moments: list[Moment] = []
        self._numbers: dict[int, int] = {}  # by address of what torch knows of a storage, while that lives
        self._next = 0

    def _update_snap(
        self,
        u_type: _UpdateType,
        winfo: _WeakRefInfo,
        old_mem_consumed: int | None = None,
        old_reftype: _RefType | None = None,
    ) -> None:
        super()._update_snap(u_type, winfo, old_mem_consumed, old_reftype)
        if winfo.device.type != self.kind or u_type == _UpdateType.REF:
            return
        if u_type in (_UpdateType.DEL, _UpdateType.SIZE) and id(winfo) in self._numbers:
            self.moments.append(Moment(self._numbers.pop(id(winfo)), 0))
        num_bytes = winfo.size * winfo.element_size
        if u_type in (_UpdateType.ADD, _UpdateType.SIZE) and num_bytes > 0:
            self._numbers[id(winfo)] = self._next
            self.moments.append(Moment(self._next, num_bytes))
            self._next += 1


class _CudaKernels(TorchDispatchMode):
    """Adds what CUDA's kernels take beside their results: workspaces that stay, scratch that lives for a moment."""

    def __init__(self, workspace: int, device: torch.device) -> None:
        super().__init__()
        self.workspace, self.device = workspace, device
        self.held: dict[bool, Tensor] = {}  # by whether autograd's thread holds it

    def __torch_dispatch__(
        self, func: Operator, types: Types, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Result:
        in_backward = torch._C._current_graph_task_id() != -1
        if self.workspace and func in _PRODUCTS and in_backward not in self.held:
            self.held[in_backward] = torch.empty(self.workspace, dtype=torch.uint8, device=self.device)
        scratch = 0
        if func in (_EFFICIENT_BACKWARD, _CPU_BACKWARD):
            scratch = _scratch(args[1], half=args[1].dtype in _HALF, rows=1)
        elif func is _FLASH_BACKWARD:
            scratch = _scratch(args[1], half=True, rows=128)
        if scratch:
            torch.empty(scratch, dtype=torch.uint8, device=self.device)
        return func(*args, **(kwargs or {}))


def _scratch(q: Tensor, half: bool, rows: int) -> int:
    """Bytes beside the gradients: δ of each row, and with ``half`` dq in float32; rows in multiples of ``rows``."""
    batch, heads, n, depth = q.shape
    places = batch * heads * (-(-n // rows) * rows)
    return 4 * places * (1 + (-(-depth // 32) * 32 if half else 0))
