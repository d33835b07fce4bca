"""``attend``: exact softmax attention over a pattern. Validates once, lowers to bands, picks an engine, merges, differentiates.

    s_ij = scale·q_i·k_j for the keys j that the pattern and key_mask show to i;  lse_i = log Σ_j e^s_ij;
    out_i = Σ_j e^(s_ij − lse_i) v_j

Backward: with g the gradient of out, l that of lse, δ_i = g_i·out_i − l_i and P_ij = e^(s_ij − lse_i), each part of the keys
gives dS_ij = P_ij (g_i·v_j − δ_i) on its own, because lse and δ are those of the whole: the parts' gradients add.

Both passes are ``torch.library`` operators with shape rules, so fake tensors and ``torch.compile`` see through them; the
backward of the backward (``create_graph``) is in ``second_order``.

Letters: B batch, H query heads, G key heads, N queries, M keys, D size of a query or key, V size of a value.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from jieyue.errors import InputError

from .dropout import draw_seed
from .engines import Call, named, pick
from .partial import Partial
from .pattern import Pattern, parse
from .second_order import second_backward

__all__ = ["attend"]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | str,
    *,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    q_offset: int = 0,
    engine: str | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention of q over the keys that ``pattern`` shows: out [B, H, N, V]; ``return_lse``: with lse [B, H, N].

    out_i = Σ_j softmax_j(scale·q_i·k_j) v_j over the j with (i + q_offset − j) in the pattern and key_mask[b, j] True.
    A query that sees no key gives zeros, lse −∞ and zero gradients.

    Shapes: q [B, H, N, D]; k [B, G, M, D], v [B, G, M, V], H a multiple of G (query head h reads key head h // (H/G), nothing
    is repeated); key_mask [B, M] bool, True = keep. Any N, M ≥ 1, any strides; out lies in memory as [B, N, H, V].
    scale defaults to D^−½. ``q_offset`` is the position of the first query among the keys (decoding: M − N). ``dropout`` zeroes
    each normalised weight with that probability and scales the rest by 1/(1 − dropout), by a seed drawn from torch's
    default generator; the same in every engine. lse is float32 (float64 for float64) and differentiable.

    Cost: time O(pairs·(D + V)), ``pattern.pairs(N, M)`` of them per head. Memory beside q, k, v, out and their gradients: lse
    and δ, 4 bytes each per query and head, and a workspace that does not grow with N. That is all for local, atrous and full,
    and for sparse and other unions where the engine is native or fused (of fused in half precision: float32 copies of out and
    of the gradients while bands add to them); composed merges one more out and lse. Half precision on the CPU: float32 copies.
    Never a tensor of N·M beyond 512² of them.

    Refuses, with ``InputError`` (a ValueError): shapes, dtypes and devices that do not fit, N, M or D of 0, dropout outside
    [0, 1), an unknown engine, and a named engine that cannot run the call (it never falls back).
    """
    if isinstance(pattern, str) and not torch.compiler.is_compiling():  # a graph takes the text as it is
        pattern = parse(pattern)
    _check_tensors(q, k, v, key_mask)
    scale = _check_settings(pattern, scale, dropout, q_offset, engine, q.shape[3])
    if torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    seed = draw_seed() if dropout else None
    out, lse = _attend(q, k, v, key_mask, seed, str(pattern), scale, float(dropout), q_offset, engine or "")
    return (out, lse) if return_lse else out


@torch.library.custom_op("jieyue::attend", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    scale: float,
    dropout: float,
    q_offset: int,
    engine: str,
) -> tuple[Tensor, Tensor]:
    out, lse = _forward(_lifted(q, k, v, key_mask, seed, (pattern, scale, dropout, q_offset)), engine)
    return _in_rows(out.to(q.dtype)), lse.contiguous()


@_attend.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    scale: float,
    dropout: float,
    q_offset: int,
    engine: str,
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _like_rows(q, v.shape[3]), q.new_empty(q.shape[:3], dtype=wide)


@torch.library.custom_op("jieyue::attend_backward", mutates_args=())
def _attend_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    key_mask: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    scale: float,
    dropout: float,
    q_offset: int,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    call = _lifted(q, k, v, key_mask, seed, (pattern, scale, dropout, q_offset))
    chosen, bands = pick(call, engine), call.bands
    if not bands:
        dq, dk, dv = (_like_rows(x, x.shape[3]).zero_() for x in (q, k, v))
        return dq, dk, dv
    grad_out, out = grad_out.to(call.q.dtype), out.to(call.q.dtype)
    if grad_out.stride(-1) != 1:
        grad_out = grad_out.contiguous()
    delta = chosen.delta(grad_out, out) if hasattr(chosen, "delta") else torch.linalg.vecdot(grad_out, out)
    if grad_lse is not None:
        delta = delta - torch.where(torch.isneginf(lse), 0.0, grad_lse)
    grads = chosen.backward_union(
        *(grad_out, call.q, call.k, call.v, lse, delta, bands),
        out=out if grad_lse is None else None,
        **call.options,
    )
    dq, dk, dv = (_in_rows(grad.to(q.dtype)) for grad in grads)
    return dq, dk, dv


