"""The composed engine: bands from stock torch operations, a cache-sized piece of scores at a time. Any device, any float.

A call is cut into rectangles of bands (runs of segments, global rows, first keys, the rest: ``Pattern.parts``). For a block of
query rows of one band the visible keys are one contiguous range (within a residue class when step > 1, a strided view), so

    S = softcap(scale·Q Kᵀ) + bias + edge mask,  P = softmax(S),  lse = max S − log max P,  O = P V           forward
    P = e^(S − lse),  dS = P ∘ (dO Vᵀ − δ),  dbias += dS,  dQ = dS K,  dK += dSᵀ Q,  dV += Pᵀ dO             backward

with dK and dV accumulated in place where they lie; what a query has seen before is merged with where it lies. A band that shows
everything, or everything up to the query, is one call of torch's flash kernel where there is one (CPU, nothing beside bands).

Cost: O(pairs·(D + V)) time with some waste at the edges of blocks; memory beside the outputs: a few pieces of about 1 MiB
per thread on the CPU and 64 MiB on other devices. Refuses nothing.

Letters: B batch, H query heads, G key heads, R = H/G, N queries, M keys, D size of a query, V of a value, W keys of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jieyue.attention.call import Call, Gradients, Upstream
from jieyue.attention.diagonals import along_diagonals, sums_along_diagonals
from jieyue.attention.dropout import kept, row_keys
from jieyue.attention.partial import Partial
from jieyue.attention.pattern import Band, shown

__all__ = ["COMPOSED", "Composed"]

_CPU_SCORES = 2**18  # elements of one piece of scores per thread: 1 MiB of float32, the second-level cache
_DEVICE_SCORES = 2**24
_WIDEST_TILE = 1024


@dataclass(frozen=True, slots=True)
class _Work:
    """The call, its tensors with unit stride, and the last edge mask: inner blocks share one."""

    call: Call
    q: Tensor
    k: Tensor
    v: Tensor
    edges: dict[tuple[int | None, ...], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, call: Call) -> _Work:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (call.q, call.k, call.v))
        return cls(call, q, k, v)


@dataclass(frozen=True, slots=True)
class _Class:
    """One residue class of a band: rows ``batch``, queries ``i`` and keys ``j`` (slices), among which a band of step 1 applies.

    Its offset is (query number in the class) + shift − (key number in the class), between lo and hi. ``fresh``: these queries
    have seen nothing before.
    """

    batch: slice
    i: slice
    j: slice
    n: int
    m: int
    shift: int
    lo: int | None
    hi: int | None
    fresh: bool

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

    work: _Work
    part: _Class
    batch: int
    groups: slice
    rows: slice
    per_group: int

    @property
    def heads(self) -> slice:
        return slice(self.groups.start * self.per_group, self.groups.stop * self.per_group)

    def place(self, x: Tensor) -> Tensor:
        """The piece's rows of x [B, H, N, ...]: [g·R, n, ...]."""
        return x[self.batch, self.heads, self.part.i][:, self.rows]

    def queries(self, x: Tensor) -> Tensor:
        """[g, R·n, ...] of x [B, H, N, ...]: the queries of one key head stand one below another; float32 at least."""
        taken = _wide(self.place(x))
        return taken.reshape(self.groups.stop - self.groups.start, -1, *x.shape[3:])

    def keys(self, x: Tensor, keys: slice) -> Tensor:
        """[g, W, ...] of x [B, G, M, ...], zeros where the key mask hides: what stands there may be anything."""
        taken = _wide(x[self.batch, self.groups, self.part.j][:, keys])
        hidden = self.hidden(keys)
        return taken if hidden is None else taken.masked_fill(hidden[:, None], 0.0)

    def hidden(self, keys: slice) -> Tensor | None:
        mask = self.work.call.key_mask
        return None if mask is None else ~mask[self.batch, self.part.j][keys]

    def diagonals(self, keys: slice) -> slice:
        """Where offset_bias has the tile's diagonals, from its first row and last key to its last row and first key."""
        part, step, count = self.part, self.part.i.step, self.rows.stop - self.rows.start + keys.stop - keys.start - 1
        i, j = part.i.start + self.rows.start * step, part.j.start + (keys.stop - 1) * step
        first = i - j + self.work.k.shape[2] - 1
        return slice(first, first + (count - 1) * step + 1, step)


