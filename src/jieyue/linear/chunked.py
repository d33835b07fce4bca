"""Linear attention in chunks of positions, forward and backward, without autograd.

    o_i = Σ_j w_ij v_j / m_i,   m_i = Σ_j w_ij,   over all keys, those up to i (past) or those from i on (future)

Past and future: inside a chunk the weights w are made, as a small triangle; all chunks before it are read through their sums
(S, z) = Σ_j φ(k_j) [v_jᵀ, 1]. Time O(N·(C·D + F·V)). All keys: see ``whole``.

Backward, with g, l the gradients of o and m: g'_i = g_i / m_i and l'_i = l_i − g'_i·o_i are the gradients of Σ w v and Σ w, so
    dw_ij = g'_i·v_j + l'_i,      dS = Σ_i φ(q_i) g'_iᵀ,  dz = Σ_i φ(q_i) l'_i,      the latter two running the other way.
S before each chunk is needed in the opposite order to that in which it grows. It is not kept: forward leaves a mark every
16 chunks, from which a segment's sums are made again. Memory for the marks: N·G·F·(V + 1)/(16·C) numbers, for D = V = 64, C = 64
and the elu map a sixteenth of k.

A query whose weights are all zero gives zeros and takes no gradient. Weights with a constant term (1 + cos) can vanish
without being exactly zero: their sum counts as zero below 8 ε of the number of keys, which is its own rounding error.

Letters: B batch, H query heads, G key heads, R = H/G, N queries, M keys, D size of a query, V size of a value, F number of
features, T key heads computed together, C positions of a chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import whole
from .native import native
from .pages import rows_like
from .sums import Sums, num_features, parts_of
from .tiles import Form, Gradients, KeyChunk, Results, Tile, spans, tiles, wide_type

__all__ = ["backward", "forward", "num_marks"]


def num_marks(num_positions: int, form: Form) -> int:
    """Marks that a forward pass leaves: one per segment; none where all keys are read."""
    return -(-num_positions // (form.chunk * form.segment)) if form.direction else 0


def forward(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, sums: Tensor | None, form: Form, keep_marks: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out [B, H, N, V], m [B, H, N], the sums after all keys [B, G, F, V + 1], marks [segments, B, G, F, V + 1] if kept."""
    parts = parts_of(form.polynomial, k.shape[3])
    if sums is None:
        shape = (*k.shape[:2], num_features(form.polynomial, k.shape[3]), v.shape[3] + 1)
        sums = k.new_zeros(shape, dtype=wide_type(k))
    results = Results(
        out=rows_like(q, v.shape[3]),
        mass=q.new_empty(q.shape[:3], dtype=wide_type(q)),
        floor=_floor(q, key_mask, sums, form, k.shape[2]),
        marks=sums.new_empty(num_marks(q.shape[2], form) if keep_marks else 0, *sums.shape),
    )
    total = torch.empty_like(sums)
    if native.refuses(form, q, k, v) is None:
        tensors = {
            "q": q,
            "k": k,
            "v": v,
            "out": results.out,
            "mass": results.mass,
            "total": total,
            "marks": results.marks,
        }
        native.forward(tensors, key_mask, results.floor, sums, form)
        return results.out, results.mass, total, results.marks
    for tile in tiles(k, form, key_mask):
        running = Sums.unpack(parts, sums[tile.place])
        if form.direction:
            _forward_tile(tile, q, k, v, running, results)
        else:
            whole.forward_tile(tile, q, k, v, running, results)
        total[tile.place] = running.pack().view_as(total[tile.place])
    return results.out, results.mass, total, results.marks


