"""The native engine: bands of any shape on the CPU in float32 and bfloat16, by the C library that is built with the package.

For each query i, over the keys j that a band and the key mask allow,

    lse_i = log sum_j exp(scale q_i.k_j),    out_i = sum_j kept_ij exp(scale q_i.k_j - lse_i) v_j,

and the gradients of both. Several disjoint bands are one call: each merges into what the one before has written, so a
union costs no pass of its own. Tasks (batch, head, residue class, tile of rows) run on torch's own OpenMP threads, and
results do not depend on their number.

Cost: O(pairs (D + V)) time; beside the outputs one workspace per thread, which stops growing with N and M once these are
large (about 1 MiB forward, 3 MiB backward at D = 64, a window of 512 keys) and is kept for the next call.
Refuses: other dtypes and devices, and everything where the library is not built. Never compiles anything.

Letters: B batch, H query heads, G key heads, N queries, M keys, D size of a query or key, V size of a value.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from jieyue.attention.call import Call, Gradients, Upstream
from jieyue.attention.lowering import BandLike, Steps, in_steps
from jieyue.attention.partial import Partial

from .library import Parallel, View, parallel, room, view_of, workspace

__all__ = ["NATIVE", "Native", "builds"]

_LIBRARY = Path(__file__).parents[1] / "libband.so"
_MOST_ROWS = 1 << 30
_ABILITIES = ("sinks",)
_MOST_ADDED = 1024  # a band of more keys adds to a gradient so often that bfloat16 would not hold the sum


class Native:
    """The engine; `rank` picks a build, 0 being the fastest that this processor runs."""

    name = "native"
    halves: tuple[torch.dtype, ...] = (torch.bfloat16,)

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def refuses(self, call: Call) -> str | None:
        """Why `call` cannot run here, or None."""
        missing = _missing()
        if missing is not None:
            return missing
        for name in ("q", "k", "v"):
            x = getattr(call, name)
            if x.device.type != "cpu" or x.dtype not in (torch.float32, *self.halves):
                return f"the native engine computes float32 and bfloat16 on the CPU, {name} is {x.dtype} on {x.device.type}"
            if x.shape[2] >= _MOST_ROWS:
                return f"the native engine takes fewer than {_MOST_ROWS} rows, {name} has {x.shape[2]}"
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

    def forward(self, q: Tensor, k: Tensor, v: Tensor, band: BandLike, **options: Any) -> tuple[Tensor, Tensor]:
        """out [B, H, N, V] in [B, N, H, V] memory and lse [B, H, N] of one band; options as in `forward_union`."""
        return self.forward_union(q, k, v, (band,), **options)

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
        """out and lse of disjoint bands in one softmax."""
        batch, heads, n, width = *q.shape[:3], v.shape[3]
        lowered = in_steps(bands, n, k.shape[2], q_offset)
        out = room(batch, n, heads, width, q.dtype if len(lowered) <= 1 else torch.float32)
        lse = q.new_empty(batch, heads, n, dtype=torch.float32)
        if not lowered or out.numel() == 0:
            return out.zero_(), lse.fill_(-torch.inf)
        views = {"q": q, "k": k, "v": v, "out": out}
        self._run("forward", views, lse, None, lowered, key_mask, scale, dropout, seed, q_offset)
        return out, lse

    def backward(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        delta: Tensor,
        band: BandLike,
        **options: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv of one band, given the lse and delta of the whole union."""
        return self.backward_union(grad_out, q, k, v, lse, delta, (band,), **options)

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
        lowered = in_steps(bands, q.shape[2], k.shape[2], q_offset)
        wide = len(lowered) > 1 or any(band.hi - band.lo >= _MOST_ADDED for band in lowered)
        dtype = torch.float32 if wide else q.dtype
        dq, dk, dv = (room(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype) for x in (q, k, v))
        if not lowered or grad_out.numel() == 0:
            return dq.zero_(), dk.zero_(), dv.zero_()
        views = {"q": q, "k": k, "v": v, "grad_out": grad_out, "dq": dq, "dk": dk, "dv": dv}
        self._run("backward", views, lse, delta, lowered, key_mask, scale, dropout, seed, q_offset)
        return dq, dk, dv

    def delta(self, grad_out: Tensor, out: Tensor) -> Tensor:
        """sum_d grad_out * out [B, H, N] in one pass, with no product of their size: what `backward` takes, less the
        gradient of lse."""
        found = out.new_empty(out.shape[:3], dtype=torch.float32)
        if found.numel():
            shape = (out.shape[0], out.shape[1], 1, out.shape[2], 0, 0, out.shape[3], 0)
            self._call("delta", shape, {"grad_out": grad_out, "out": out}, delta=found.data_ptr())
        return found

    def _run(
        self,
        which: str,
        views: dict[str, Tensor],
        lse: Tensor,
        delta: Tensor | None,
        bands: list[Steps],
        key_mask: Tensor | None,
        scale: float,
        dropout: float,
        seed: int,
        q_offset: int,
    ) -> None:
        lse, delta = lse.contiguous(), None if delta is None else delta.contiguous()
        q, k, v = views["q"], views["k"], views["v"]
        self._call(
            which,
            (q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3], q_offset),
            views,
            key_mask,
            lse=lse.data_ptr(),
            delta=None if delta is None else delta.data_ptr(),
            bands=(_Band * len(bands))(*(_Band(*band) for band in bands)),
            num_bands=len(bands),
            scale=scale,
            kept_scale=1 / (1 - dropout),
            threshold=int(dropout * 2**32),
            seed_low=seed & 0xFFFFFFFF,
            seed_high=seed >> 32 & 0xFFFFFFFF,
        )

    def _call(
        self,
        which: str,
        sizes: tuple[int, ...],
        views: dict[str, Tensor],
        key_mask: Tensor | None = None,
        **fields: Any,
    ) -> None:
        library, threads = _library(), torch.get_num_threads()
        kept = {name: x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous() for name, x in views.items()}
        pointers = {name: view_of(x) for name, x in kept.items()}
        call = _Arguments(*sizes, **pointers, **fields, threads=threads, parallel=parallel())
        if key_mask is not None:
            call.key_mask, call.mask_batch, call.mask_key = key_mask.data_ptr(), *key_mask.stride()
        floats = library.jieyue_band_workspace(self.rank, ctypes.byref(call), int(which == "backward"))
        call.workspace = workspace(threads * floats).data_ptr()
        getattr(library, f"jieyue_band_{which}")(self.rank, ctypes.byref(call))


