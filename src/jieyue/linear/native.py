"""Linear attention by the C library that is built with the package: float32 and bfloat16 on the CPU, forward and backward.

The same sums as ``chunked`` and ``whole``, for weights of degree at most one (elu, relu, cosine, features taken before): chunks of
64 positions whose rows (bfloat16 as float32), weights and sums stay in cache, the triangle above the diagonal never computed. A
task is a key head of one example, on torch's own OpenMP threads; results do not depend on their number.

Cost: O(N·(64·D + D·V)) time; beside the results one workspace per thread that does not grow with N (2 MiB backward at
D = V = 64), kept for the next call. Refuses what it cannot compute; never compiles anything.

Letters: as in ``chunked``.
"""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from jieyue.attention.engines.library import Fields, Parallel, View, opened, parallel, view_of, workspace

from .tiles import Form

__all__ = ["CHUNK", "Native", "native"]

CHUNK = 64
_LIBRARY = Path(__file__).parent / "liblinear.so"
_MAPS = ("identity", "elu", "relu", "cosine")


class Native:
    """The kernel; ``rank`` picks a build, 0 being the fastest that this processor runs."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def refuses(self, form: Form, q: Tensor, k: Tensor, v: Tensor) -> str | None:
        """Why this call cannot run here, or None."""
        opened = _opened()
        if isinstance(opened, str):
            return opened
        if form.features.name not in _MAPS or form.polynomial[1] != 1 or form.polynomial[2]:
            return f"the native kernel has no map {form.features.name!r} with weights {form.polynomial}"
        if form.direction and form.chunk * form.segment % CHUNK:
            return f"the native kernel takes {CHUNK} positions at once, and a segment has {form.chunk * form.segment}"
        for name, x in (("q", q), ("k", k), ("v", v)):
            if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
                return f"the native kernel computes float32 and bfloat16 on the CPU, {name} is {x.dtype} on {x.device.type}"
        return None

    def forward(
        self,
        tensors: dict[str, Tensor],
        key_mask: Tensor | None,
        floor: Tensor | None,
        start: Tensor | None,
        form: Form,
    ) -> None:
        """``tensors``: q, k, v; and to be written out, mass, total, marks (empty: none are kept)."""
        self._run("forward", tensors, key_mask, form, floor=floor, start=start)

    def backward(
        self,
        tensors: dict[str, Tensor],
        key_mask: Tensor | None,
        grad_mass: Tensor | None,
        grad_total: Tensor | None,
        form: Form,
    ) -> None:
        """``tensors``: q, k, v, out, mass, marks (direction 0: total), grad_out; and to be written dq, dk, dv, grad_start."""
        self._run("backward", tensors, key_mask, form, grad_mass=grad_mass, grad_total=grad_total)

    def _run(
        self, which: str, tensors: dict[str, Tensor], key_mask: Tensor | None, form: Form, **more: Tensor | None
    ) -> None:
        opened = _opened()
        assert not isinstance(opened, str), opened
        q, k, v = tensors["q"], tensors["k"], tensors["v"]
        views = {name: x for name, x in tensors.items() if name in _VIEWS}
        kept = {name: x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous() for name, x in views.items()}
        plain = {name: x for name, x in (tensors | more).items() if name not in views and x is not None and x.numel()}
        floor = plain.pop("floor", None)
        plain = {name: x.contiguous() for name, x in plain.items()}
        threads, (c0, _, _) = torch.get_num_threads(), form.polynomial
        call = _Call(
            *(q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3]),
            direction=form.direction, map=_MAPS.index(form.features.name), constant=bool(c0),
            segment=form.chunk * form.segment // CHUNK if form.direction else 1,
            **{name: view_of(x) for name, x in kept.items()},
            **{name: x.data_ptr() for name, x in plain.items()},
            scale=form.scale, root=math.sqrt(c0), threads=threads, parallel=parallel(),
        )  # fmt: skip
        if floor is not None:
            call.floor, call.floor_batch, call.floor_row = floor.data_ptr(), *floor.stride()
        if key_mask is not None:
            call.key_mask, call.mask_batch, call.mask_key = key_mask.data_ptr(), *key_mask.stride()
        space = workspace(threads * opened.jieyue_linear_workspace(self.rank, ctypes.byref(call), which == "backward"))
        call.workspace = space.data_ptr()
        getattr(opened, f"jieyue_linear_{which}")(self.rank, ctypes.byref(call))


native = Native()

_VIEWS = ("q", "k", "v", "out", "grad_out", "dq", "dk", "dv")


class _Call(ctypes.Structure):
    """csrc/linear.h, field by field."""

    _fields_: ClassVar[Fields] = [
        *((s, ctypes.c_int64) for s in ("B", "H", "G", "N", "M", "D", "V", "direction", "map", "constant", "segment")),
        *((s, View) for s in _VIEWS),
        *((s, ctypes.c_void_p) for s in ("mass", "grad_mass", "floor")),
        *((s, ctypes.c_int64) for s in ("floor_batch", "floor_row")),
        ("key_mask", ctypes.c_void_p),
        *((s, ctypes.c_int64) for s in ("mask_batch", "mask_key")),
        *((s, ctypes.c_void_p) for s in ("start", "total", "marks", "grad_total", "grad_start")),
        *((s, ctypes.c_float) for s in ("scale", "root")),
        ("workspace", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
        ("parallel", Parallel),
    ]


def builds() -> list[str]:
    """Names of the builds that this processor runs, the fastest first: ``Native(rank)`` takes their positions."""
    opened = _opened()
    names: list[str] = []
    if isinstance(opened, str):
        return names
    while (name := opened.jieyue_linear_name(len(names))) is not None:
        names.append(name.decode())
    return names


@functools.cache
def _opened() -> ctypes.CDLL | str:
    library = opened(_LIBRARY, "jieyue_linear", _Call)
    if isinstance(library, str):
        return library
    library.jieyue_linear_workspace.restype = ctypes.c_int64
    library.jieyue_linear_workspace.argtypes = [ctypes.c_int64, ctypes.POINTER(_Call), ctypes.c_int]
    for function in (library.jieyue_linear_forward, library.jieyue_linear_backward):
        function.restype, function.argtypes = None, [ctypes.c_int64, ctypes.POINTER(_Call)]
    return library
