"""What kernels do that fake tensors do not show: scratch and copies that they take through torch's allocator, grouped products.

Scratch depends on the processor (oneDNN copies bfloat16 operands into blocks of its own), on the number of threads and on the
shapes, not on the values: the very operator is run once on zeros of these shapes, in real memory, and what it took besides its
result is counted wherever the trace meets it. Dimensions beyond ``LARGEST`` are cut to it, as scratch is made of blocks.
Sums and products of two dtypes first copy the narrower operand into the wider dtype, whole.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from jieyue.timer import peak_bytes

from .operators import Arguments, Keywords, Operator, Result, Types

__all__ = ["KernelScratch"]

LARGEST = 1024
_ATEN = torch.ops.aten
_NARROW = (torch.bfloat16, torch.float16)
_PRODUCTS = {_ATEN.mm.default, _ATEN.addmm.default, _ATEN.addmm_.default, _ATEN.bmm.default, _ATEN.baddbmm.default,
             _ATEN.mm.out, _ATEN.bmm.out}  # fmt: skip
_WITH_BLOCKS = {_ATEN._scaled_dot_product_flash_attention_for_cpu.default,
                _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default,
                _ATEN.convolution.default, _ATEN.convolution_backward.default}  # fmt: skip
_MIXING = {_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor,
           _ATEN.add_.Tensor, _ATEN.sub_.Tensor, _ATEN.mul_.Tensor, _ATEN.div_.Tensor}  # fmt: skip
_measured: dict[tuple[Result, ...], int] = {}  # by operator, shapes, dtypes and threads; a process sees few


class KernelScratch(TorchDispatchMode):
    """Counts each kernel's scratch on the CPU as a tensor that lives beside its result for a moment."""

    def __torch_dispatch__(
        self, func: Operator, types: Types, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Result:
        kwargs = kwargs or {}
        if func is _ATEN._grouped_mm.default:
            return _grouped_product(*args, **kwargs)
        if func.namespace == "bitsandbytes" and func._opname == "gemm_4bit":  # makes the matrix whole, for the product
            torch.empty(args[2], dtype=args[0].dtype)
        result = func(*args, **kwargs)
        first = next((value for value in args if isinstance(value, Tensor)), None)
        if first is not None and first.device.type == "cpu":
            narrow = func in _PRODUCTS and args[-1 if func is _ATEN.addmm_.default else 0].dtype in _NARROW
            if narrow or func in _WITH_BLOCKS:
                torch.empty(_scratch(func, args, kwargs), dtype=torch.uint8)
            elif func in _MIXING and isinstance(args[1], Tensor):
                torch.empty(_widened(first, args[1]), dtype=torch.uint8)
        return result


def _widened(one: Tensor, other: Tensor) -> int:
    """Bytes of the operands' copies in the dtype that the sum or product is made in; single numbers need none."""
    dtype = torch.result_type(one, other)
    return sum(x.numel() * dtype.itemsize for x in (one, other) if x.dtype != dtype and x.dim() > 0)


def _scratch(func: Operator, args: Arguments, kwargs: Keywords) -> int:
    leaves = tree_flatten((args, kwargs))[0]
    key = (func, torch.get_num_threads(), *(_shape_of(one) if isinstance(one, Tensor) else str(one) for one in leaves))
    if key not in _measured:
        with _disable_current_modes(), torch.no_grad():
            own_args, own_kwargs = tree_map(lambda one: _zeros(one) if isinstance(one, Tensor) else one, (args, kwargs))
            results: list[Result] = []

            def run() -> None:
                results[:] = [func(*own_args, **own_kwargs)]

            run()
            results.clear()
            peak = peak_bytes(run)
            given = {
                one.untyped_storage()._cdata
                for one in tree_flatten((own_args, own_kwargs))[0]
                if isinstance(one, Tensor)
            }
            made = {one.untyped_storage()._cdata: one.untyped_storage().nbytes()
                    for one in tree_flatten(results)[0] if isinstance(one, Tensor)}  # fmt: skip
            _measured[key] = max(0, peak - sum(size for storage, size in made.items() if storage not in given))
    return _measured[key]


def _shape_of(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    return (tuple(min(size, LARGEST) for size in tensor.shape), _order(tensor), tensor.dtype)


def _order(tensor: Tensor) -> tuple[int, ...]:
    """Dimensions from the widest stride to the narrowest."""
    return tuple(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


def _zeros(tensor: Tensor) -> Tensor:
    """Zeros of that shape, cut to ``LARGEST``, in the same order in memory."""
    shape, order, dtype = _shape_of(tensor)
    laid = torch.zeros([shape[place] for place in order], dtype=dtype)
    return laid.permute([order.index(place) for place in range(len(order))])


def _grouped_product(
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """The result's shape, which torch's own rule gives for bfloat16 alone: rows, columns or both in groups, or a batch."""
    if a.dim() == 2 and b.dim() == 2:
        assert offs is not None
        shape = [len(offs), a.shape[0], b.shape[1]]
    elif a.dim() == 2:
        shape = [a.shape[0], b.shape[-1]]
    else:
        shape = [a.shape[0], a.shape[1], b.shape[-1]] if b.dim() == 3 else [a.shape[1], b.shape[1]]
    dtype = a.dtype if out_dtype is None else out_dtype
    unit = 16 // dtype.itemsize  # rows start at multiples of 16 bytes
    width = -(-shape[-1] // unit) * unit
    return torch.empty([*shape[:-1], width], dtype=dtype, device=a.device)[..., : shape[-1]]
