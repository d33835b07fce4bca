"""Attention by its definition in plain torch, a few rows at a time: what torch's function transforms and forward-mode
derivatives (``torch.func``, ``torch.autograd.forward_ad``) see through, to any order, where an operator of ours would not do.

Cost: time O(N·M·(D + V)); reverse mode keeps the scores, N·M for each batch row and head, as torch's own definition does.

Letters: as in ``call``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .call import Call
from .engines.dense import DENSE, MOST_PAIRS

__all__ = ["attend_plainly", "is_transformed", "some_rows"]


def is_transformed() -> bool:
    """Whether a function transform or a forward-mode derivative is under way."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def attend_plainly(call: Call) -> tuple[Tensor, Tensor]:
    """out [B, H, N, V] and lse [B, H, N] of a call, differentiable in every way."""
    n = call.q.shape[2]
    rows = max(1, MOST_PAIRS // call.k.shape[2])
    parts = [DENSE.attend(some_rows(call, slice(start, min(n, start + rows)))) for start in range(0, n, rows)]
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def some_rows(call: Call, rows: slice) -> Call:
    """The call for these queries alone, with zeros where nobody looks."""
    call = DENSE.without_hidden(call)
    bias, m = call.offset_bias, call.k.shape[2]
    return replace(
        call,
        q=call.q[:, :, rows],
        q_offset=call.q_offset + rows.start,
        runs=None if call.runs is None else call.runs[:, :, rows],
        offset_bias=None if bias is None else bias[:, rows.start : rows.start + call.q[:, :, rows].shape[2] + m - 1],
    )