class Composed:
    """The engine."""

    name = "composed"
    halves: tuple[torch.dtype, ...] = ()

    def refuses(self, call: Call) -> str | None:
        return None

    def attend(self, call: Call) -> tuple[Tensor, Tensor]:
        """out [B, H, N, V] in [B, N, H, V] memory and lse [B, H, N]."""
        work = _Work.of(call)
        whole = Partial.empty(work.q, work.v)
        for part in _classes(call):
            rows = _flash_rows(part, call)
            if rows is None:
                for piece in _pieces(part, work):
                    _forward_piece(piece, whole)
            elif rows.start < rows.stop:
                q, k, v = (x[part.batch, :, at] for x, at in ((work.q, part.i), (work.k, part.j), (work.v, part.j)))
                found = Partial(
                    *torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                        q[:, :, rows], k, v, 0.0, part.lo is not None, scale=call.scale
                    )
                )
                out, lse = (x[part.batch, :, part.i][:, :, rows] for x in (whole.out, whole.lse))
                _put(found if part.fresh else Partial(out, lse).merge(found), out, lse)
        whole = call.with_sinks(whole)
        return whole.out, whole.lse

    def differentiate(self, call: Call, given: Upstream) -> Gradients:
        """The gradients, given lse and delta of the whole softmax."""
        work = _Work.of(call)
        of_bias = None if call.offset_bias is None else torch.zeros_like(call.offset_bias)
        grads = Gradients(_zeros(work.q), _zeros(work.k), _zeros(work.v), of_bias)
        for part in _classes(call):
            rows = _flash_rows(part, call) if given.out is not None else None
            if rows is None:
                for piece in _pieces(part, work):
                    _backward_piece(piece, given, grads)
            elif rows.start < rows.stop:
                _flash_backward(part, rows, work, given, grads)
        return Gradients(
            grads.q.to(call.q.dtype), grads.k.to(call.k.dtype), grads.v.to(call.v.dtype), grads.offset_bias
        )

    def delta(self, grad_out: Tensor, out: Tensor) -> Tensor:
        """Σ grad_out·out over the last dimension."""
        return torch.linalg.vecdot(grad_out, out)


COMPOSED = Composed()


def _classes(call: Call) -> Iterator[_Class]:
    """All that the call shows, as disjoint bands of step 1."""
    (batch, _, n, _), m = call.q.shape, call.k.shape[2]
    runs = [(slice(0, batch), 0, n, m)]
    if call.runs is not None:
        found = [
            sorted({(s, e) for s, e in zip(*rows, strict=True) if e}) for rows in call.runs.transpose(0, 1).tolist()
        ]
        runs = [(slice(b, b + 1), start, end - start, end - start) for b, row in enumerate(found) for start, end in row]
    for rows, start, n, m in runs:
        seen: set[tuple[int, int]] = set()
        for queries, keys, bands in call.pattern.parts(n, m, call.q_offset):
            for band in bands:
                yield from _residues(
                    band, rows, (start + queries[0], start + queries[1]), (start + keys[0], start + keys[1]),
                    call.q_offset + queries[0] - keys[0], queries not in seen,
                )  # fmt: skip
                seen.add(queries)


