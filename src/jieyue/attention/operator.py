"""``attend``: exact softmax attention over a pattern. Validates once, picks an engine, differentiates.

    s_ij = softcap(scale·q_i·k_j) + bias_(i−j) for the keys j that the pattern, the segments and key_mask show to i;
    lse_i = log(e^sink + Σ_j e^s_ij);    out_i = Σ_j e^(s_ij − lse_i) v_j

Backward: with g the gradient of out, l that of lse, δ_i = g_i·out_i − l_i and P_ij = e^(s_ij − lse_i), each part of the keys
gives dS_ij = P_ij (g_i·v_j − δ_i) on its own, because lse and δ are those of the whole: the parts' gradients add. A sink has no
value, so its gradient is −Σ_i e^(sink − lse_i) δ_i.

Both passes are ``torch.library`` operators with shape rules, so fake tensors and ``torch.compile`` see through them; the
backward of the backward (``create_graph``) is in ``second_order``.

Letters: B batch, H query heads, G key heads, N queries, M keys, D size of a query or key, V size of a value.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from jieyue.autograd import Saved

from .call import Call, Upstream
from .checks import check_additions, check_settings, check_tensors
from .dropout import draw_seed
from .engines import pick
from .grammar import parse
from .partial import Partial
from .pattern import Pattern
from .plain import attend_plainly, is_transformed
from .second_order import second_backward
from .segments import runs_of

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
    segments: Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    offset_bias: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention of q over the keys that ``pattern`` shows: out [B, H, N, V]; ``return_lse``: with lse [B, H, N].

    out_i = Σ_j softmax_j(s_ij) v_j over the j that the pattern shows at d = i + q_offset − j, with key_mask[b, j] True, where
    s_ij = softcap(scale·q_i·k_j) + offset_bias[h, i − j + M − 1]. A query that sees no key gives zeros and zero gradients.

    Shapes: q [B, H, N, D]; k [B, G, M, D], v [B, G, M, V], H a multiple of G (query head h reads key head h // (H/G), nothing
    is repeated); key_mask [B, M] bool, True = keep (what it hides may hold anything). Any N, M ≥ 1, any strides; out lies in
    memory as [B, N, H, V]. scale defaults to D^−½. ``q_offset`` is the position of the first query among the keys (decoding:
    M − N). ``dropout`` zeroes each normalised weight with that probability and scales the rest by 1/(1 − dropout), by a seed
    drawn from torch's default generator; the same in every engine. lse is float32 (float64 for float64) and differentiable.

    ``segments`` [B, N] integers: a query sees keys of its own segment only (N = M, q_offset = 0). An id fills one contiguous run;
    −1 belongs to nobody: its rows are zero, with zero gradients. ``first`` and ``global`` of the pattern count from the run's start.
    ``softcap`` c bends the scaled product s to c·tanh(s/c). ``sinks`` [H]: one more logit in each query's denominator, without a
    value, neither scaled, capped, biased nor dropped; lse contains it. ``offset_bias`` [H or 1, N + M − 1] is added to the logits by
    row number minus column number of this call, whatever q_offset is. Sinks and offset_bias are differentiable.

    Cost: time O(pairs·(D + V)), ``pattern.pairs(N, M)`` of them per head, with segments the sum over the runs. Memory beside q, k,
    v, out and their gradients: lse and δ, 4 bytes each per query and head, and a workspace that does not grow with N. That is all
    for local, atrous and full, and for sparse and other unions where the engine is native or fused (of fused in half precision:
    float32 copies of out and of the gradients while bands add to them). On the CPU, bfloat16 is read and written as it is by the
    native engine (float32 copies of out and the gradients where several bands, or bands of more than 1,024 keys, add to them);
    other half precision and engines: float32 copies. Never a tensor of N·M beyond 512² of them, except under torch.func's
    transforms and forward-mode derivatives (``plain``).

    Refuses, with ``InputError`` (a ValueError): shapes, dtypes and devices that do not fit, N, M or D of 0, dropout outside
    [0, 1), segments whose ids return, an unknown engine, and a named engine that cannot run the call (it never falls back).
    """
    if isinstance(pattern, str) and not torch.compiler.is_compiling():  # a graph takes the text as it is
        pattern = parse(pattern)
    check_tensors("attend", q, k, v, key_mask)
    scale = check_settings(pattern, scale, dropout, q_offset, engine, q.shape[3])
    check_additions(q, k, q_offset, segments, sinks, softcap, offset_bias)
    if torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    sinks, offset_bias = (None if x is None else x.to(wide) for x in (sinks, offset_bias))
    runs = None if segments is None else runs_of(segments)
    seed = draw_seed() if dropout else None
    settings = (str(pattern), scale, float(dropout), q_offset, float(softcap or 0.0))
    if is_transformed():
        call = _call(q, k, v, sinks, offset_bias, key_mask, runs, seed, settings).lifted
        pick(call, engine)  # refuses what it must
        out, lse = attend_plainly(call)
        out = out.to(q.dtype)
    else:
        out, lse = _attend(q, k, v, sinks, offset_bias, key_mask, runs, seed, *settings, engine or "")
    return (out, lse) if return_lse else out


