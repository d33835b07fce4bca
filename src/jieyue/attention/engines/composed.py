"""The composed engine: bands from stock torch operations, a cache-sized piece of scores at a time. Any device, any float.

For a block of query rows the visible keys are one contiguous range (within a residue class when step > 1, a strided view), so

    S = scale·Q Kᵀ + edge mask,  P = softmax(S),  lse = max S − log max P,  O = P V           forward
    P = e^(S − lse),  dS = P ∘ (dO Vᵀ − δ),  dQ = dS K,  dK += dSᵀ Q,  dV += Pᵀ dO             backward

with dK and dV accumulated in place where they lie. Long ranges are cut into tiles whose results merge. A band that shows
everything, or everything up to the query, is one call of torch's flash kernel where there is one (CPU, no mask, no dropout).

Cost: O(pairs·(D + V)) time with some waste at the edges of blocks; memory beside the outputs: a few pieces of about 1 MiB
per thread on the CPU and 64 MiB on other devices. Refuses nothing.

Letters: B batch, H query heads, G key heads, R = H/G, N queries, M keys, D size of a query, V of a value, W keys of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jieyue.attention.call import Call, Gradients, Upstream
from jieyue.attention.dropout import kept, row_keys
from jieyue.attention.partial import Partial
from jieyue.attention.pattern import Band, shown

__all__ = ["COMPOSED", "Composed"]

_CPU_SCORES = 2**18  # elements of one piece of scores per thread: 1 MiB of float32, the second-level cache
_DEVICE_SCORES = 2**24
_WIDEST_TILE = 1024
_ABILITIES = ("sinks",)


@dataclass(frozen=True, slots=True)
class _Options:
    key_mask: Tensor | None
    scale: float
    dropout: float
    seed: int
    q_offset: int
    edges: dict[Any, Tensor] = field(default_factory=dict)  # the last edge mask: inner blocks share one


@dataclass(frozen=True, slots=True)
class _Class:
    """One residue class of a band: queries ``i`` and keys ``j`` (slices), among which a band of step 1 applies.

    Its offset is (query number in the class) + shift − (key number in the class), between lo and hi.
    """

    i: slice
    j: slice
    n: int
    m: int
    shift: int
    lo: int | None
    hi: int | None

    def keys_of(self, rows: slice) -> tuple[int, int]:
        """The range of keys that these query rows can see."""
        first = 0 if self.hi is None else max(0, rows.start + self.shift - self.hi)
        last = self.m if self.lo is None else min(self.m, rows.stop + self.shift - self.lo)
        return first, max(first, last)

    def shows_all(self, rows: slice, keys: slice) -> bool:
        """Whether every one of these rows sees every one of these keys, so that no mask is needed."""
        least, most = rows.start + self.shift - (keys.stop - 1), rows.stop - 1 + self.shift - keys.start
        return (self.lo is None or least >= self.lo) and (self.hi is None or most <= self.hi)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A batch item, some key heads, some query rows of a class."""

    batch: int
    groups: slice
    rows: slice
    per_group: int

    @property
    def heads(self) -> slice:
        return slice(self.groups.start * self.per_group, self.groups.stop * self.per_group)

    def queries(self, x: Tensor) -> Tensor:
        """[g, R·n, ...] of x [B, H, N, ...]: the queries of one key head stand one below another; float32 at least."""
        taken = _wide(x[self.batch, self.heads, self.rows])
        return taken.reshape(self.groups.stop - self.groups.start, -1, *x.shape[3:])

    def keys(self, x: Tensor, keys: slice) -> Tensor:
        return _wide(x[self.batch, self.groups, keys])


