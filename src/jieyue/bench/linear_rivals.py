"""The ways to compute linear attention that the benchmark compares: ours, the plain ones and other projects'.

Each takes q, k, v [1, H, N, D] and computes elu(x) + 1, normalised, as ``attend_linear(features="elu")`` does.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jieyue.attention import local
from jieyue.linear import attend_hybrid, attend_linear, attend_window

from .rivals import Attention, sdpa

__all__ = ["LINEAR_CURVES", "LINEAR_RIVALS", "LinearRival", "linear"]

_MOST_BYTES = 2**30  # that a rival's largest tensor may take


@dataclass(frozen=True)
class LinearRival:
    """``make(causal, n, device)`` gives the function, or why there is none."""

    name: str
    make: Callable[[bool, int, str], Attention | str]


def linear(features: str, causal: bool = False) -> Attention:
    """``attend_linear`` with a map."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend_linear(q, k, v, features, causal=causal)
        assert isinstance(out, Tensor)
        return out

    return call


LINEAR_CURVES: dict[str, Attention] = {
    **{f"linear({name})": linear(name) for name in ("elu", "relu", "cosine", "softmax", "taylor2")},
    "linear(elu, window=128)": lambda q, k, v: attend_window(q, k, v, "elu", 128),
    "local(128)+linear(elu)": lambda q, k, v: attend_hybrid(q, k, v, local(128), "elu"),
}


def _features(x: Tensor) -> Tensor:
    return torch.nn.functional.elu(x) + 1


def _einsum(causal: bool, n: int, device: str) -> Attention | str:
    """φ(q)(φ(k)ᵀv) as two einsums; causally the whole matrix of weights, its triangle kept."""
    if causal and 12 * n * n * 4 > _MOST_BYTES:
        return f"the weights would take {12 * n * n * 4 / 2**30:.0f} GiB"

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a, b = _features(q), _features(k)
        out = torch.einsum("bhnd,bhdv->bhnv", a, torch.einsum("bhnd,bhnv->bhdv", b, v))
        return out / torch.einsum("bhnd,bhd->bhn", a, b.sum(2))[..., None]

    def past(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bhnd,bhmd->bhnm", _features(q), _features(k)).tril()
        return torch.einsum("bhnm,bhmv->bhnv", weights, v) / weights.sum(-1, keepdim=True)

    return past if causal else whole


def _cumsum(causal: bool, n: int, device: str) -> Attention | str:
    """The sums before every position, all kept: n·D·V numbers for each head."""
    if not causal:
        return "it is a causal form"
    if 12 * n * 64 * 64 * 4 > _MOST_BYTES:
        return f"the sums would take {12 * n * 64 * 64 * 4 / 2**30:.0f} GiB"

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a, b = _features(q), _features(k)
        sums = (b[..., :, None] * v[..., None, :]).cumsum(2)
        return torch.einsum("bhnd,bhndv->bhnv", a, sums) / (a * b.cumsum(2)).sum(-1, keepdim=True)

    return call


def _fla(causal: bool, n: int, device: str) -> Attention | str:
    if not causal:
        return "it is causal only"
    reason = _missing(device, "fla", "flash-linear-attention")
    if reason:
        return reason
    from fla.ops.linear_attn import chunk_linear_attn

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a, b = _features(q).transpose(1, 2), _features(k).transpose(1, 2)
        out, _ = chunk_linear_attn(a, b, v.transpose(1, 2), scale=1.0, normalize=True)
        return out.transpose(1, 2)

    return call


def _flash_bla(causal: bool, n: int, device: str) -> Attention | str:
    if causal:
        return "it is bidirectional only"
    reason = _missing(device, "flash_bla", "flash-bidirectional-linear-attention")
    if reason:
        return reason
    from flash_bla.ops.linear_attn.fused import linear_attention

    return lambda q, k, v: linear_attention(_features(q), _features(k), v)


def _missing(device: str, module: str, project: str) -> str:
    if not device.startswith("cuda"):
        return "it runs on CUDA only"
    return "" if importlib.util.find_spec(module) else f"{project} is not installed"


LINEAR_RIVALS = (
    LinearRival("SDPA, full", lambda causal, n, device: functools.partial(sdpa(causal))),
    LinearRival("einsum", _einsum),
    LinearRival("cumsum", _cumsum),
    LinearRival("flash-linear-attention", _fla),
    LinearRival("flash-bidirectional-linear-attention", _flash_bla),
)
