"""The fused engine: bands of any shape on CUDA in float32, bfloat16 and float16, by the Triton kernels of ``fused_kernels``.

For each query i, over the keys j that a band and the key mask allow,

    lse_i = log Σ_j e^(scale·q_i·k_j),    out_i = Σ_j kept_ij e^(scale·q_i·k_j − lse_i) v_j,

and the gradients of both, given lse and δ of the merged softmax. Each band is one pass that merges into what the one before
has written; residue classes, strides and grouped heads are read where they lie, nothing is copied or repeated.

Cost: O(pairs·(D + V)) time, in seven products for the backward instead of five, which needs no atomics and always gives the
same bits. Memory beside the outputs: none for one band; for unions of half precision a float32 copy of what is merged.
Refuses: other devices and types, D or V beyond 256, and everything where Triton is not installed.
Triton's interpreter (TRITON_INTERPRET=1) runs the same kernels on the CPU, slowly: that is how they are tested everywhere.

Letters: B batch, H query heads, G key heads, N queries, M keys, D size of a query or key, V size of a value.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from jieyue.attention.call import Call, Gradients, Upstream
from jieyue.attention.lowering import BandLike, Steps, in_steps
from jieyue.attention.partial import Partial

__all__ = ["FUSED", "Fused", "tiles"]

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDEST = 256
_ABILITIES = ("sinks",)


class Fused:
    """The engine."""

    name = "fused"
    halves: tuple[torch.dtype, ...] = ()

    def refuses(self, call: Call) -> str | None:
        """Why ``call`` cannot run here, or None."""
        if importlib.util.find_spec("triton") is None:
            return "the fused engine needs Triton, which is not installed"
        for name in ("q", "k", "v"):
            x = getattr(call, name)
            if x.dtype not in _TYPES:
                return f"the fused engine computes float32, bfloat16 and float16, {name} is {x.dtype}"
            if x.device.type != "cuda" and not (x.device.type == "cpu" and _interpreted()):
                return f"the fused engine computes on CUDA, {name} is on {x.device.type}"
            if x.shape[3] > _WIDEST:
                return f"the fused engine takes rows of at most {_WIDEST} numbers, those of {name} have {x.shape[3]}"
        return call.beyond(self.name, _ABILITIES)

    def attend(self, call: Call) -> tuple[Tensor, Tensor]:
        """out and lse of the call."""
        out, lse = self.forward_union(
            call.q, call.k, call.v, call.bands,
            key_mask=call.key_mask, scale=call.scale, dropout=call.dropout, seed=call.seed, q_offset=call.q_offset,
        )  # fmt: skip
        whole = call.with_sinks(Partial(out, lse))
        return whole.out, whole.lse

    def differentiate(self, call: Call, given: Upstream) -> Gradients:
        """dq, dk, dv of the call."""
        found = self.backward_union(
            given.grad_out, call.q, call.k, call.v, given.lse, given.delta, call.bands, out=given.out,
            key_mask=call.key_mask, scale=call.scale, dropout=call.dropout, seed=call.seed, q_offset=call.q_offset,
        )  # fmt: skip
        return Gradients(*found)

    def forward_union(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bands: Iterable[BandLike],
        *,
        key_mask: Tensor | None = None,
        scale: float,
        dropout: float = 0.0,
        seed: int = 0,
        q_offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """out [B, H, N, V] in [B, N, H, V] memory and lse [B, H, N] of disjoint bands in one softmax."""
        run = _Run(q, k, v, key_mask, scale, dropout, seed, q_offset, in_steps(bands, q.shape[2], k.shape[2], q_offset))
        out = run.rows_like(q, v.shape[3])
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        if not run.bands:
            return out.zero_(), lse.fill_(-torch.inf)
        run("attend_band", run.views(q, k, v, out), (lse,))
        return out, lse

    def backward_union(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lse: Tensor,
        delta: Tensor,
        bands: Iterable[BandLike],
        *,
        key_mask: Tensor | None = None,
        scale: float,
        dropout: float = 0.0,
        seed: int = 0,
        q_offset: int = 0,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv of disjoint bands, summed; their memory is [B, N, H, D] (and [B, M, G, ...])."""
        run = _Run(q, k, v, key_mask, scale, dropout, seed, q_offset, in_steps(bands, q.shape[2], k.shape[2], q_offset))
        dq, dk, dv = (run.rows_like(x, x.shape[3]) for x in (q, k, v))
        if not run.bands:
            return dq.zero_(), dk.zero_(), dv.zero_()
        rows = lse.contiguous(), delta.float().contiguous()
        given = run.views(grad_out, q, k, v)
        run("add_query_gradients", (*given, *run.views(dq)), rows)
        run("add_key_gradients", (*given, *run.views(dk, dv)), rows)
        return dq, dk, dv

    def delta(self, grad_out: Tensor, out: Tensor) -> Tensor:
        """Σ_d grad_out·out [B, H, N] in float32, without a float32 copy of either."""
        batch, heads, n, width = out.shape
        found = out.new_empty(batch, heads, n, dtype=torch.float32)
        rows, wide = 64, _power(width)
        views = _Run.views(grad_out, out)
        with _device_of(out):
            _kernels().row_products[((n - 1) // rows + 1, batch * heads)](*views, found, heads, n, width, wide, rows)
        return found


FUSED = Fused()


def tiles(kernel: str, dtype: torch.dtype, widest: int) -> dict[str, int]:
    """Queries and keys of a tile, warps and stages of the pipeline, by the size of what is held in registers.

    Chosen by what ptxas reports for sm_90: as large as fits with next to no registers spilled.
    """
    by_keys = kernel == "add_key_gradients"
    if dtype == torch.float32:
        rows, keys, warps = (16, 16, 4) if widest > 128 else (32, 32, 8) if widest > 64 else (64, 32, 8)
        rows, keys = (keys, rows) if by_keys else (rows, keys)
    elif widest > 128:
        rows, keys, warps = 32, 32, 4
    elif by_keys:
        rows, keys, warps = (32, 128, 8) if widest <= 64 else (32, 64, 4)
    elif kernel == "attend_band":
        rows, keys, warps = 128, 64, 4 if widest <= 64 else 8
    else:
        rows, keys, warps = (128, 64, 8) if widest <= 64 else (64, 64, 4)
    return {"ROWS": rows, "KEYS": keys, "num_warps": warps, "num_stages": 3 if kernel == "attend_band" else 2}


class _Run:
    """One call's settings; calling it launches a kernel on each band in turn."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_mask: Tensor | None,
        scale: float,
        dropout: float,
        seed: int,
        q_offset: int,
        bands: list[Steps],
    ) -> None:
        self.bands, self.dtype = bands, q.dtype
        self.device, self.batch = q.device, q.shape[0]
        self.sizes = (q.shape[1], k.shape[1], q.shape[2], k.shape[2], q_offset)
        self.columns = (q.shape[3], v.shape[3])
        self.mask = (q, 0, 0) if key_mask is None else (key_mask.view(torch.uint8), *key_mask.stride())
        self.masked, self.dropped = key_mask is not None, dropout > 0
        self.numbers = (scale, 1 / (1 - dropout), seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, int(dropout * 2**32))

    def rows_like(self, x: Tensor, width: int) -> Tensor:
        """Room for an output of x's shape; float32 where several bands add to it."""
        dtype = torch.float32 if len(self.bands) > 1 else x.dtype
        return x.new_empty(x.shape[0], x.shape[2], x.shape[1], width, dtype=dtype).transpose(1, 2)

    @staticmethod
    def views(*tensors: Tensor) -> tuple[Any, ...]:
        """Pointers and strides, the last of which is 1."""
        kept = (x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous() for x in tensors)
        return tuple((x, *x.stride()[:3]) for x in kept)

    def __call__(self, name: str, views: tuple[Any, ...], rows: tuple[Tensor, ...]) -> None:
        kernel = getattr(_kernels(), name)
        heads, groups, n, m, _ = self.sizes
        shape = tiles(name, self.dtype, max(map(_power, self.columns)))
        by_keys = name == "add_key_gradients"
        for number, band in enumerate(self.bands):
            length, tile = (m, shape["KEYS"]) if by_keys else (n, shape["ROWS"])
            of_class = (length - 1) // band.step + 1
            grid = (band.step * ((of_class - 1) // tile + 1), self.batch * (groups if by_keys else heads))
            with _device_of(views[0][0]):
                kernel[grid](
                    *(*views, *rows, self.mask, self.sizes, tuple(band), *self.numbers, *self.columns),
                    *map(_power, self.columns),
                    MASKED=self.masked,
                    DROPPED=self.dropped,
                    HOLED=band.holed,
                    MERGED=number > 0,
                    **shape,
                )


def _power(columns: int) -> int:
    """The power of two, 16 at least, that a row of so many numbers fits into."""
    return max(16, 1 << (columns - 1).bit_length())


@functools.cache
def _kernels() -> Any:
    from jieyue.attention.engines import fused_kernels

    return fused_kernels


def _interpreted() -> bool:
    """Whether Triton was told to run kernels in Python."""
    return type(_kernels().attend_band).__name__ == "InterpretedFunction"


def _device_of(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