@_attend_backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    key_mask: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    scale: float,
    dropout: float,
    q_offset: int,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _like_rows(q, q.shape[3]), _like_rows(k, k.shape[3]), _like_rows(v, v.shape[3])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, key_mask, seed, *ctx.settings = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse, key_mask, seed)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, key_mask, seed = ctx.saved_tensors
    if grad_out is None and grad_lse is None:
        return (None,) * 10
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    grads = _attend_backward(grad_out, grad_lse, q, k, v, out, lse, key_mask, seed, *ctx.settings)
    return (*grads, *(None,) * 7)


def _save_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_out, grad_lse, q, k, v, _, _, key_mask, seed, *ctx.settings = inputs
    ctx.save_for_backward(grad_out, grad_lse, q, k, v, key_mask, seed)
    ctx.set_materialize_grads(False)


def _differentiate_second(ctx: Any, *grads_of_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_out, grad_lse, q, k, v, key_mask, seed = ctx.saved_tensors
    pattern, scale, dropout, q_offset, _ = ctx.settings
    call = Call(q, k, v, parse(pattern), key_mask, scale, dropout, 0 if seed is None else int(seed), q_offset)
    grads = second_backward(grads_of_grads, grad_out, grad_lse, call)
    return (*grads, *(None,) * 9)


_attend.register_autograd(_differentiate, setup_context=_save)
_attend_backward.register_autograd(_differentiate_second, setup_context=_save_second)


def _forward(call: Call, engine: str) -> tuple[Tensor, Tensor]:
    chosen, bands = pick(call, engine), call.bands
    if not bands:
        nothing = Partial.empty(call.q, call.v)
        return nothing.out, nothing.lse
    if hasattr(chosen, "forward_union"):
        return chosen.forward_union(call.q, call.k, call.v, bands, **call.options)
    whole, *parts = (Partial(*chosen.forward(call.q, call.k, call.v, band, **call.options)) for band in bands)
    for part in parts:
        whole = whole.merge(part)
    return whole.out, whole.lse


def _lifted(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, seed: Tensor | None, settings: tuple[Any, ...]
) -> Call:
    """The call as engines see it."""
    pattern, scale, dropout, q_offset = settings
    return Call(q, k, v, parse(pattern), key_mask, scale, dropout, 0 if seed is None else int(seed), q_offset).lifted


def _in_rows(x: Tensor) -> Tensor:
    """x [B, H, N, D] with [B, N, H, D] memory, as transformers reads it."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _like_rows(x: Tensor, width: int) -> Tensor:
    batch, heads, rows = x.shape[:3]
    return x.new_empty(batch, rows, heads, width).transpose(1, 2)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> None:
    """Shapes, dtypes and devices; each message names the argument, what it was and what was expected."""
    for name, x, shape in (("q", q, "[B, H, N, D]"), ("k", k, "[B, G, M, D]"), ("v", v, "[B, G, M, V]")):
        if not isinstance(x, Tensor):
            raise InputError(f"attend: {name} is {type(x).__name__}, expected a tensor {shape}")
        if x.dim() != 4:
            raise InputError(f"attend: {name} has shape {list(x.shape)}, expected {shape}")
        if not x.is_floating_point():
            raise InputError(f"attend: {name} has dtype {x.dtype}, expected a floating type")
        if 0 in x.shape:
            raise InputError(f"attend: {name} has shape {list(x.shape)}, expected {shape} with every size at least 1")
        if x.device != q.device:
            raise InputError(f"attend: {name} is on {x.device} and q on {q.device}, expected one device")
        if x.dtype != q.dtype and not torch.is_autocast_enabled(q.device.type):
            raise InputError(f"attend: {name} has dtype {x.dtype} and q {q.dtype}, expected one dtype")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise InputError(
            f"attend: k has shape {list(k.shape)}, expected [{q.shape[0]}, G, M, {q.shape[3]}] to match q {list(q.shape)}"
        )
    if v.shape[:3] != k.shape[:3]:
        raise InputError(f"attend: v has shape {list(v.shape)}, expected {list(k.shape[:3])} + [V] to match k")
    if q.shape[1] % k.shape[1]:
        raise InputError(f"attend: q has {q.shape[1]} heads and k has {k.shape[1]}, expected a multiple of k's")
    if key_mask is None:
        return
    if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
        found = key_mask.dtype if isinstance(key_mask, Tensor) else type(key_mask).__name__
        raise InputError(f"attend: key_mask is {found}, expected a bool tensor [B, M], True = keep")
    if key_mask.shape != (k.shape[0], k.shape[2]):
        raise InputError(f"attend: key_mask has shape {list(key_mask.shape)}, expected {[k.shape[0], k.shape[2]]}")
    if key_mask.device != q.device:
        raise InputError(f"attend: key_mask is on {key_mask.device} and q on {q.device}, expected one device")


def _check_settings(
    pattern: Pattern | str, scale: float | None, dropout: float, q_offset: int, engine: str | None, width: int
) -> float:
    """The rest; returns the scale to use."""
    if not isinstance(pattern, Pattern | str):
        raise InputError(f"attend: pattern is {type(pattern).__name__}, expected a Pattern or its text")
    if not 0 <= dropout < 1:
        raise InputError(f"attend: dropout={dropout}, expected 0 ≤ dropout < 1")
    if isinstance(q_offset, bool) or not isinstance(q_offset, int | torch.SymInt):
        raise InputError(f"attend: q_offset={q_offset!r}, expected a whole number")
    if scale is not None and not math.isfinite(scale):
        raise InputError(f"attend: scale={scale}, expected a finite number")
    if engine is not None:
        named(engine)
    return width**-0.5 if scale is None else float(scale)
