"""``attend_linear``: attention whose weights are inner products of features, in time linear in the number of positions.

    o_i = Σ_j w_ij v_j / Σ_j w_ij,    w_ij = φ(scale·q_i)·φ(k_j),     over all keys, or causally over j ≤ i

The maps φ are in ``features``, how it is computed in ``chunked`` and ``whole``. Both passes are ``torch.library`` operators
with shape rules, so fake tensors and ``torch.compile`` see through them; the backward of the backward is in ``definition``.

Letters: B batch, H query heads, G key heads, N queries, M keys, D size of a query or key, V size of a value, F features.
"""

from __future__ import annotations

import functools
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from jieyue.attention.checks import check_tensors
from jieyue.attention.plain import is_transformed
from jieyue.autograd import Saved
from jieyue.errors import InputError

from . import chunked
from .checks import refuse_positions
from .definition import define_whole, second_backward
from .features import FEATURES, IDENTITY, FeatureMap, resolve
from .packed import run_by_run
from .pages import rows_like
from .state import LinearState
from .sums import num_features
from .tiles import Form, wide_type

__all__ = ["attend_linear", "autocast", "sums_of_weights"]


def attend_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    features: str | FeatureMap = "elu",
    *,
    causal: bool = False,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    state: LinearState | None = None,
    return_state: bool = False,
    segments: Tensor | None = None,
) -> Tensor | tuple[Tensor, LinearState]:
    """Linear attention: out [B, H, N, V]; ``return_state``: with the state after these keys.

    o_i = Σ_j w_ij v_j / Σ_j w_ij with w_ij = φ(scale·q_i)·φ(k_j) over the keys with key_mask[b, j] True, j ≤ i if ``causal``, and
    those that ``state`` has seen. No epsilon: a query whose weights are all zero gives zeros and zero gradients.

    Shapes: q [B, H, N, D]; k [B, G, M, D], v [B, G, M, V], H a multiple of G (query head h reads key head h // (H/G)); key_mask
    [B, M] bool, True = keep (masked keys and values may hold anything); causal needs M = N. Any strides; out and the gradients
    lie in memory as [B, N, H, ·]. ``features``: a name from ``FEATURES`` or a ``FeatureMap``. ``scale`` multiplies q before the
    map, default 1 (``taylor2``: D^−½; ``cosine`` refuses one). A state is not changed, a new one is returned; its gradient flows.
    ``segments`` [B, N] as in ``attend``: the sums start anew with each run, rows of −1 are zero; there is no state then.

    Cost: time O(N·F·V), causal O(N·(C·D + F·V)) with chunks of C = 64, where F = D (``cosine`` D + 1, ``taylor2`` about D²/2).
    Memory beside q, k, v, out and their gradients: one number per query and head; causal, for the backward pass,
    N·G·F·(V + 1)/1024 more; the workspace does not grow with N. Sums are float32, float64 for float64. Second derivatives
    are O(N·M).

    Refuses, with ``InputError`` (a ValueError): shapes, dtypes and devices that do not fit, N, M or D of 0, an unknown map;
    ``softmax`` with ``causal`` or a state, because it normalises each key over all positions, future ones too.
    """
    form_map = resolve(features)
    check_tensors("attend_linear", q, k, v, key_mask)
    _check_settings(form_map, causal, state, return_state, (q, k, v))
    used_scale = form_map.scale_for(scale, q.shape[3])
    q, k, v = autocast(q, k, v)
    if segments is not None:
        if state is not None or return_state:
            raise InputError("attend_linear: segments with a state, expected one of them: each run has sums of its own")
        alone = functools.partial(_attend_alone, form_map, used_scale, 1 if causal else 0)
        return run_by_run("attend_linear", alone, (q, k, v, key_mask), segments)
    sums = None if state is None else state.check(form_map, used_scale, k, v).sums
    out, _, total = sums_of_weights(q, k, v, key_mask, sums, form_map, used_scale, 1 if causal else 0)
    if not return_state:
        return out
    return out, LinearState(form_map, used_scale, total)


def _attend_alone(
    features: FeatureMap, scale: float, direction: int, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None
) -> Tensor:
    return sums_of_weights(q, k, v, key_mask, None, features, scale, direction)[0]


