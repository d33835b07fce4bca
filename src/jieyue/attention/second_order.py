"""The backward of the backward: what ``create_graph`` needs (gradient penalties, Hessians times vectors).

    L = ⟨a, dq⟩ + ⟨b, dk⟩ + ⟨c, dv⟩  is a function of (g, l, q, k, v); its gradient is the second-order pass.

With P the weights, dP = g·vᵀ, δ_i = Σ_j P_ij dP_ij − l_i, dS = P∘(dP − δ), W = scale·(a·kᵀ + q·bᵀ), C = g·cᵀ, r_i = Σ_j P_ij W_ij:

    L = ⟨dS, W⟩ + ⟨P, C⟩        E = W∘(dP − δ) − dP∘r + C        G = P∘(E − Σ_j P∘E)
    ∂g = (P∘(W − r))·v + P·c    ∂l = r    ∂v = (P∘(W − r))ᵀ·g
    ∂q = scale·(G·k + dS·b)     ∂k = scale·(Gᵀ·q + dSᵀ·a)

(a kept weight is P∘K, dP is K∘(g·vᵀ) under dropout K). Rows of queries are independent in L, so they are taken a few at a time
and the gradients added: memory is a chunk's scores, not N·M. Where a further order is asked for, and with sinks, soft-capping or
offset biases (L then has a term for the gradient of each), L is plain differentiable torch.

Letters: B batch, H query heads, N queries, M keys, g gradient of out, l gradient of lse.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .call import Call, Upstream
from .engines.dense import DENSE
from .plain import some_rows

__all__ = ["second_backward"]

_CHUNK_SCORES = 512 * 512


def second_backward(
    weights: tuple[Tensor | None, ...],
    grad_out: Tensor,
    grad_lse: Tensor | None,
    call: Call,
) -> list[Tensor | None]:
    """Gradients of L by (grad_out, grad_lse, q, k, v, sinks, offset_bias); ``weights`` are those of dq, dk, dv and of the
    gradients of sinks and offset_bias, None = zero."""
    again = torch.is_grad_enabled()
    n, m = call.q.shape[2], call.k.shape[2]
    rows = max(1, _CHUNK_SCORES // m)
    plain = call.sinks is None and call.offset_bias is None and not call.softcap
    if plain and not again:
        return [*_closed(weights[:3], grad_out, grad_lse, call, rows), None, None]
    inputs = [grad_out, grad_lse, call.q, call.k, call.v, call.sinks, call.offset_bias]
    with torch.enable_grad():
        leaves = [_leaf(x, again) for x in inputs]
        total: list[Tensor | None] = [None] * len(inputs)
        for start in range(0, n, rows):
            inner = _inner(weights, leaves, call, slice(start, min(n, start + rows)))
            if inner is None:
                continue
            wanted = [leaf for leaf in leaves if leaf is not None]
            found = iter(torch.autograd.grad(inner, wanted, create_graph=again, allow_unused=True))
            grads = [None if leaf is None else next(found) for leaf in leaves]
            total = [_plus(one, other) for one, other in zip(total, grads, strict=True)]
    return total


def _closed(
    weights: tuple[Tensor | None, ...], grad_out: Tensor, grad_lse: Tensor | None, call: Call, rows: int
) -> list[Tensor | None]:
    """The formulas above, ``rows`` queries at a time."""
    q, k, v = call.q, call.k, call.v
    found = [torch.zeros_like(x) for x in (grad_out, q, k, v)]
    found_lse = None if grad_lse is None else torch.zeros_like(grad_lse)
    for start in range(0, q.shape[2], rows):
        part = slice(start, start + rows)
        a, b, c = (None if x is None else x[:, :, part] if at == 0 else x for at, x in enumerate(weights))
        own_lse = None if grad_lse is None else grad_lse[:, :, part]
        of_g, of_l, of_q, of_k, of_v = _Chunk(some_rows(call, part), grad_out[:, :, part]).gradients(own_lse, a, b, c)
        found[0][:, :, part], found[1][:, :, part] = of_g, of_q
        found[2] += of_k
        found[3] += of_v
        if found_lse is not None:
            found_lse[:, :, part] = of_l
    return [found[0], found_lse, *found[1:]]


class _Chunk:
    """Some queries against all keys; scores [B, H, N, M], the heads of a group beside one another: [B, G, R·N, M]."""

    def __init__(self, call: Call, g: Tensor) -> None:
        q, k, v = call.q, call.k, call.v
        self.heads, self.groups = q.shape[:3], k.shape[1]
        self.absent = None if call.runs is None else (call.runs[1] == 0)[:, None, :, None]
        g = g if self.absent is None else g.masked_fill(self.absent, 0.0)
        self.q, self.k, self.v, self.g = self._beside(q), k, v, self._beside(g)
        self.scale = call.scale
        scores = DENSE.scores(call)
        blind = torch.isneginf(scores.amax(-1, keepdim=True))
        self.p = self._beside(scores.masked_fill_(blind, 0.0).softmax(-1).masked_fill_(blind, 0.0))
        self.blind = self._beside(blind)[..., 0]
        self.keep = self._beside(DENSE.keep_scale(call)) if call.dropout else None

    def gradients(self, grad_lse: Tensor | None, a: Tensor | None, b: Tensor | None, c: Tensor | None) -> list[Tensor]:
        """∂g, ∂l, ∂q, ∂k, ∂v."""
        p, q, k, v, g = self.p, self.q, self.k, self.v, self.g
        a = q.new_zeros(q.shape) if a is None else self._beside(a)
        b = torch.zeros_like(k) if b is None else b
        w = torch.cat([a, q], -1) @ torch.cat([k, b], -1).mT
        w *= self.scale
        grad_p = self._kept(g @ v.mT)
        delta, mean = torch.linalg.vecdot(p, grad_p)[..., None], torch.linalg.vecdot(p, w)[..., None]
        if grad_lse is not None:
            delta = delta - self._beside(grad_lse[..., None]).masked_fill(self.blind[..., None], 0.0)
        above = grad_p - delta
        of_p = (w * above).addcmul_(grad_p, mean, value=-1)
        of_w = above.mul_(p)
        inward = self._kept(w.sub_(mean).mul_(p))
        of_g = inward @ v
        of_v = inward.mT @ g
        if c is not None:
            of_p += self._kept(g @ c.mT)
            of_g += self._kept(p) @ c
        of_scores = of_p.sub_(torch.linalg.vecdot(p, of_p)[..., None]).mul_(p)
        of_q = torch.cat([of_scores, of_w], -1) @ torch.cat([k, b], -2)
        of_k = torch.cat([of_scores, of_w], -2).mT @ torch.cat([q, a], -2)
        return [
            self._apart(of_g), self._apart(mean)[..., 0], self._apart(of_q * self.scale), of_k * self.scale, of_v
        ]  # fmt: skip

    def _kept(self, x: Tensor) -> Tensor:
        return x if self.keep is None else x * self.keep

    def _beside(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], self.groups, -1, x.shape[-1])

    def _apart(self, x: Tensor) -> Tensor:
        return x.reshape(*self.heads, x.shape[-1])


def _inner(weights: tuple[Tensor | None, ...], leaves: list[Tensor | None], call: Call, rows: slice) -> Tensor | None:
    """L over these rows of queries, as differentiable torch."""
    grad_out, grad_lse, q, k, v, sinks, offset_bias = leaves
    assert grad_out is not None and q is not None and k is not None and v is not None
    a, b, c, of_sinks, of_bias = (*weights, None, None)[:5]
    g = grad_out[:, :, rows]
    part = some_rows(replace(call, q=q, k=k, v=v, sinks=sinks, offset_bias=offset_bias), rows)
    out, lse = DENSE.attend(part)
    delta = (g * out).sum(-1)
    if grad_lse is not None:
        delta = delta - torch.where(torch.isneginf(lse), 0.0, grad_lse[:, :, rows])
    grads = DENSE.differentiate(part, Upstream(g, lse, delta))
    pairs = list(zip((None if a is None else a[:, :, rows], b, c), grads[:3], strict=True))
    if of_bias is not None and grads.offset_bias is not None:
        pairs.append((of_bias[:, rows.start : rows.start + grads.offset_bias.shape[1]], grads.offset_bias))
    if of_sinks is not None and sinks is not None:
        shares = (sinks[:, None] - lse.masked_fill(torch.isneginf(lse), torch.inf)).exp()
        pairs.append((of_sinks, -(shares * delta).sum((0, 2))))
    terms = [(weight * grad).sum() for weight, grad in pairs if weight is not None]
    return sum(terms[1:], terms[0]) if terms else None


def _leaf(x: Tensor | None, again: bool) -> Tensor | None:
    """x as something to differentiate by; still joined to its history when a third order will follow."""
    if x is None:
        return None
    return x if again and x.requires_grad else x.detach().requires_grad_()


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other
