"""The native engine: any pattern on the CPU in float32 and bfloat16, by the C library that is built with the package.

It computes what ``call`` says, and the gradients: bands, the first columns of each run in the same pass as the first band, global
rows, segments, softcap, sinks, biases by offset. Several disjoint bands are one call: each merges into what the one before has
written, so a union costs no pass of its own. Tasks (batch, head, residue class, tile of rows) run on torch's own OpenMP threads,
and results do not depend on their number.

Cost: O(pairs (D + V)) time; beside the outputs one workspace per thread, which stops growing with N and M once these are
large (about 1 MiB forward, 3 MiB backward at D = 64, a window of 512 keys) and is kept for the next call. Backward, the gradients
of offset biases and of first columns are left by tile and then added up: B·H·N/512 times the keys of a row in a band (a few
thousand for bands of more), and B·G·N/512 times the columns' k and v.
Refuses: other dtypes and devices, causal first keys beside a pattern that is not causal, and everything where the library is not
built. Never compiles anything.

Letters: B batch, H query heads, G key heads, N queries, M keys, D size of a query or key, V size of a value.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from jieyue.attention.call import Call, Gradients, Upstream
from jieyue.attention.lowering import Steps, in_steps

from .library import Fields, Parallel, View, opened, parallel, room, view_of, workspace

__all__ = ["NATIVE", "Native", "builds"]

_LIBRARY = Path(__file__).parents[1] / "libband.so"
_MOST_ROWS = 1 << 30
_MOST_ADDED = 1024  # a band of more keys adds to a gradient so often that bfloat16 would not hold the sum
_PAD = 16  # numbers before and behind a row of biases, that vectors may touch
_LOG2E = 1.4426950408889634


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
        for name, x in (("q", call.q), ("k", call.k), ("v", call.v)):
            if x.device.type != "cpu" or x.dtype not in (torch.float32, *self.halves):
                return f"the native engine computes float32 and bfloat16 on the CPU, {name} is {x.dtype} on {x.device.type}"
            if x.shape[2] >= _MOST_ROWS:
                return f"the native engine takes fewer than {_MOST_ROWS} rows, {name} has {x.shape[2]}"
        if call.mixed:
            return "the native engine has no causal first keys beside a pattern that is not causal"
        return None

    def attend(self, call: Call, *, alone: bool = False) -> tuple[Tensor, Tensor]:
        """out [B, H, N, V] in [B, N, H, V] memory, and lse [B, H, N]; out is float32 where several parts add to it.

        Where a result is NaN or infinite, another segment's numbers may have had a part in it (0 times NaN is NaN): then each
        run is computed `alone`, zeros around it."""
        work = _Work(call)
        q, v = call.q, call.v
        dtype = torch.float32 if len(work.bands) > 1 else q.dtype
        out = room(q.shape[0], q.shape[2], q.shape[1], v.shape[3], dtype)
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        self._run("forward", work, {"q": q, "k": call.k, "v": v, "out": out}, lse)
        if alone or not work.is_odd:
            return out, lse
        out, lse = torch.zeros_like(out), torch.full_like(lse, -torch.inf)
        for rows, part in _each_run(call):
            own = self.attend(part, alone=True)
            out, lse = torch.where(rows[..., None], own[0], out), torch.where(rows, own[1], lse)
        return out, lse

    def differentiate(self, call: Call, given: Upstream, *, alone: bool = False) -> Gradients:
        """dq, dk, dv in [B, N, H, D] (and [B, M, G, ...]) memory, and the gradient of offset_bias."""
        work = _Work(call, backward=True)
        q, k, v = call.q, call.k, call.v
        wide = len(work.bands) > 1 or call.num_global or any(band.hi - band.lo >= _MOST_ADDED for band in work.bands)
        dtype = torch.float32 if wide else q.dtype
        dq, dk, dv = (room(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype) for x in (q, k, v))
        views = {"q": q, "k": k, "v": v, "grad_out": given.grad_out, "dq": dq, "dk": dk, "dv": dv}
        self._run("backward", work, views, given.lse.contiguous(), given.delta.contiguous())
        found = Gradients(dq, dk, dv, work.bias_gradient())
        if alone or not work.is_odd:
            return found
        of_bias = None if found.offset_bias is None else torch.zeros_like(found.offset_bias)
        found = Gradients(torch.zeros_like(dq), torch.zeros_like(dk), torch.zeros_like(dv), of_bias)
        for rows, part in _each_run(call):
            clean = Upstream(given.grad_out.masked_fill(~rows[..., None], 0.0), given.lse, given.delta)
            own = self.differentiate(part, clean, alone=True)
            dq, dk, dv = (torch.where(rows[..., None], x, y) for x, y in zip(own[:3], found[:3], strict=True))
            if of_bias is not None and own.offset_bias is not None:
                of_bias += own.offset_bias
            found = Gradients(dq, dk, dv, of_bias)
        return found

    def delta(self, grad_out: Tensor, out: Tensor) -> Tensor:
        """sum_d grad_out * out [B, H, N] in one pass, with no product of their size: what `differentiate` takes, less the
        gradient of lse."""
        found = out.new_empty(out.shape[:3], dtype=torch.float32)
        arguments = _Arguments(out.shape[0], out.shape[1], 1, out.shape[2], 0, 0, out.shape[3], 0)
        arguments.delta = found.data_ptr()
        self._call("delta", arguments, {"grad_out": grad_out, "out": out})
        return found

    def _run(self, which: str, work: _Work, views: dict[str, Tensor], lse: Tensor, delta: Tensor | None = None) -> None:
        call, (q, k, v) = work.call, (views["q"], views["k"], views["v"])
        arguments = _Arguments(
            *(q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3], call.q_offset),
            lse=lse.data_ptr(),
            delta=None if delta is None else delta.data_ptr(),
            scale=call.scale,
            kept_scale=1 / (1 - call.dropout),
            softcap=call.softcap,
            threshold=int(call.dropout * 2**32),
            seed_low=call.seed & 0xFFFFFFFF,
            seed_high=call.seed >> 32 & 0xFFFFFFFF,
        )
        work.fill(arguments)
        if call.key_mask is not None:
            arguments.key_mask = call.key_mask.data_ptr()
            arguments.mask_batch, arguments.mask_key = call.key_mask.stride()
        self._call(which, arguments, views)

    def _call(self, which: str, arguments: _Arguments, views: dict[str, Tensor]) -> None:
        library, threads = _library(), torch.get_num_threads()
        kept = {name: x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous() for name, x in views.items()}
        for name, x in kept.items():
            setattr(arguments, name, view_of(x))
        arguments.threads, arguments.parallel = threads, parallel()
        shared = 0
        if which == "backward":
            shared = library.jieyue_band_shared(self.rank, ctypes.byref(arguments))
        floats = library.jieyue_band_workspace(self.rank, ctypes.byref(arguments), int(which == "backward"))
        own = torch.empty(shared, dtype=torch.float32) if shared else None
        arguments.shared = None if own is None else own.data_ptr()
        arguments.workspace = workspace(threads * floats).data_ptr()
        getattr(library, f"jieyue_band_{which}")(self.rank, ctypes.byref(arguments))


NATIVE = Native()


def builds() -> list[str]:
    """Names of the builds that this processor runs, the fastest first: ``Native(rank)`` takes their positions."""
    library = _library()
    names: list[str] = []
    while (name := library.jieyue_band_name(len(names))) is not None:
        names.append(name.decode())
    return names


def _each_run(call: Call) -> Iterator[tuple[Tensor, Call]]:
    """For each run of a segment (the first of every row of the batch together, then the second, ...): which rows are of it,
    [B, 1, N], and the call with zeros in all others."""
    if call.runs is None:
        return
    start, stop = call.runs
    present = stop > 0
    number = ((start == torch.arange(start.shape[1])) & present).cumsum(1).masked_fill(~present, 0)
    for one in range(1, int(number.max()) + 1):
        rows = number == one
        hidden = ~rows[:, None, :, None]
        q, k, v = (x.masked_fill(hidden, 0.0) for x in (call.q, call.k, call.v))
        yield rows[:, None], replace(call, q=q, k=k, v=v, runs=call.runs.masked_fill(~rows, 0))


class _Work:
    """A call in the library's terms; keeps what its pointers point to."""

    def __init__(self, call: Call, *, backward: bool = False) -> None:
        n, m = call.q.shape[2], call.k.shape[2]
        self.call = call
        self.odd = torch.zeros(1, dtype=torch.int32)
        self.starts = self.stops = None
        if call.runs is not None:
            absent, at = call.runs[1] == 0, torch.arange(n, dtype=torch.int32)
            self.starts, self.stops = (torch.where(absent, at, end).contiguous() for end in call.runs)
            longest = max(1, int((self.stops - self.starts).max()))
            self.bands = in_steps(call.bands, longest, longest)
        else:
            self.bands = in_steps(call.bands, n, m, call.q_offset)
        if not self.bands or (call.num_first and self.bands[0].step != 1):
            self.bands.insert(0, Steps(1, 1, 0))  # shows nothing; columns and global rows come with a band of step 1
        self.wholes = _wholes(call, self.starts, self.stops)
        self.sinks = None if call.sinks is None else call.sinks.float().contiguous()
        self.tables: list[Tensor] = []
        self.grads: list[Tensor] = []
        if call.offset_bias is not None:
            reversed_bias = call.offset_bias.float().flip(1)
            for band in self.bands:
                own = reversed_bias[:, (n - 1 + call.q_offset) % band.step :: band.step] * _LOG2E
                self.tables.append(torch.nn.functional.pad(own, (_PAD, _PAD)))
                if backward:
                    self.grads.append(own.new_zeros(call.q.shape[1], own.shape[1] + 2 * _PAD))

    def fill(self, arguments: _Arguments) -> None:
        """Writes everything but tensors, sizes and plain settings."""
        call = self.call
        bands = (_Band * len(self.bands))(*(_Band(*band) for band in self.bands))
        for number, table in enumerate(self.tables):
            bands[number].bias = table.data_ptr() + 4 * _PAD
            bands[number].bias_head = 0 if len(table) == 1 else table.shape[1]
            bands[number].bias_columns = table.shape[1]
            if self.grads:
                bands[number].bias_grad = self.grads[number].data_ptr() + 4 * _PAD
        arguments.bands, arguments.num_bands = bands, len(bands)
        if self.starts is not None and self.stops is not None:
            arguments.starts, arguments.stops = self.starts.data_ptr(), self.stops.data_ptr()
            arguments.nonfinite = self.odd.data_ptr()
        arguments.num_first, arguments.first_is_past = call.num_first, call.first_is_past
        arguments.num_global = call.num_global
        arguments.wholes, arguments.num_wholes = (_Whole * len(self.wholes))(*self.wholes), len(self.wholes)
        if self.sinks is not None:
            arguments.sinks = self.sinks.data_ptr()

    @property
    def is_odd(self) -> bool:
        """Whether a result of a call with segments is NaN or infinite."""
        return bool(self.odd)

    def bias_gradient(self) -> Tensor | None:
        """The gradient of offset_bias, its bands' together."""
        call = self.call
        if call.offset_bias is None:
            return None
        found = torch.zeros(call.q.shape[1], call.offset_bias.shape[1])
        for band, grad in zip(self.bands, self.grads, strict=True):
            found[:, (call.q.shape[2] - 1 + call.q_offset) % band.step :: band.step] += grad[:, _PAD:-_PAD]
        found = found.flip(1)
        return found.sum(0, keepdim=True) if len(call.offset_bias) == 1 else found


