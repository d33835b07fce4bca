"""Linear attention by its definition: the weights of each pair, in differentiable torch; and from it the second-order pass.

    w_ij = c0 + c1·s_ij + c2·s_ij²,  s_ij = b(scale·q_i)·b(k_j)  where i may see j;   o_i = Σ_j w_ij v_j / Σ_j w_ij

Not fast: time O(N·M·(D + V)), memory a few rows of weights. It is what ``create_graph`` differentiates: with a, b, c, d given,
L = ⟨a, dq⟩ + ⟨b, dk⟩ + ⟨c, dv⟩ + ⟨d, dsums⟩ is a function of everything that the backward pass read, and its gradient, taken row
block by row block (queries are independent), is the backward of the backward.

Letters: as in ``chunked``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .sums import parts_of
from .tiles import Form, wide_type

__all__ = ["define", "define_read", "define_sums", "define_whole", "second_backward"]

_CHUNK_WEIGHTS = 512 * 512


def define(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, sums: Tensor | None, form: Form, rows: slice
) -> tuple[Tensor, Tensor]:
    """out [B, H, n, V] and m [B, H, n] of the queries in ``rows``."""
    b, values = _key_features(k, v, key_mask, form)
    x = q[:, :, rows].to(wide_type(q)).unflatten(1, (k.shape[1], -1)) * form.scale
    x = form.features.prepare(x)
    c0, c1, c2 = form.polynomial
    s = x @ b[:, :, None].mT
    seen = _visible(s, key_mask, form, rows.start)
    weights = (c0 + c1 * s + c2 * s * s).masked_fill(~seen, 0.0)
    summed, mass = weights @ values[:, :, None], weights.sum(-1)
    floor = 8 * torch.finfo(mass.dtype).eps * c0 * seen.sum(-1)
    if sums is not None:
        features = _expand(x, form)
        summed = summed + features @ sums[:, :, None, :, :-1]
        mass = mass + (features @ sums[:, :, None, :, -1:])[..., 0]
        if c0:  # the first feature is the constant √c0, so its sum counts keys
            floor = floor + 8 * torch.finfo(mass.dtype).eps * c0**0.5 * sums[:, :, None, :1, -1]
    nothing = mass <= floor
    out = summed / mass.masked_fill(nothing, torch.inf)[..., None]
    return out.to(q.dtype).flatten(1, 2), mass.masked_fill(nothing, 0.0).flatten(1, 2)


def define_read(q: Tensor, sums: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """out [B, H, N, V] and m [B, H, N] of queries that see only what ``sums`` [B, G, F, V + 1] hold."""
    x = form.features.prepare(q.to(wide_type(q)).unflatten(1, (sums.shape[1], -1)) * form.scale)
    read = _expand(x, form) @ sums[:, :, None]
    floor = 8 * torch.finfo(read.dtype).eps * form.polynomial[0] ** 0.5 * sums[:, :, None, :1, -1:]
    summed, mass = read[..., :-1], read[..., -1:]
    nothing = mass <= (floor if form.polynomial[0] else 0.0)
    out = summed / mass.masked_fill(nothing, torch.inf)
    return out.to(q.dtype).flatten(1, 2), mass.masked_fill(nothing, 0.0)[..., 0].flatten(1, 2)


def define_sums(k: Tensor, v: Tensor, key_mask: Tensor | None, sums: Tensor | None, form: Form) -> Tensor:
    """Σ_j φ(k_j) [v_j, 1] after all keys [B, G, F, V + 1]."""
    b, values = _key_features(k, v, key_mask, form)
    ones = torch.ones_like(values[..., :1])
    if key_mask is not None:
        ones = ones * key_mask[:, None, :, None]
    total = (_expand(b, form) * ones).mT @ torch.cat([values, ones], -1)
    return total if sums is None else sums + total


def define_whole(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, sums: Tensor | None, form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """out, m and the sums after all keys, a few rows at a time."""
    rows = max(1, _CHUNK_WEIGHTS // k.shape[2])
    parts = [
        define(q, k, v, key_mask, sums, form, slice(start, min(start + rows, q.shape[2])))
        for start in range(0, q.shape[2], rows)
    ]
    outs, masses = zip(*parts, strict=True)
    return torch.cat(outs, 2), torch.cat(masses, 2), define_sums(k, v, key_mask, sums, form)


def second_backward(
    weights: tuple[Tensor | None, ...], inputs: tuple[Tensor | None, ...], key_mask: Tensor | None, form: Form
) -> list[Tensor | None]:
    """Gradients of L by ``inputs`` = (gradients of out, m and sums; q, k, v, sums given); ``weights`` are (a, b, c, d)."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [x if x is None or (again and x.requires_grad) else x.detach().requires_grad_() for x in inputs]
        q, k = leaves[3], leaves[4]
        assert q is not None and k is not None
        rows = max(1, _CHUNK_WEIGHTS // k.shape[2])
        blocks = [slice(start, min(start + rows, q.shape[2])) for start in range(0, q.shape[2], rows)]
        total: list[Tensor | None] = [None] * len(leaves)
        for block in [*blocks, None]:
            inner = _inner(weights, leaves, key_mask, form, block)
            if inner is None or not inner.requires_grad:
                continue
            wanted = [leaf for leaf in leaves if leaf is not None]
            found = iter(torch.autograd.grad(inner, wanted, create_graph=again, allow_unused=True))
            grads = [None if leaf is None else next(found) for leaf in leaves]
            total = [y if x is None else x if y is None else x + y for x, y in zip(total, grads, strict=True)]
    return total


def _inner(
    weights: tuple[Tensor | None, ...],
    leaves: list[Tensor | None],
    key_mask: Tensor | None,
    form: Form,
    block: slice | None,
) -> Tensor | None:
    """L over a block of queries, or (None) what of L comes through the sums after all keys."""
    grad_out, grad_mass, grad_sums, q, k, v, sums = leaves
    assert q is not None and k is not None and v is not None
    outputs: list[Tensor]
    grads: list[Tensor | None]
    if block is None:
        if grad_sums is None:
            return None
        outputs, grads = [define_sums(k, v, key_mask, sums, form)], [grad_sums]
    else:
        outputs = list(define(q, k, v, key_mask, sums, form, block))
        grads = [None if g is None else g[:, :, block] for g in (grad_out, grad_mass)]
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None]
    chosen = [(w, x) for w, x in zip(weights, (q, k, v, sums), strict=True) if w is not None and x is not None]
    if not pairs or not chosen:
        return None
    first = torch.autograd.grad(
        [y for y, _ in pairs], [x for _, x in chosen], [g for _, g in pairs], create_graph=True, allow_unused=True
    )
    terms = [(w * grad).sum() for (w, _), grad in zip(chosen, first, strict=True) if grad is not None]
    return sum(terms[1:], terms[0]) if terms else None