class Composed:
    """The engine."""

    name = "composed"

    def refuses(self, call: Call) -> str | None:
        return call.beyond(self.name, _ABILITIES)

    def attend(self, call: Call) -> tuple[Tensor, Tensor]:
        """out and lse of the call."""
        whole: Partial | None = None
        for band in call.bands:
            part = self.forward(
                *(call.q, call.k, call.v, band),
                key_mask=call.key_mask, scale=call.scale, dropout=call.dropout, seed=call.seed, q_offset=call.q_offset,
            )  # fmt: skip
            whole = Partial(*part) if whole is None else whole.merge(Partial(*part))
        assert whole is not None
        whole = call.with_sinks(whole)
        return whole.out, whole.lse

    def differentiate(self, call: Call, given: Upstream) -> Gradients:
        """dq, dk, dv of the call."""
        found = self.backward_union(
            *(given.grad_out, call.q, call.k, call.v, given.lse, given.delta, call.bands), out=given.out,
            key_mask=call.key_mask, scale=call.scale, dropout=call.dropout, seed=call.seed, q_offset=call.q_offset,
        )  # fmt: skip
        return Gradients(*found)

    def delta(self, grad_out: Tensor, out: Tensor) -> Tensor:
        """Σ grad_out·out over the last dimension."""
        return torch.linalg.vecdot(grad_out, out)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, band: Band, **settings: Any) -> tuple[Tensor, Tensor]:
        """out [B, H, N, V] in [B, N, H, V] memory and lse [B, H, N] of one band."""
        options = _Options(**settings)
        q, k, v = (_unit_stride(x) for x in (q, k, v))
        whole = Partial.empty(q, v)
        for part in _classes(band, q.shape[2], k.shape[2], options.q_offset):
            views = q[:, :, part.i], k[:, :, part.j], v[:, :, part.j]
            target = Partial(whole.out[:, :, part.i], whole.lse[:, :, part.i])
            rows = _flash_rows(part, q, v, options)
            if rows is None:
                for piece in _pieces(part, q, k):
                    _forward_piece(part, piece, views, target, options)
            elif rows.start < rows.stop:
                out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    views[0][:, :, rows], views[1], views[2], 0.0, part.lo is not None, scale=options.scale
                )
                target.out[:, :, rows], target.lse[:, :, rows] = out, lse
        return whole.out, whole.lse

    def backward_union(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lse: Tensor,
        delta: Tensor,
        bands: tuple[Band, ...],
        *,
        out: Tensor | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv of disjoint bands, given lse and delta of the whole softmax; its ``out`` where δ = dO·out."""
        options = _Options(**settings)
        q, k, v = (_unit_stride(x) for x in (q, k, v))
        dq, dk, dv = (_zeros(x) for x in (q, k, v))
        for band in bands:
            for part in _classes(band, q.shape[2], k.shape[2], options.q_offset):
                by_query = [x[:, :, part.i] for x in (grad_out, q, lse, delta, dq)]
                by_key = [x[:, :, part.j] for x in (k, v, dk, dv)]
                rows = _flash_rows(part, q, v, options) if out is not None else None
                if rows is None:
                    for piece in _pieces(part, q, k):
                        _backward_piece(part, piece, by_query, by_key, options)
                elif rows.start < rows.stop:
                    assert out is not None
                    causal = part.lo is not None
                    _flash_backward(by_query, by_key, out[:, :, part.i], rows, causal, options.scale)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


COMPOSED = Composed()


def _classes(band: Band, n: int, m: int, q_offset: int) -> Iterator[_Class]:
    """The residue classes of a band that have both queries and keys, each a band of step 1 of its own."""
    step = band.step
    lo = None if band.lo is None else band.lo // step
    hi = None if band.hi is None else band.hi // step
    for first_key in range(min(step, m)):
        first_query = (first_key - q_offset) % step
        if first_query < n:
            yield _Class(
                i=slice(first_query, n, step),
                j=slice(first_key, m, step),
                n=-(-(n - first_query) // step),
                m=-(-(m - first_key) // step),
                shift=(first_query + q_offset - first_key) // step,
                lo=lo,
                hi=hi,
            )


def _flash_rows(part: _Class, q: Tensor, v: Tensor, options: _Options) -> slice | None:
    """The rows that torch's CPU flash kernel may compute, the others seeing nothing; None where it does not fit.

    It does for a class that sees everything, and for one that sees everything up to a diagonal that begins at key 0.
    """
    if q.device.type != "cpu" or options.key_mask is not None or options.dropout or q.shape[3] != v.shape[3]:
        return None
    if part.lo is None and part.hi is None:
        return slice(0, part.n)
    if part.hi is None and part.lo is not None and part.lo >= part.shift:
        return slice(part.lo - part.shift, part.n)
    return None


def _flash_backward(
    by_query: list[Tensor], by_key: list[Tensor], out: Tensor, rows: slice, causal: bool, scale: float
) -> None:
    grad_out, q, lse, _, dq = (x[:, :, rows] for x in by_query)
    k, v, dk, dv = by_key
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, q, k, v, out[:, :, rows], lse, 0.0, causal, scale=scale
    )
    for total, grad in zip((dq, dk, dv), found, strict=True):
        total += grad


def _pieces(part: _Class, q: Tensor, k: Tensor) -> Iterator[_Piece]:
    """Pieces whose scores fit the cache (on other devices: that are large enough to be worth a launch)."""
    width = part.m if part.lo is None or part.hi is None else min(part.m, part.hi - part.lo + 1)
    on_cpu = q.device.type == "cpu"
    rows = min(part.n, max(32, min(256, width // 4 // 32 * 32)) if on_cpu else max(128, width))
    limit = _CPU_SCORES * torch.get_num_threads() if on_cpu else _DEVICE_SCORES
    num_groups, per_group = k.shape[1], q.shape[1] // k.shape[1]
    together = max(1, min(num_groups, limit // (rows * per_group * min(_WIDEST_TILE, width + rows))))
    for batch in range(q.shape[0]):
        for start in range(0, part.n, rows):
            for group in range(0, num_groups, together):
                groups = slice(group, min(num_groups, group + together))
                yield _Piece(batch, groups, slice(start, min(part.n, start + rows)), per_group)


def _tiles(part: _Class, rows: slice) -> Iterator[slice]:
    first, last = part.keys_of(rows)
    for start in range(first, last, _WIDEST_TILE):
        yield slice(start, min(last, start + _WIDEST_TILE))


def _forward_piece(part: _Class, piece: _Piece, views: tuple[Tensor, ...], target: Partial, options: _Options) -> None:
    q, k, v = views
    scaled_q = piece.queries(q) * options.scale
    whole: Partial | None = None
    for keys in _tiles(part, piece.rows):
        scores = _scores(scaled_q, k, part, piece, keys, options)
        top = scores.amax(-1)
        weights = torch.softmax(scores, -1)
        lse = top - weights.amax(-1).log()
        empty = torch.isneginf(top)
        if not _on_cpu(q) or empty.any():
            weights.masked_fill_(empty[..., None], 0.0)
            lse.masked_fill_(empty, -torch.inf)
        if options.dropout:
            weights *= _keep_scale(part, piece, keys, q, options)
        tile = Partial(torch.bmm(weights, piece.keys(v, keys)), lse)
        whole = tile if whole is None else whole.merge(tile)
    if whole is not None:
        out, lse = target.out[piece.batch, piece.heads, piece.rows], target.lse[piece.batch, piece.heads, piece.rows]
        out.copy_(whole.out.view(out.shape))
        lse.copy_(whole.lse.view(lse.shape))


def _backward_piece(
    part: _Class, piece: _Piece, by_query: list[Tensor], by_key: list[Tensor], options: _Options
) -> None:
    grad_out, q, lse, delta, dq = by_query
    k, v, dk, dv = by_key
    g, scaled_q = piece.queries(grad_out), piece.queries(q) * options.scale
    anchor, row_delta = piece.queries(lse)[..., None], piece.queries(delta)[..., None]
    anchor = anchor.masked_fill(torch.isneginf(anchor), torch.inf)  # rows that saw nothing: e^(s − ∞) = 0
    piece_dq = torch.zeros_like(scaled_q)
    for keys in _tiles(part, piece.rows):
        weights = _scores(scaled_q, k, part, piece, keys, options).sub_(anchor).exp_()
        grad_weights = torch.bmm(g, piece.keys(v, keys).mT)
        dropped = weights
        if options.dropout:
            keep = _keep_scale(part, piece, keys, q, options)
            dropped, grad_weights = weights * keep, grad_weights.mul_(keep)
        dv[piece.batch, piece.groups, keys].baddbmm_(dropped.mT, g)
        grad_scores = grad_weights.sub_(row_delta).mul_(weights)
        dk[piece.batch, piece.groups, keys].baddbmm_(grad_scores.mT, scaled_q)
        piece_dq.baddbmm_(grad_scores, piece.keys(k, keys))
    place = dq[piece.batch, piece.heads, piece.rows]
    place.add_(piece_dq.view(place.shape), alpha=options.scale)


def _scores(scaled_q: Tensor, k: Tensor, part: _Class, piece: _Piece, keys: slice, options: _Options) -> Tensor:
    """[g, R·n, W], −∞ where the band or the key mask hides."""
    taken = piece.keys(k, keys).mT
    if part.shows_all(piece.rows, keys):
        scores = torch.bmm(scaled_q, taken)
    else:
        edge = _edge(part, piece, keys, scaled_q, options.edges)
        scores = torch.baddbmm(edge.expand(len(scaled_q), -1, -1), scaled_q, taken)
    if options.key_mask is not None:
        scores.masked_fill_(~options.key_mask[piece.batch, part.j][keys], -torch.inf)
    return scores


def _edge(part: _Class, piece: _Piece, keys: slice, like: Tensor, edges: dict[Any, Tensor]) -> Tensor:
    """[R·n, W] of 0 and −∞: what the band hides. It depends on the band and the distance only."""
    n, width = piece.rows.stop - piece.rows.start, keys.stop - keys.start
    shift = piece.rows.start + part.shift - keys.start
    name = (part.lo, part.hi, n, width, shift, piece.per_group)
    if name not in edges:
        i = torch.arange(shift, shift + n, device=like.device)
        sees = shown((Band(1, part.lo, part.hi),), i, torch.arange(width, device=like.device))
        edges.clear()
        edges[name] = like.new_zeros(n, width).masked_fill_(~sees, -torch.inf).repeat(piece.per_group, 1)
    return edges[name]


def _keep_scale(part: _Class, piece: _Piece, keys: slice, q: Tensor, options: _Options) -> Tensor:
    """[g, R·n, W] of 0 and 1/(1 − dropout)."""
    step, num_heads = part.i.step, q.shape[1]
    i = torch.arange(piece.rows.start, piece.rows.stop, device=q.device) * step + part.i.start + options.q_offset
    j = torch.arange(keys.start, keys.stop, device=q.device) * step + part.j.start
    heads = torch.arange(piece.heads.start, piece.heads.stop, device=q.device) + piece.batch * num_heads
    keep = kept(row_keys(options.seed, heads, i), j, options.dropout)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return keep.view(piece.groups.stop - piece.groups.start, -1, len(j)).to(dtype) / (1 - options.dropout)


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _zeros(x: Tensor) -> Tensor:
    """Zeros of x's shape in [B, N, H, D] memory, float32 at least."""
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    return x.new_zeros(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=dtype).transpose(1, 2)