@torch.library.custom_op("jieyue::attend", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    offset_bias: Tensor | None,
    key_mask: Tensor | None,
    runs: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    scale: float,
    dropout: float,
    q_offset: int,
    softcap: float,
    engine: str,
) -> tuple[Tensor, Tensor]:
    call = _call(q, k, v, sinks, offset_bias, key_mask, runs, seed, (pattern, scale, dropout, q_offset, softcap))
    chosen = pick(call, engine)
    call = call.taken_by(chosen)
    if call.is_blind:
        whole = call.with_sinks(Partial.empty(call.q, call.v))
        out, lse = whole.out, whole.lse
    else:
        out, lse = chosen.attend(call)
    return _in_rows(out.to(q.dtype)), lse.contiguous()


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Tensor | str | float | None) -> tuple[Tensor, Tensor]:
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
    sinks: Tensor | None,
    offset_bias: Tensor | None,
    key_mask: Tensor | None,
    runs: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    scale: float,
    dropout: float,
    q_offset: int,
    softcap: float,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    call = _call(q, k, v, sinks, offset_bias, key_mask, runs, seed, (pattern, scale, dropout, q_offset, softcap))
    chosen = pick(call, engine)
    call = call.taken_by(chosen)
    grad_out, out = grad_out.to(call.q.dtype), out.to(call.q.dtype)
    if grad_out.stride(-1) != 1:
        grad_out = grad_out.contiguous()
    delta = chosen.delta(grad_out, out)
    if grad_lse is not None:
        delta = delta - torch.where(torch.isneginf(lse), 0.0, grad_lse)
    of_sinks, of_bias = (lse.new_empty(0) if x is None else torch.zeros_like(x) for x in (sinks, offset_bias))
    if sinks is not None:
        blind = torch.isneginf(lse)
        shares = (sinks[:, None] - lse.masked_fill(blind, torch.inf)).exp()
        of_sinks = -torch.einsum("bhn,bhn->h", shares, delta.masked_fill(blind, 0.0))
    if call.is_blind:
        dq, dk, dv = (_like_rows(x, x.shape[3]).zero_() for x in (q, k, v))
        return dq, dk, dv, of_sinks, of_bias
    grads = chosen.differentiate(call, Upstream(grad_out, lse, delta, out if grad_lse is None else None))
    dq, dk, dv = (_in_rows(grad.to(q.dtype)) for grad in grads[:3])
    return dq, dk, dv, of_sinks, of_bias if grads.offset_bias is None else grads.offset_bias


@_attend_backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    sinks: Tensor | None,
    offset_bias: Tensor | None,
    *_: Tensor | str | float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    of_sinks, of_bias = (lse.new_empty(0 if x is None else x.shape) for x in (sinks, offset_bias))
    dq, dk, dv = (_like_rows(x, x.shape[3]) for x in (q, k, v))
    return dq, dk, dv, of_sinks, of_bias


_Asked: TypeAlias = tuple[str, float, float, int, float]  # pattern, scale, dropout, q_offset, softcap
_Rest: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class _WithSettings(Saved, Protocol):
    settings: tuple[*_Asked, str]


def _save(
    ctx: _WithSettings, inputs: tuple[Tensor, Tensor, Tensor, *_Rest, *_Asked, str], output: tuple[Tensor, Tensor]
) -> None:
    ctx.save_for_backward(*inputs[:3], *output, *inputs[3:8])
    ctx.settings = inputs[8:]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: _WithSettings, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, *rest = ctx.saved_tensors
    if grad_out is None and grad_lse is None:
        return (None,) * 14
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    dq, dk, dv, of_sinks, of_bias = _attend_backward(grad_out, grad_lse, q, k, v, out, lse, *rest, *ctx.settings)
    more = (None if given is None else grad for given, grad in zip(rest[:2], (of_sinks, of_bias), strict=True))
    return dq, dk, dv, *more, *(None,) * 9


def _save_second(
    ctx: _WithSettings,
    inputs: tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor, *_Rest, *_Asked, str],
    output: tuple[Tensor, ...],
) -> None:
    ctx.save_for_backward(*inputs[:5], *inputs[7:12])
    ctx.settings = inputs[12:]
    ctx.set_materialize_grads(False)


def _differentiate_second(ctx: _WithSettings, *grads_of_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_out, grad_lse, q, k, v, sinks, offset_bias, key_mask, runs, seed = ctx.saved_tensors
    call = _call(q, k, v, sinks, offset_bias, key_mask, runs, seed, ctx.settings[:-1])
    of_out, of_lse, dq, dk, dv, of_sinks, of_bias = second_backward(grads_of_grads, grad_out, grad_lse, call)
    return of_out, of_lse, dq, dk, dv, None, None, of_sinks, of_bias, *(None,) * 9


_attend.register_autograd(_differentiate, setup_context=_save)
_attend_backward.register_autograd(_differentiate_second, setup_context=_save_second)


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    offset_bias: Tensor | None,
    key_mask: Tensor | None,
    runs: Tensor | None,
    seed: Tensor | None,
    settings: _Asked,
) -> Call:
    pattern, scale, dropout, q_offset, softcap = settings
    number = 0 if seed is None else int(seed)
    return Call(q, k, v, parse(pattern), key_mask, scale, dropout, number, q_offset, runs, sinks, softcap, offset_bias)


def _in_rows(x: Tensor) -> Tensor:
    """x [B, H, N, D] with [B, N, H, D] memory, as transformers reads it."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _like_rows(x: Tensor, width: int) -> Tensor:
    batch, heads, rows = x.shape[:3]
    return x.new_empty(batch, rows, heads, width).transpose(1, 2)