def _key_features(k: Tensor, v: Tensor, key_mask: Tensor | None, form: Form) -> tuple[Tensor, Tensor]:
    """b(k) [B, G, M, ·] and v in the computing type, zero where masked."""
    k, v = k.to(wide_type(k)), v.to(wide_type(v))
    absent = None if key_mask is None else ~key_mask[:, None, :, None]
    if absent is not None:
        v = v.masked_fill(absent, 0.0)
        k = k.masked_fill(absent, 0.0)
    if form.features.over_positions:
        level = (k if absent is None else k.masked_fill(absent, -torch.inf)).logsumexp(2, keepdim=True)
        b = (k - torch.where(level.isneginf(), 0.0, level)).exp()
    else:
        b = form.features.prepare(k)
    return (b if absent is None else b.masked_fill(absent, 0.0)), v


def _visible(s: Tensor, key_mask: Tensor | None, form: Form, first: int) -> Tensor:
    """Booleans of s's shape [B, G, R, n, M]: query i sees key j."""
    i = torch.arange(first, first + s.shape[3], device=s.device)[:, None]
    j = torch.arange(s.shape[4], device=s.device)
    seen = (j <= i) if form.direction > 0 else (j >= i) if form.direction < 0 else (j >= 0)
    if key_mask is not None:
        seen = seen & key_mask[:, None, None, None, :]
    return seen.expand_as(s)


def _expand(b: Tensor, form: Form) -> Tensor:
    """φ [..., F] of b [..., D]."""
    flat = b.flatten(0, -3)
    return torch.cat([part.expand(flat, None) for part in parts_of(form.polynomial, b.shape[-1])], -1).unflatten(
        0, b.shape[:-2]
    )
