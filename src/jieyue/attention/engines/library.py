"""What every call into a C library of ours shares: tensors as pointers and strides, torch's threads, and a workspace."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

__all__ = ["Parallel", "View", "opened", "parallel", "room", "view_of", "workspace"]

_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Parallel = ctypes.CFUNCTYPE(None, _WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
_WORKSPACES = threading.local()  # one tensor per calling thread
_HUGE_PAGE, _MADV_HUGEPAGE = 1 << 21, 14


Fields: TypeAlias = "Sequence[tuple[str, type[ctypes._CDataType]]]"


class View(ctypes.Structure):
    """A tensor [batch, head, row, column] whose columns are neighbours: csrc/band.h."""

    _fields_: ClassVar[Fields] = [
        ("data", ctypes.c_void_p),
        *((s, ctypes.c_int64) for s in ("batch", "head", "row", "half")),
    ]


def view_of(x: Tensor) -> View:
    """x [B, H, N, D] as the library reads it: float32, or bfloat16; its last stride must be 1."""
    return View(x.data_ptr(), *x.stride()[:3], x.dtype == torch.bfloat16)


def opened(path: Path, prefix: str, call: type[ctypes.Structure]) -> ctypes.CDLL | str:
    """The library, its names told to ctypes; or why it is not there. ``call``: the structure that it was built for."""
    if not path.exists():
        return "the native library is not built: no C++ compiler was found when jieyue was installed"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the native library cannot be loaded: {error}"
    size, name = getattr(library, f"{prefix}_call_bytes"), getattr(library, f"{prefix}_name")
    size.restype = ctypes.c_int64
    if size() != ctypes.sizeof(call):
        return "the native library was built from another version of jieyue: install it again"
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.c_int64]
    return library


@functools.cache
def parallel() -> Callable[..., None]:
    """Torch's own OpenMP runtime where it speaks GCC's dialect (a second one would fight it); else Python's threads."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, Parallel)
    except (AttributeError, OSError, TypeError):
        return Parallel(_on_python_threads)


def _on_python_threads(work: Callable[[int], None], data: int, threads: int, _flags: int) -> None:
    others = [threading.Thread(target=work, args=(data,)) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    work(data)
    for thread in others:
        thread.join()


def workspace(floats: int) -> Tensor:
    """At least so many float32 numbers, kept for this thread's next call."""
    held: Tensor | None = getattr(_WORKSPACES, "held", None)
    if held is None or held.numel() < floats:
        _WORKSPACES.held = held = torch.empty(floats, dtype=torch.float32)
    return held


def room(batch: int, rows: int, heads: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised [batch, heads, rows, columns] in [batch, rows, heads, columns] memory, in huge pages where the
    system offers them: the first touch of new memory in small ones costs up to a tenth of a kernel's time."""
    x = torch.empty(batch, rows, heads, columns, dtype=dtype)
    first, end = -(-x.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE, (x.data_ptr() + x.nbytes) // _HUGE_PAGE * _HUGE_PAGE
    if first < end and (advise := _advise()) is not None:
        advise(first, end - first, _MADV_HUGEPAGE)
    return x.transpose(1, 2)


@functools.cache
def _advise() -> Callable[[int, int, int], int] | None:
    """Linux's madvise, or None elsewhere. Its answer does not matter: the memory is right either way."""
    if not sys.platform.startswith("linux"):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise
