"""The backward of the backward: what ``create_graph`` needs (gradient penalties, Hessians times vectors).

    L = ⟨a, dq⟩ + ⟨b, dk⟩ + ⟨c, dv⟩  is a function of (g, l, q, k, v); its gradient is the second-order pass.

Rows of queries are independent in L, so they are taken a few at a time and the gradients added: memory is a chunk's scores, not
N·M. Each chunk is plain differentiable torch, so any further order works too. Not fast, and not meant to be.

Letters: B batch, H query heads, N queries, M keys, g gradient of out, l gradient of lse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .engines.dense import DENSE

if TYPE_CHECKING:
    from .engines import Call

__all__ = ["second_backward"]

_CHUNK_SCORES = 512 * 512


def second_backward(
    weights: tuple[Tensor | None, ...],
    grad_out: Tensor,
    grad_lse: Tensor | None,
    call: Call,
) -> list[Tensor | None]:
    """Gradients of L with respect to (grad_out, grad_lse, q, k, v); ``weights`` are (a, b, c), None = zero."""
    again = torch.is_grad_enabled()
    inputs = [grad_out, grad_lse, call.q, call.k, call.v]
    with torch.enable_grad():
        leaves = [_leaf(x, again) for x in inputs]
        n, m = call.q.shape[2], call.k.shape[2]
        rows = max(1, _CHUNK_SCORES // m)
        total: list[Tensor | None] = [None] * 5
        for start in range(0, n, rows):
            inner = _inner(weights, leaves, call, slice(start, min(n, start + rows)))
            if inner is None:
                continue
            wanted = [leaf for leaf in leaves if leaf is not None]
            found = iter(torch.autograd.grad(inner, wanted, create_graph=again, allow_unused=True))
            grads = [None if leaf is None else next(found) for leaf in leaves]
            total = [_plus(one, other) for one, other in zip(total, grads, strict=True)]
    return total


def _inner(weights: tuple[Tensor | None, ...], leaves: list[Tensor | None], call: Call, rows: slice) -> Tensor | None:
    """L over these rows of queries, as differentiable torch."""
    grad_out, grad_lse, q, k, v = leaves
    assert grad_out is not None and q is not None and k is not None and v is not None
    a, b, c = weights
    g, q = grad_out[:, :, rows], q[:, :, rows]
    options = call.options | {"q_offset": call.q_offset + rows.start}
    out, lse = DENSE.forward_union(q, k, v, call.pattern.bands, **options)
    delta = (g * out).sum(-1)
    if grad_lse is not None:
        delta = delta - torch.where(torch.isneginf(lse), 0.0, grad_lse[:, :, rows])
    grads = DENSE.backward_union(g, q, k, v, lse, delta, call.pattern.bands, **options)
    terms = [
        (weight * grad).sum()
        for weight, grad in zip((None if a is None else a[:, :, rows], b, c), grads, strict=True)
        if weight is not None
    ]
    return sum(terms[1:], terms[0]) if terms else None


def _leaf(x: Tensor | None, again: bool) -> Tensor | None:
    """x as something to differentiate by; still joined to its history when a third order will follow."""
    if x is None:
        return None
    return x if again and x.requires_grad else x.detach().requires_grad_()


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other
