"""Sums of gradients that autograd makes in place, in a trace on fake tensors, where it does not make them so itself.

Gradients that meet in one place are added into the first one, if nothing else holds it. Of two fake tensors autograd makes a
third instead; a tied embedding of V × H would count once too often in a predicted peak. Who holds a gradient is told by
torch's own counts of owners, which are private to it: ``sole_owner`` tries them, on tensors whose owners are known, and where
this torch lacks them or they cannot tell one owner from two, sums are left as the trace makes them: predictions are then high
by the sums that are really made in place, never low. The gradient of an indexing is likewise written into its zeros in place.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from .operators import Arguments, Keywords, Operator, Result, Types

__all__ = ["InPlaceSums", "sole_owner"]


class InPlaceSums(TorchDispatchMode):
    """Adds gradients that meet in one place as autograd adds real ones: into the first, if nothing else holds it.

    ``sole``: the counts (of tensor, of storage) that are seen here when nothing else holds it, see ``sole_owner``; None
    changes nothing. ``seen``: the counts of every sum so far, kept where ``note``. Sums that a Python function's own backward
    makes are left as they are.
    """

    def __init__(self, sole: tuple[int, int] | None, *, note: bool = False) -> None:
        super().__init__()
        self.sole, self.note = sole, note
        self.seen: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, func: Operator, types: Types, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Result:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # most of what a trace asks, and no other mode's concern
        if (
            (self.note or self.sole is not None)
            and func is torch.ops.aten.add.Tensor
            and not kwargs
            and _autograd_runs()
        ):
            first, second = args
            if isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape:
                storage = torch._C._storage_Use_Count(first.untyped_storage()._cdata)
                counts = (first._use_count(), storage)  # type: ignore[attr-defined]
                if self.note:
                    self.seen.append(counts)
                if counts == self.sole and first.dtype == second.dtype:
                    return torch.ops.aten.add_.Tensor(first, second)
        if func is torch.ops.aten.index_put.default and _autograd_runs():
            return torch.ops.aten.index_put_.default(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _autograd_runs() -> bool:
    """Whether autograd's engine is at work: not a checkpointed layer's second run, nor a Python function's backward."""
    if torch.is_grad_enabled() or torch._C._current_graph_task_id() == -1:
        return False
    return not isinstance(torch._C._current_autograd_node(), torch.autograd.function.BackwardCFunction)


@cache
def sole_owner() -> tuple[int, int] | None:
    """The counts of a gradient that autograd alone holds, as ``InPlaceSums`` sees them; None where they cannot be told.

    Two fresh gradients meet in ``x``; then two of which ``w`` holds the first one's storage as well, which must not look alike.
    """

    def counts(shared: bool) -> tuple[int, int]:
        with FakeTensorMode(), InPlaceSums(None, note=True) as sums:
            x, w = (torch.ones(2, requires_grad=True) for _ in range(2))
            (x.cos() + (x + w if shared else x.sin())).sum().backward()
        return sums.seen[-1]

    try:
        alone, other = counts(shared=False), counts(shared=True)
    except (AttributeError, IndexError, TypeError, RuntimeError):  # another torch: no such counts, no such sums
        return None
    return alone if alone != other else None