def _wholes(call: Call, starts: Tensor | None, stops: Tensor | None) -> list[_Whole]:
    """The global rows of each run and its keys."""
    if not call.num_global:
        return []
    n, m = call.q.shape[2], call.k.shape[2]
    if starts is None or stops is None:
        rows = min(n, call.num_global - call.q_offset)
        return [_Whole(batch, 0, rows, 0, m) for batch in range(call.q.shape[0]) if rows > 0]
    batch, at = ((starts == torch.arange(n)) & (stops > starts)).nonzero(as_tuple=True)
    sizes = (stops - starts)[batch, at].tolist()
    found = zip(batch.tolist(), at.tolist(), sizes, strict=True)
    return [_Whole(b, first, min(call.num_global, size), first, size) for b, first, size in found]


class _Band(ctypes.Structure):
    _fields_: ClassVar[Fields] = [
        *((s, ctypes.c_int64) for s in ("step", "lo", "hi", "hole_lo", "hole_hi")),
        *((s, ctypes.c_void_p) for s in ("bias", "bias_grad")),
        *((s, ctypes.c_int64) for s in ("bias_head", "bias_columns")),
    ]


class _Whole(ctypes.Structure):
    _fields_: ClassVar[Fields] = [(s, ctypes.c_int64) for s in ("batch", "first_row", "rows", "first_key", "keys")]