def backward(
    grad_out: Tensor,
    grad_mass: Tensor | None,
    grad_sums: Tensor | None,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    key_mask: Tensor | None,
    form: Form,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv and the gradient of the sums given; ``tensors`` are q, k, v, out, m and the marks (all keys: the total sums)."""
    q, k, v, out, mass, kept = tensors
    dq, dk, dv = (rows_like(x, x.shape[3]) for x in (q, k, v))
    if grad_sums is None:
        grad_sums = torch.zeros_like(kept[0]) if form.direction else torch.zeros_like(kept)
    grad_start = torch.empty_like(grad_sums)
    if native.refuses(form, q, k, v) is None:
        sums = {"marks" if form.direction else "total": kept, "grad_start": grad_start, "mass": mass}
        views = {"q": q, "k": k, "v": v, "out": out, "grad_out": grad_out, "dq": dq, "dk": dk, "dv": dv}
        native.backward(views | sums, key_mask, grad_mass, grad_sums, form)
        return dq, dk, dv, grad_start
    parts = parts_of(form.polynomial, k.shape[3])
    seen = mass > 0
    grads = Gradients(
        out=grad_out,
        forward=out,
        inverse=torch.where(seen, mass, math.inf).reciprocal(),
        mass=None if grad_mass is None else torch.where(seen, grad_mass, 0.0),
        dq=dq,
        dk=dk,
        dv=dv,
    )
    for tile in tiles(k, form, key_mask):
        running = Sums.unpack(parts, grad_sums[tile.place])
        if form.direction:
            _backward_tile(tile, (q, k, v), kept, running, grads)
        else:
            whole.backward_tile(tile, (q, k, v), kept, running, grads)
        grad_start[tile.place] = running.pack().view_as(grad_start[tile.place])
    return dq, dk, dv, grad_start


def _in_order(num_positions: int, form: Form) -> list[slice]:
    found = spans(num_positions, form.chunk)
    return found if form.direction > 0 else found[::-1]


def _forward_tile(tile: Tile, q: Tensor, k: Tensor, v: Tensor, running: Sums, results: Results) -> None:
    form = tile.form
    for number, span in enumerate(_in_order(q.shape[2], form)):
        if len(results.marks) and number % form.segment == 0:
            mark = results.marks[number // form.segment][tile.place]
            mark.copy_(running.pack().view_as(mark))
        keys = tile.keys(k, v, span)
        _, b = tile.query_features(q, span)
        weights = tile.visible(form.weigh(torch.bmm(b, keys.b.mT)), keys)
        summed = running.read(b, torch.bmm(weights, keys.v))
        mass = weights.sum(-1, keepdim=True).add_(running.read_weights(b))
        running.add(keys.b, keys.v, present=keys.present)
        results.finish(tile, span, summed, mass)


def _backward_tile(
    tile: Tile, tensors: tuple[Tensor, Tensor, Tensor], marks: Tensor, running: Sums, grads: Gradients
) -> None:
    q, k, v = tensors
    order = _in_order(q.shape[2], tile.form)
    for number in range(len(marks) - 1, -1, -1):
        segment = order[number * tile.form.segment : (number + 1) * tile.form.segment]
        sums = Sums.unpack(running.parts, marks[number][tile.place])
        before = []
        for span in segment:
            keys = tile.keys(k, v, span)
            before.append((span, keys, sums))
            if span is not segment[-1]:
                sums = sums.plus(keys.b, keys.v, keys.present)
        while before:
            span, keys, sums = before.pop()
            _backward_chunk(tile, q, span, keys, sums, running, grads)


def _backward_chunk(
    tile: Tile, q: Tensor, span: slice, keys: KeyChunk, sums: Sums, running: Sums, grads: Gradients
) -> None:
    """Gradients of one chunk; ``sums`` are those before it, ``running`` the gradient of those after it."""
    form = tile.form
    x, b = tile.query_features(q, span)
    grad, grad_mass = grads.of_sums(tile, span)
    products = torch.bmm(b, keys.b.mT)
    grad_weights = tile.see(torch.bmm(grad, keys.v.mT).add_(grad_mass))
    grad_products = form.slope(grad_weights, products)
    weights = tile.visible(form.weigh(products), keys)
    dv = running.read(keys.b, torch.bmm(weights.mT, grad), keys.present)
    db = sums.pull(b, grad, grad_mass, torch.bmm(grad_products, keys.b))
    dk = running.pull(keys.b, keys.v, None, torch.bmm(grad_products.mT, b))
    running.add(b, grad, grad_mass)
    grads.put_query(tile, span, tile.pull(x, b, db))
    grads.put_keys(tile, span, keys, tile.pull(keys.x, keys.b, dk), dv)


def _floor(q: Tensor, key_mask: Tensor | None, sums: Tensor, form: Form, num_keys: int) -> Tensor | None:
    """[B, N]: 8 ε c0 times the number of keys that each query sees; None where weights have no constant term."""
    c0 = form.polynomial[0]
    if not c0:
        return None
    seen = torch.ones(1, num_keys, dtype=sums.dtype, device=q.device) if key_mask is None else key_mask.to(sums.dtype)
    if form.direction > 0:
        seen = seen.cumsum(1)
    elif form.direction < 0:
        seen = seen.flip(1).cumsum(1).flip(1)
    else:
        seen = seen.sum(1, keepdim=True)
    before = sums[:, 0, 0, -1:] / math.sqrt(c0)
    return ((seen + before) * (8 * torch.finfo(sums.dtype).eps * c0)).expand(q.shape[0], q.shape[2])