def sums_of_weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    sums: Tensor | None,
    features: FeatureMap,
    scale: float,
    direction: int,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, the sum of weights m [B, H, N] that it was divided by, and the sums after all keys: all differentiable.

    ``direction``: 0 all keys, 1 those up to the query, −1 those from the query on. Nothing is validated.
    """
    dtype, name, polynomial = q.dtype, features.name, features.polynomial
    if FEATURES.get(name) is not features:  # not a map that the operator knows by name: applied here, by autograd
        if key_mask is not None:
            k = k.masked_fill(~key_mask[:, None, :, None], 0.0)
        q, k = features.prepare(q.to(wide_type(q)) * scale), features.prepare(k.to(wide_type(k)))
        v, name, scale = v.to(q.dtype), IDENTITY.name, 1.0
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, sums))
    chunk = chunk or _chunk(q, k, polynomial, direction)
    settings = (name, list(polynomial), scale, direction, chunk)
    if is_transformed():
        out, mass, total = define_whole(q, k, v, key_mask, sums, _form(*settings))
    else:
        out, mass, total, _ = _linear(q, k, v, key_mask, sums, *settings, keep)
    return out.to(dtype), mass, total


def _chunk(q: Tensor, k: Tensor, polynomial: tuple[float, ...], direction: int) -> int:
    """Positions computed together: more where there are few heads, or where the sums are large."""
    if polynomial[2] or direction == 0:
        return 256
    if q.device.type != "cpu":
        return 128
    return 64 if q.dtype == torch.float32 or k.shape[0] * k.shape[1] >= 6 else 128


@torch.library.custom_op("jieyue::linear", mutates_args=())
def _linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    sums: Tensor | None,
    features: str,
    polynomial: list[float],
    scale: float,
    direction: int,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    form = _form(features, polynomial, scale, direction, chunk)
    with torch.autocast(q.device.type, enabled=False):
        return chunked.forward(q, k, v, key_mask, sums, form, keep)


@_linear.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    sums: Tensor | None,
    features: str,
    polynomial: list[float],
    scale: float,
    direction: int,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    form = _form(features, polynomial, scale, direction, chunk)
    shape = (*k.shape[:2], num_features(form.polynomial, k.shape[3]), v.shape[3] + 1)
    total = k.new_empty(shape, dtype=wide_type(k))
    marks = total.new_empty(chunked.num_marks(q.shape[2], form) if keep else 0, *shape)
    return rows_like(q, v.shape[3]), q.new_empty(q.shape[:3], dtype=wide_type(q)), total, marks


@torch.library.custom_op("jieyue::linear_backward", mutates_args=())
def _linear_backward(
    grad_out: Tensor,
    grad_mass: Tensor | None,
    grad_sums: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sums: Tensor | None,
    out: Tensor,
    mass: Tensor,
    kept: Tensor,
    key_mask: Tensor | None,
    features: str,
    polynomial: list[float],
    scale: float,
    direction: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    form = _form(features, polynomial, scale, direction, chunk)
    with torch.autocast(q.device.type, enabled=False):
        return chunked.backward(grad_out, grad_mass, grad_sums, (q, k, v, out, mass, kept), key_mask, form)


@_linear_backward.register_fake
def _(
    grad_out: Tensor,
    grad_mass: Tensor | None,
    grad_sums: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sums: Tensor | None,
    out: Tensor,
    mass: Tensor,
    kept: Tensor,
    key_mask: Tensor | None,
    features: str,
    polynomial: list[float],
    scale: float,
    direction: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = kept.shape[1:] if direction else kept.shape
    return rows_like(q, q.shape[3]), rows_like(k, k.shape[3]), rows_like(v, v.shape[3]), kept.new_empty(shape)


_Asked: TypeAlias = tuple[str, list[float], float, int, int]  # features, polynomial, scale, direction, chunk


# grad_out, grad_mass, grad_sums, q, k, v, sums
_Saved: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, Tensor, Tensor | None]


class _WithSettings(Saved, Protocol):
    settings: _Asked


def _save(
    ctx: _WithSettings,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, *_Asked, bool],
    output: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    q, k, v, key_mask, sums = inputs[:5]
    ctx.settings = inputs[5:10]
    out, mass, total, marks = output
    direction = ctx.settings[3]
    ctx.save_for_backward(q, k, v, sums, out, mass, marks if direction else total, key_mask)
    ctx.mark_non_differentiable(marks)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: _WithSettings, grad_out: Tensor | None, grad_mass: Tensor | None, grad_sums: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    q, k, v, sums, out, mass, kept, key_mask = ctx.saved_tensors
    if grad_out is None and grad_mass is None and grad_sums is None:
        return (None,) * 11
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    saved = (q, k, v, sums, out, mass, kept, key_mask)
    dq, dk, dv, dsums = _linear_backward(grad_out, grad_mass, grad_sums, *saved, *ctx.settings)
    return dq, dk, dv, None, None if sums is None else dsums, *(None,) * 6


def _save_second(
    ctx: _WithSettings,
    inputs: tuple[*_Saved, Tensor, Tensor, Tensor, Tensor | None, *_Asked],
    output: tuple[Tensor, ...],
) -> None:
    ctx.save_for_backward(*inputs[:7], inputs[10])
    ctx.settings = inputs[11:]
    ctx.set_materialize_grads(False)


def _differentiate_second(ctx: _WithSettings, *weights: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, key_mask = ctx.saved_tensors
    grads = second_backward(weights, tuple(inputs), key_mask, _form(*ctx.settings))
    return (*grads, *(None,) * 9)


_linear.register_autograd(_differentiate, setup_context=_save)
_linear_backward.register_autograd(_differentiate_second, setup_context=_save_second)


def _form(features: str, polynomial: list[float], scale: float, direction: int, chunk: int) -> Form:
    feature_map = IDENTITY if features == IDENTITY.name else FEATURES[features]
    return Form(feature_map, tuple(polynomial), scale, direction, chunk)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast its type, as matrix products would take it; the sums are float32 all the same."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


def _check_settings(
    features: FeatureMap,
    causal: bool,
    state: LinearState | None,
    return_state: bool,
    tensors: tuple[Tensor, Tensor, Tensor],
) -> None:
    q, k, _ = tensors
    if causal:
        refuse_positions("attend_linear: causal=True", features, "later keys would change what earlier queries see")
    if state is not None or return_state:
        refuse_positions("attend_linear: a state", features, "its sums cannot be continued")
    if state is not None and not isinstance(state, LinearState):
        raise InputError(f"attend_linear: state is {type(state).__name__}, expected a LinearState or None")
    if causal and q.shape[2] != k.shape[2]:
        raise InputError(
            f"attend_linear: causal=True with {q.shape[2]} queries and {k.shape[2]} keys, expected as many: earlier keys belong "
            f"into the state"
        )