class _Arguments(ctypes.Structure):
    """csrc/band.h, field by field."""

    _fields_: ClassVar[Fields] = [
        *((s, ctypes.c_int64) for s in ("B", "H", "G", "N", "M", "D", "V", "q_offset")),
        *((s, View) for s in ("q", "k", "v", "out", "grad_out", "dq", "dk", "dv")),
        *((s, ctypes.c_void_p) for s in ("lse", "delta", "key_mask")),
        *((s, ctypes.c_int64) for s in ("mask_batch", "mask_key")),
        ("bands", ctypes.POINTER(_Band)),
        ("num_bands", ctypes.c_int64),
        *((s, ctypes.c_void_p) for s in ("starts", "stops")),
        *((s, ctypes.c_int64) for s in ("num_first", "first_is_past", "num_global")),
        ("wholes", ctypes.POINTER(_Whole)),
        ("num_wholes", ctypes.c_int64),
        *((s, ctypes.c_void_p) for s in ("sinks", "nonfinite", "shared", "workspace")),
        ("threads", ctypes.c_int64),
        ("parallel", Parallel),
        *((s, ctypes.c_float) for s in ("scale", "kept_scale", "softcap")),
        *((s, ctypes.c_uint32) for s in ("threshold", "seed_low", "seed_high")),
    ]


@functools.cache
def _opened() -> ctypes.CDLL | str:
    library = opened(_LIBRARY, "jieyue_band", _Arguments)
    if isinstance(library, str):
        return library
    library.jieyue_band_workspace.restype = library.jieyue_band_shared.restype = ctypes.c_int64
    library.jieyue_band_workspace.argtypes = [ctypes.c_int64, ctypes.POINTER(_Arguments), ctypes.c_int]
    library.jieyue_band_shared.argtypes = [ctypes.c_int64, ctypes.POINTER(_Arguments)]
    for function in (library.jieyue_band_forward, library.jieyue_band_backward, library.jieyue_band_delta):
        function.restype, function.argtypes = None, [ctypes.c_int64, ctypes.POINTER(_Arguments)]
    return library


def _missing() -> str | None:
    found = _opened()
    return found if isinstance(found, str) else None


def _library() -> ctypes.CDLL:
    found = _opened()
    assert not isinstance(found, str), found
    return found
