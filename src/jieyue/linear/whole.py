"""Linear attention over all keys: one pass over the keys makes the sums, one over the queries reads them.

    S = Σ_j φ(k_j) v_jᵀ,  z = Σ_j φ(k_j);      o_i = φ(q_i)·S / φ(q_i)·z

Backward the same way round: the queries give dS and dz, the keys read them. Time O((N + M)·F·V), memory one chunk.

The ``softmax`` map (Efficient Attention) has φ(k_j) = e^(k_j − L), L the log of Σ_j e^(k_j) over the positions that count, feature
by feature. Then z = 1, and the gradient through L takes the mean away: dk = φ(k)·(dφ − Σ_v S dS − z dz).

Letters: as in ``chunked``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .sums import Sums
from .tiles import Gradients, Results, Tile, spans

__all__ = ["backward_tile", "forward_tile"]


def forward_tile(tile: Tile, q: Tensor, k: Tensor, v: Tensor, running: Sums, results: Results) -> None:
    """Writes out and m; adds the keys to ``running``."""
    level = _level(tile, k)
    for span in spans(k.shape[2], tile.form.chunk):
        keys = tile.keys(k, v, span, level)
        running.add(keys.b, keys.v, present=keys.present)
    for span in spans(q.shape[2], tile.form.chunk):
        _, b = tile.query_features(q, span)
        results.finish(tile, span, running.read(b, None), running.read_weights(b))


def backward_tile(
    tile: Tile, tensors: tuple[Tensor, Tensor, Tensor], total: Tensor, running: Sums, grads: Gradients
) -> None:
    """Writes dq, dk, dv; adds the queries' gradients to ``running``, the gradient of the sums."""
    q, k, v = tensors
    sums = Sums.unpack(running.parts, total[tile.place])
    for span in spans(q.shape[2], tile.form.chunk):
        x, b = tile.query_features(q, span)
        grad, grad_mass = grads.of_sums(tile, span)
        grads.put_query(tile, span, tile.pull(x, b, sums.pull(b, grad, grad_mass, None)))
        running.add(b, grad, grad_mass)
    level, mean = _level(tile, k), None
    if level is not None:
        mean = (sums.values[0] * running.values[0]).sum(-1)[:, None] + sums.weights[0] * running.weights[0]
    for span in spans(k.shape[2], tile.form.chunk):
        keys = tile.keys(k, v, span, level)
        db = running.pull(keys.b, keys.v, None, None)
        dx = tile.pull(keys.x, keys.b, db) if mean is None else db.sub_(mean).mul_(keys.b)
        grads.put_keys(tile, span, keys, dx, running.read(keys.b, None, keys.present))


def _level(tile: Tile, k: Tensor) -> Tensor | None:
    """L [T, 1, D] of a map over positions, 0 where no key counts; None for other maps."""
    if not tile.form.features.over_positions:
        return None
    level = None
    for span in spans(k.shape[2], tile.form.chunk):
        x, absent = tile.raw_keys(k, span)
        x = x if absent is None else x.masked_fill(absent, -torch.inf)
        part = x.logsumexp(1, keepdim=True)
        level = part if level is None else torch.logaddexp(level, part)
    assert level is not None
    return torch.where(level.isneginf(), 0.0, level)
