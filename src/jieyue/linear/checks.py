"""What every call of linear attention checks at its door: the tensors that it got, and maps that cannot do what is asked."""

from __future__ import annotations

import torch
from torch import Tensor

from jieyue.errors import InputError

from .features import FeatureMap

__all__ = ["check_tensors", "refuse_positions"]


def refuse_positions(asked: str, features: FeatureMap, why: str) -> None:
    """``InputError`` for a map that normalises each key over all positions, where these cannot be known."""
    if features.over_positions:
        raise InputError(
            f"{asked} with features={features.name!r}, expected a map of each key alone: this one normalises each key over all "
            f"positions, so {why}; use elu, relu, cosine or taylor2"
        )


def check_tensors(call: str, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> None:
    """Shapes, dtypes and devices; each message names the argument, what it was and what was expected."""
    for name, x, shape in (("q", q, "[B, H, N, D]"), ("k", k, "[B, G, M, D]"), ("v", v, "[B, G, M, V]")):
        if not isinstance(x, Tensor):
            raise InputError(f"{call}: {name} is {type(x).__name__}, expected a tensor {shape}")
        if x.dim() != 4:
            raise InputError(f"{call}: {name} has shape {list(x.shape)}, expected {shape}")
        if not x.is_floating_point():
            raise InputError(f"{call}: {name} has dtype {x.dtype}, expected a floating type")
        if 0 in x.shape:
            raise InputError(f"{call}: {name} has shape {list(x.shape)}, expected {shape}, every size at least 1")
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
