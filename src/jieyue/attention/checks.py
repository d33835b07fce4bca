"""What ``attend`` checks at its door: each message names the argument, what it was and what was expected.

Letters: as in ``operator``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jieyue.errors import InputError

from .engines import named
from .pattern import Pattern

__all__ = ["check_additions", "check_segments", "check_settings", "check_tensors"]


def check_tensors(call: str, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> None:
    """Shapes, dtypes and devices of what ``call`` was given; each message names the argument, what it was and what was expected."""
    for name, x, shape in (("q", q, "[B, H, N, D]"), ("k", k, "[B, G, M, D]"), ("v", v, "[B, G, M, V]")):
        if not isinstance(x, Tensor):
            raise InputError(f"{call}: {name} is {type(x).__name__}, expected a tensor {shape}")
        if x.dim() != 4:
            raise InputError(f"{call}: {name} has shape {list(x.shape)}, expected {shape}")
        if not x.is_floating_point():
            raise InputError(f"{call}: {name} has dtype {x.dtype}, expected a floating type")
        if 0 in x.shape:
            raise InputError(f"{call}: {name} has shape {list(x.shape)}, expected {shape} with every size at least 1")
        if x.device != q.device:
            raise InputError(f"{call}: {name} is on {x.device} and q on {q.device}, expected one device")
        if x.dtype != q.dtype and not torch.is_autocast_enabled(q.device.type):
            raise InputError(f"{call}: {name} has dtype {x.dtype} and q {q.dtype}, expected one dtype")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise InputError(
            f"{call}: k has shape {list(k.shape)}, expected [{q.shape[0]}, G, M, {q.shape[3]}] to match q {list(q.shape)}"
        )
    if v.shape[:3] != k.shape[:3]:
        raise InputError(f"{call}: v has shape {list(v.shape)}, expected {list(k.shape[:3])} + [V] to match k")
    if q.shape[1] % k.shape[1]:
        raise InputError(f"{call}: q has {q.shape[1]} heads and k has {k.shape[1]}, expected a multiple of k's")
    if key_mask is None:
        return
    if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
        found = key_mask.dtype if isinstance(key_mask, Tensor) else type(key_mask).__name__
        raise InputError(f"{call}: key_mask is {found}, expected a bool tensor [B, M], True = keep")
    if key_mask.shape != (k.shape[0], k.shape[2]):
        raise InputError(f"{call}: key_mask has shape {list(key_mask.shape)}, expected {[k.shape[0], k.shape[2]]}")
    if key_mask.device != q.device:
        raise InputError(f"{call}: key_mask is on {key_mask.device} and q on {q.device}, expected one device")


def check_settings(
    pattern: Pattern | str, scale: float | None, dropout: float, q_offset: int, engine: str | None, width: int
) -> float:
    """The rest; returns the scale to use."""
    if not isinstance(pattern, Pattern | str):
        raise InputError(f"attend: pattern is {type(pattern).__name__}, expected a Pattern or its text")
    if not 0 <= dropout < 1:
        raise InputError(f"attend: dropout={dropout}, expected 0 ≤ dropout < 1")
    if isinstance(q_offset, bool) or not isinstance(q_offset, int | torch.SymInt):
        raise InputError(f"attend: q_offset={q_offset!r}, expected a whole number")
    if scale is not None and (isinstance(scale, str) or not math.isfinite(scale)):
        raise InputError(f"attend: scale={scale!r}, expected a finite number")
    if engine is not None:
        named(engine)
    return width**-0.5 if scale is None else float(scale)


def check_additions(
    q: Tensor,
    k: Tensor,
    q_offset: int,
    segments: Tensor | None,
    sinks: Tensor | None,
    softcap: float | None,
    offset_bias: Tensor | None,
) -> None:
    """Segments, sinks, soft-capping and offset biases."""
    if segments is not None:
        check_segments("attend", q, k, q_offset, segments)
    if softcap is not None and not (isinstance(softcap, int | float) and math.isfinite(softcap) and softcap > 0):
        raise InputError(f"attend: softcap={softcap!r}, expected a finite number above 0, or None")
    heads, diagonals = q.shape[1], q.shape[2] + k.shape[2] - 1
    if sinks is not None:
        _check_logits("sinks", sinks, q, ((heads,),))
    if offset_bias is not None:
        _check_logits("offset_bias", offset_bias, q, ((heads, diagonals), (1, diagonals)))


def check_segments(call: str, q: Tensor, k: Tensor, q_offset: int, segments: Tensor) -> None:
    """Their type, shape and device; the ids are read by ``segments.runs_of``."""
    kinds = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
    if not isinstance(segments, Tensor) or segments.dtype not in kinds:
        found = segments.dtype if isinstance(segments, Tensor) else type(segments).__name__
        raise InputError(f"{call}: segments is {found}, expected a tensor of whole numbers [B, N]")
    if segments.shape != (q.shape[0], q.shape[2]):
        raise InputError(f"{call}: segments has shape {list(segments.shape)}, expected {[q.shape[0], q.shape[2]]}")
    if segments.device != q.device:
        raise InputError(f"{call}: segments is on {segments.device} and q on {q.device}, expected one device")
    if q.shape[2] != k.shape[2]:
        raise InputError(f"{call}: segments with {q.shape[2]} queries and {k.shape[2]} keys, expected as many")
    if q_offset != 0:
        raise InputError(f"{call}: segments with q_offset={q_offset}, expected 0: queries and keys are the same rows")


def _check_logits(name: str, x: Tensor, q: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Its type, shape (one of ``shapes``) and device."""
    if not isinstance(x, Tensor):
        raise InputError(f"attend: {name} is {type(x).__name__}, expected a tensor {_either(shapes)}")
    if not any(x.shape == shape for shape in shapes):
        raise InputError(f"attend: {name} has shape {list(x.shape)}, expected {_either(shapes)}")
    if not x.is_floating_point():
        raise InputError(f"attend: {name} has dtype {x.dtype}, expected a floating type")
    if x.device != q.device:
        raise InputError(f"attend: {name} is on {x.device} and q on {q.device}, expected one device")


def _either(shapes: tuple[tuple[int, ...], ...]) -> str:
    return " or ".join(str(list(shape)) for shape in shapes)