NATIVE = Native()


def builds() -> list[str]:
    """Names of the builds that this processor runs, the fastest first: ``Native(rank)`` takes their positions."""
    library = _library()
    names: list[str] = []
    while (name := library.jieyue_band_name(len(names))) is not None:
        names.append(name.decode())
    return names


class _Band(ctypes.Structure):
    _fields_: ClassVar[Sequence[tuple[str, Any]]] = [
        (s, ctypes.c_int64) for s in ("step", "lo", "hi", "hole_lo", "hole_hi")
    ]


class _Arguments(ctypes.Structure):
    """csrc/band.h, field by field."""

    _fields_: ClassVar[Sequence[tuple[str, Any]]] = [
        *((s, ctypes.c_int64) for s in ("B", "H", "G", "N", "M", "D", "V", "q_offset")),
        *((s, View) for s in ("q", "k", "v", "out", "grad_out", "dq", "dk", "dv")),
        *((s, ctypes.c_void_p) for s in ("lse", "delta", "key_mask")),
        *((s, ctypes.c_int64) for s in ("mask_batch", "mask_key")),
        ("bands", ctypes.POINTER(_Band)),
        *((s, ctypes.c_int64) for s in ("num_bands", "accumulate")),
        *((s, ctypes.c_float) for s in ("scale", "kept_scale")),
        *((s, ctypes.c_uint32) for s in ("threshold", "seed_low", "seed_high")),
        ("workspace", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
        ("parallel", Parallel),
    ]


@functools.cache
def _opened() -> ctypes.CDLL | str:
    if not _LIBRARY.exists():
        return "the native library is not built: no C++ compiler was found when jieyue was installed"
    try:
        library = ctypes.CDLL(str(_LIBRARY))
    except OSError as error:
        return f"the native library cannot be loaded: {error}"
    library.jieyue_band_call_bytes.restype = ctypes.c_int64
    if library.jieyue_band_call_bytes() != ctypes.sizeof(_Arguments):
        return "the native library was built from another version of jieyue: install it again"
    library.jieyue_band_name.restype = ctypes.c_char_p
    library.jieyue_band_name.argtypes = [ctypes.c_int64]
    library.jieyue_band_workspace.restype = ctypes.c_int64
    library.jieyue_band_workspace.argtypes = [ctypes.c_int64, ctypes.POINTER(_Arguments), ctypes.c_int]
    for function in (library.jieyue_band_forward, library.jieyue_band_backward, library.jieyue_band_delta):
        function.restype, function.argtypes = None, [ctypes.c_int64, ctypes.POINTER(_Arguments)]
    return library


def _missing() -> str | None:
    opened = _opened()
    return opened if isinstance(opened, str) else None


def _library() -> ctypes.CDLL:
    opened = _opened()
    assert not isinstance(opened, str), opened
    return opened