def _residues(
    band: Band, batch: slice, queries: tuple[int, int], keys: tuple[int, int], offset: int, fresh: bool
) -> Iterator[_Class]:
    """The residue classes of a band within a rectangle that have both queries and keys."""
    step, n, m = band.step, queries[1] - queries[0], keys[1] - keys[0]
    lo = None if band.lo is None else band.lo // step
    hi = None if band.hi is None else band.hi // step
    for first_key in range(min(step, m)):
        first_query = (first_key - offset) % step
        if first_query < n:
            yield _Class(
                batch=batch,
                i=slice(queries[0] + first_query, queries[1], step),
                j=slice(keys[0] + first_key, keys[1], step),
                n=-(-(n - first_query) // step),
                m=-(-(m - first_key) // step),
                shift=(first_query + offset - first_key) // step,
                lo=lo,
                hi=hi,
                fresh=fresh,
            )


def _flash_rows(part: _Class, call: Call) -> slice | None:
    """The rows that torch's CPU flash kernel may compute, the others seeing nothing; None where it does not fit.

    It does for a class that sees everything, and for one that sees everything up to a diagonal that begins at key 0.
    """
    bent = call.softcap or call.offset_bias is not None
    if call.q.device.type != "cpu" or call.key_mask is not None or call.dropout or bent:
        return None
    if call.q.shape[3] != call.v.shape[3]:
        return None
    if part.lo is None and part.hi is None:
        return slice(0, part.n)
    if part.hi is None and part.lo is not None and part.lo >= part.shift:
        return slice(part.lo - part.shift, part.n)
    return None


def _flash_backward(part: _Class, rows: slice, work: _Work, given: Upstream, grads: Gradients) -> None:
    by_query = (work.q, given.grad_out, given.out, given.lse, grads.q)
    q, grad_out, out, lse, dq = (x[part.batch, :, part.i][:, :, rows] for x in by_query if x is not None)
    k, v, dk, dv = (x[part.batch, :, part.j] for x in (work.k, work.v, grads.k, grads.v))
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, q, k, v, out, lse, 0.0, part.lo is not None, scale=work.call.scale
    )
    for total, grad in zip((dq, dk, dv), found, strict=True):
        total += grad


def _pieces(part: _Class, work: _Work) -> Iterator[_Piece]:
    """Pieces whose scores fit the cache (on other devices: that are large enough to be worth a launch)."""
    q, k = work.q, work.k
    width = part.m if part.lo is None or part.hi is None else min(part.m, part.hi - part.lo + 1)
    on_cpu = q.device.type == "cpu"
    rows = min(part.n, max(32, min(256, width // 4 // 32 * 32)) if on_cpu else max(128, width))
    limit = _CPU_SCORES * torch.get_num_threads() if on_cpu else _DEVICE_SCORES
    num_groups, per_group = k.shape[1], q.shape[1] // k.shape[1]
    together = max(1, min(num_groups, limit // (rows * per_group * min(_WIDEST_TILE, width + rows))))
    for batch in range(part.batch.start, part.batch.stop):
        for start in range(0, part.n, rows):
            for group in range(0, num_groups, together):
                groups = slice(group, min(num_groups, group + together))
                yield _Piece(work, part, batch, groups, slice(start, min(part.n, start + rows)), per_group)


def _tiles(piece: _Piece) -> Iterator[slice]:
    first, last = piece.part.keys_of(piece.rows)
    for start in range(first, last, _WIDEST_TILE):
        yield slice(start, min(last, start + _WIDEST_TILE))


def _forward_piece(piece: _Piece, target: Partial) -> None:
    call, q, v, tiles = piece.work.call, piece.work.q, piece.work.v, list(_tiles(piece))
    scaled_q = piece.queries(q) * call.scale
    out, lse = piece.place(target.out), piece.place(target.lse)
    whole: Partial | None = None if piece.part.fresh else Partial(piece.queries(target.out), piece.queries(target.lse))
    for keys in tiles:
        scores, _ = _scores(scaled_q, piece, keys)
        top = scores.amax(-1)
        weights = torch.softmax(scores, -1)
        own = top - weights.amax(-1).log()
        empty = torch.isneginf(top)
        if q.device.type != "cpu" or empty.any():
            weights.masked_fill_(empty[..., None], 0.0)
            own.masked_fill_(empty, -torch.inf)
        if call.dropout:
            weights *= _keep_scale(piece, keys)
        tile = Partial(torch.bmm(weights, piece.keys(v, keys)), own)
        whole = tile if whole is None else whole.merge(tile)
    if whole is not None and tiles:
        _put(whole, out, lse)


def _put(whole: Partial, out: Tensor, lse: Tensor) -> None:
    out.copy_(whole.out.view(out.shape))
    lse.copy_(whole.lse.view(lse.shape))


def _backward_piece(piece: _Piece, given: Upstream, grads: Gradients) -> None:
    call, k, v = piece.work.call, piece.work.k, piece.work.v
    g, scaled_q = piece.queries(given.grad_out), piece.queries(piece.work.q) * call.scale
    anchor, row_delta = piece.queries(given.lse)[..., None], piece.queries(given.delta)[..., None]
    anchor = anchor.masked_fill(torch.isneginf(anchor), torch.inf)  # rows that saw nothing: e^(s − ∞) = 0
    piece_dq = torch.zeros_like(scaled_q)
    for keys in _tiles(piece):
        scores, slope = _scores(scaled_q, piece, keys)
        weights = scores.sub_(anchor).exp_()
        grad_weights = torch.bmm(g, piece.keys(v, keys).mT)
        dropped = weights
        if call.dropout:
            keep = _keep_scale(piece, keys)
            dropped, grad_weights = weights * keep, grad_weights.mul_(keep)
        of_keys, of_values = (x[piece.batch, piece.groups, piece.part.j][:, keys] for x in (grads.k, grads.v))
        of_values.baddbmm_(dropped.mT, g)
        grad_scores = grad_weights.sub_(row_delta).mul_(weights)
        if grads.offset_bias is not None:
            _add_bias_gradient(piece, keys, grad_scores, grads.offset_bias)
        if slope is not None:
            grad_scores *= slope
        of_keys.baddbmm_(grad_scores.mT, scaled_q)
        piece_dq.baddbmm_(grad_scores, piece.keys(k, keys))
    place = piece.place(grads.q)
    place.add_(piece_dq.view(place.shape), alpha=call.scale)


def _scores(scaled_q: Tensor, piece: _Piece, keys: slice) -> tuple[Tensor, Tensor | None]:
    """[g, R·n, W], −∞ where the band or the key mask hides; and the derivative of softcap there."""
    call, slope = piece.work.call, None
    taken = piece.keys(piece.work.k, keys).mT
    edge = None if piece.part.shows_all(piece.rows, keys) else _edge(piece, keys, scaled_q)
    if edge is None or call.softcap:
        scores = torch.bmm(scaled_q, taken)
    else:
        scores = torch.baddbmm(edge.expand(len(scaled_q), -1, -1), scaled_q, taken)
    if call.softcap:
        scores = scores.div_(call.softcap).tanh_()
        slope = 1 - scores * scores
        scores *= call.softcap
        if edge is not None:
            scores += edge
    if call.offset_bias is not None:
        scores += _bias(piece, keys, call.offset_bias, scores)
    hidden = piece.hidden(keys)
    if hidden is not None:
        scores.masked_fill_(hidden, -torch.inf)
    return scores, slope


def _bias(piece: _Piece, keys: slice, offset_bias: Tensor, like: Tensor) -> Tensor:
    """offset_bias of this tile, [g, R·n, W]."""
    n, width = piece.rows.stop - piece.rows.start, keys.stop - keys.start
    own = offset_bias[piece.heads] if len(offset_bias) > 1 else offset_bias
    rows = along_diagonals(own[:, piece.diagonals(keys)], n, width)
    return rows.expand(piece.heads.stop - piece.heads.start, n, width).reshape(like.shape)


def _add_bias_gradient(piece: _Piece, keys: slice, grad_scores: Tensor, total: Tensor) -> None:
    n, width = piece.rows.stop - piece.rows.start, keys.stop - keys.start
    found = sums_along_diagonals(grad_scores.view(-1, n, width))
    one = len(total) == 1
    total[slice(0, 1) if one else piece.heads, piece.diagonals(keys)] += found.sum(0, keepdim=True) if one else found


def _edge(piece: _Piece, keys: slice, like: Tensor) -> Tensor:
    """[R·n, W] of 0 and −∞: what the band hides. It depends on the band and the distance only."""
    part, edges = piece.part, piece.work.edges
    n, width = piece.rows.stop - piece.rows.start, keys.stop - keys.start
    shift = piece.rows.start + part.shift - keys.start
    name = (part.lo, part.hi, n, width, shift, piece.per_group)
    if name not in edges:
        i = torch.arange(shift, shift + n, device=like.device)
        sees = shown((Band(1, part.lo, part.hi),), i, torch.arange(width, device=like.device))
        edges.clear()
        edges[name] = like.new_zeros(n, width).masked_fill_(~sees, -torch.inf).repeat(piece.per_group, 1)
    return edges[name]


def _keep_scale(piece: _Piece, keys: slice) -> Tensor:
    """[g, R·n, W] of 0 and 1/(1 − dropout)."""
    call, part, q = piece.work.call, piece.part, piece.work.q
    step, num_heads = part.i.step, q.shape[1]
    i = torch.arange(piece.rows.start, piece.rows.stop, device=q.device) * step + part.i.start + call.q_offset
    j = torch.arange(keys.start, keys.stop, device=q.device) * step + part.j.start
    heads = torch.arange(piece.heads.start, piece.heads.stop, device=q.device) + piece.batch * num_heads
    keep = kept(row_keys(call.seed, heads, i), j, call.dropout)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return keep.view(piece.groups.stop - piece.groups.start, -1, len(j)).to(dtype) / (1 - call.dropout)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _zeros(x: Tensor) -> Tensor:
    """Zeros of x's shape in [B, N, H, D] memory, float32 at least."""
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    return x.new_zeros(x.shape[0], x.shape[2], x.shape[1], x.shape[3], dtype=dtype).transpose(1, 2)
