"""The fused engine: bands of any shape on CUDA in float32, bfloat16 and float16, by the Triton kernels of ``fused_kernels``.

For each query i, over the keys j that a band and the key mask allow,

    lse_i = log Σ_j e^logit_ij,    out_i = Σ_j kept_ij e^(logit_ij − lse_i) v_j,

and the gradients of both, given lse and δ of the merged softmax. Each band of each part of the pattern (global rows, first keys,
the rest) is one pass that merges into what the one before has written; residue classes, strides, grouped heads and the runs of
segments are read where they lie, nothing is copied or repeated. Sinks are what the first pass merges into.

Cost: O(pairs·(D + V)) time, in seven products for the backward instead of five, which needs no atomics and always gives the
same bits (but the gradient of offset_bias, which is added up by atomics). Memory beside the outputs: none for one band; for
unions of half precision a float32 copy of what is merged.
Refuses: other devices and types, D or V beyond 256, and everything where Triton is not installed.
Triton's interpreter (TRITON_INTERPRET=1) runs the same kernels on the CPU, slowly: that is how they are tested everywhere.

Letters: B batch, H query heads, G key heads, N queries, M keys, D size of a query or key, V size of a value.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from jieyue.attention.call import Call, Gradients, Upstream
from jieyue.attention.lowering import Steps, in_steps
from jieyue.attention.partial import Partial

__all__ = ["FUSED", "Fused", "tiles"]

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDEST = 256
_LEAST_ROOM = (
    99 * 1024
)  # bytes of shared memory of a block from compute capability 8.0 on: 8.6, 8.9 and 12.0 have no more
_Tiles = tuple[tuple[int, int, int], ...]
_TILES: dict[str, tuple[tuple[_Tiles, _Tiles], tuple[_Tiles, _Tiles]]] = {
    "attend_band": (
        (((64, 32, 8), (16, 16, 4), (16, 16, 4)), ((16, 32, 8), (16, 16, 8), (16, 16, 4))),
        (((128, 64, 8), (128, 32, 8), (32, 32, 4)), ((128, 64, 8), (64, 32, 8), (32, 32, 4))),
    ),
    "add_query_gradients": (
        (((64, 32, 8), (16, 16, 4), (16, 16, 4)), ((32, 32, 8), (16, 16, 4), (16, 16, 4))),
        (((128, 64, 8), (64, 64, 4), (32, 32, 4)), ((64, 32, 4), (32, 32, 4), (32, 32, 4))),
    ),
    "add_key_gradients": (
        (((16, 16, 4), (32, 32, 8), (16, 16, 4)), ((16, 16, 4), (16, 16, 4), (16, 16, 4))),
        (((32, 64, 8), (32, 32, 4), (32, 32, 4)), ((32, 32, 4), (16, 32, 4), (32, 32, 4))),
    ),
}  # rows, keys, warps: float32 (plain, worn), half precision (plain, worn), each for at most 64, 128, 256 numbers a row


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
        return None

    def attend(self, call: Call) -> tuple[Tensor, Tensor]:
        """out [B, H, N, V] in [B, N, H, V] memory and lse [B, H, N]."""
        run = _Run(call)
        out = run.rows_like(call.q, call.v.shape[3])
        lse = call.q.new_empty(call.q.shape[:3], dtype=torch.float32)
        if not run.covered or call.sinks is not None:
            out.zero_()
            lse = call.with_sinks(Partial(out, lse.fill_(-torch.inf))).lse.contiguous()
        run("attend_band", run.views(call.q, call.k, call.v, out), (lse,), fresh=run.covered and call.sinks is None)
        return out, lse

    def differentiate(self, call: Call, given: Upstream) -> Gradients:
        """The gradients; the memory of dq, dk, dv is [B, N, H, D] (and [B, M, G, ...])."""
        run = _Run(call)
        dq, dk, dv = (run.rows_like(x, x.shape[3]) for x in (call.q, call.k, call.v))
        if not run.covered:
            dq, dk, dv = dq.zero_(), dk.zero_(), dv.zero_()
        rows = given.lse.contiguous(), given.delta.float().contiguous()
        views = run.views(given.grad_out, call.q, call.k, call.v)
        run("add_query_gradients", (*views, *run.views(dq)), rows, fresh=run.covered)
        run("add_key_gradients", (*views, *run.views(dk, dv)), rows, fresh=run.covered)
        return Gradients(dq, dk, dv, run.of_bias)

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


def tiles(kernel: str, dtype: torch.dtype, widest: int, worn: bool = False, room: int = _LEAST_ROOM) -> dict[str, int]:
    """Queries and keys of a tile, warps and stages of the pipeline, by the size of what is held in registers; ``worn``: segments,
    soft-capping or offset biases take some of them; ``room``: bytes of shared memory that a block may have.

    Chosen by what ptxas reports (``benchmarks/ptxas.py``): as large as spills no registers, with as many stages as have room.
    """
    rows, keys, warps = _TILES[kernel][dtype != torch.float32][worn][(widest > 64) + (widest > 128)]
    stages = 3 if kernel == "attend_band" else 2
    while stages > 1 and _shared_bytes(kernel, dtype, widest, rows, keys, stages) > room:
        stages -= 1
    return {"ROWS": rows, "KEYS": keys, "num_warps": warps, "num_stages": stages}


def _shared_bytes(kernel: str, dtype: torch.dtype, widest: int, rows: int, keys: int, stages: int) -> int:
    """At least what Triton takes: what stays, what streams past in stages, scores that change hands, and small things."""
    stay, pass_by = {
        "attend_band": (rows, 2 * keys),
        "add_query_gradients": (2 * rows, 2 * keys),
        "add_key_gradients": (2 * keys, 2 * rows),
    }[kernel]
    in_registers = kernel == "attend_band" and dtype != torch.float32
    return dtype.itemsize * widest * (stay + stages * pass_by) + (0 if in_registers else 4 * rows * keys) + 1024


class _Launch(NamedTuple):
    """A band in a rectangle: (first row, end of rows, first key, end of keys) of the launch, and counted from a run's start."""

    part: tuple[int, int, int, int]
    within: tuple[int, int, int, int]
    band: Steps


class _Run:
    """One call; calling it launches a kernel on each band of each part in turn."""

    def __init__(self, call: Call) -> None:
        (self.batch, heads, n, depth), (groups, m) = call.q.shape, call.k.shape[1:3]
        self.launches = list(_launches(call))
        every = (0, n, 0, m)
        self.covered = bool(self.launches) and self.launches[0].part == every
        self.dtype, q = call.q.dtype, call.q
        self.sizes, self.columns = (heads, groups, n, m, call.q_offset), (depth, call.v.shape[3])
        mask, packed, bias, seed = call.key_mask, call.runs, call.offset_bias, call.seed
        self.mask = (q, 0, 0) if mask is None else (mask.view(torch.uint8), *mask.stride())
        self.runs = (q, q) if packed is None else (packed[0].contiguous(), packed[1].contiguous())
        self.of_bias = None if bias is None else torch.zeros_like(bias, memory_format=torch.contiguous_format)
        self.bias: tuple[Tensor, int, Tensor] = (q, 0, q)
        if bias is not None and self.of_bias is not None:
            self.bias = (bias.contiguous(), bias.shape[1] if len(bias) > 1 else 0, self.of_bias)
        self.flags = {
            "MASKED": mask is not None, "DROPPED": call.dropout > 0, "PACKED": packed is not None,
            "CAPPED": call.softcap > 0, "BIASED": bias is not None,
        }  # fmt: skip
        seeds = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, int(call.dropout * 2**32))
        self.numbers = (call.scale, call.softcap or 1.0, 1 / (1 - call.dropout), *seeds)

    def rows_like(self, x: Tensor, width: int) -> Tensor:
        """Room for an output of x's shape; float32 where several bands add to it."""
        dtype = torch.float32 if len(self.launches) > 1 or not self.covered else x.dtype
        return x.new_empty(x.shape[0], x.shape[2], x.shape[1], width, dtype=dtype).transpose(1, 2)

    @staticmethod
    def views(*tensors: Tensor) -> tuple[tuple[Tensor | int, ...], ...]:
        """Pointers and strides, the last of which is 1."""
        kept = (x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous() for x in tensors)
        return tuple((x, *x.stride()[:3]) for x in kept)

    def __call__(
        self, name: str, views: tuple[tuple[Tensor | int, ...], ...], rows: tuple[Tensor, ...], fresh: bool
    ) -> None:
        """``fresh``: the first launch writes, what it finds there counts for nothing; the others merge or add."""
        kernel = getattr(_kernels(), name)
        heads, groups = self.sizes[:2]
        worn = any(self.flags[flag] for flag in ("PACKED", "CAPPED", "BIASED"))
        shape = tiles(name, self.dtype, max(map(_power, self.columns)), worn, _room(rows[0].device))
        by_keys = name == "add_key_gradients"
        for number, (part, within, band) in enumerate(self.launches):
            length, tile = (part[3] - part[2], shape["KEYS"]) if by_keys else (part[1] - part[0], shape["ROWS"])
            of_class = (length - 1) // band.step + 1
            grid = (band.step * ((of_class - 1) // tile + 1), self.batch * (groups if by_keys else heads))
            with _device_of(rows[0]):
                kernel[grid](
                    *(*views, *rows, self.mask, self.runs, self.bias, self.sizes, part, within, tuple(band)),
                    *(*self.numbers, *self.columns),
                    *map(_power, self.columns),
                    **self.flags,
                    HOLED=band.holed,
                    MERGED=number > 0 or not fresh,
                    **shape,
                )


def _launches(call: Call) -> Iterator[_Launch]:
    """Each band of each part of the pattern. With segments all rows are launched, and the parts count from a run's start."""
    n, m = call.q.shape[2], call.k.shape[2]
    for rows, keys, bands in call.pattern.parts(n, m, call.q_offset):
        within = (*rows, *keys)
        part = within if call.runs is None else (0, n, 0, m)
        sizes = part[1] - part[0], part[3] - part[2], call.q_offset + part[0] - part[2]
        for band in in_steps(bands, *sizes):
            yield _Launch(part, within, band)


def _power(columns: int) -> int:
    """The power of two, 16 at least, that a row of so many numbers fits into."""
    return max(16, 1 << (columns - 1).bit_length())


@functools.cache
def _room(device: torch.device) -> int:
    """Bytes of shared memory that a block may have there."""
    if device.type != "cuda":
        return _LEAST_ROOM
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", _LEAST_ROOM))  # ROCm has none


@functools.cache
def _kernels() -> ModuleType:
    from jieyue.attention.engines import fused_kernels

    return fused_kernels


def _interpreted() -> bool:
    """Whether Triton was told to run kernels in Python."""
    return type(_kernels().attend_band).__name__ == "InterpretedFunction"


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
