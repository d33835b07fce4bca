"""The Triton kernels of the fused engine: one band in one pass, forward and backward. Imported only where Triton is.

A band of step r is r independent bands of step 1, one for each residue class of the positions. Within a class, query a (at
first_query + a·r) sees key b (at first_key + b·r) when lo ≤ a + shift − b ≤ hi, lo and hi counted in steps, and not within the
hole. A program takes a tile of one class and walks the tiles of the other side that it meets; only those at the edge of the
band, or beside its hole, are compared lane by lane.

    forward     out and lse of the tile's queries, begun from (out, lse) of the bands before where there are any
    backward    P = 2^(s − lse),  dS = P ∘ (kept·dO Vᵀ − δ):  dq by tiles of queries, dk and dv by tiles of keys; no atomics

Scores are in powers of two; sums, scores and gradients are float32 whatever the tensors are; dropout is ``dropout.py``'s.

Letters: B batch, H query heads, G key heads, N queries, M keys, D size of a query, V size of a value; a ``view`` is (pointer,
stride of batch, of head, of row); ``sizes`` is (H, G, N, M, q_offset); ``band`` is (step, lo, hi, hole_lo, hole_hi).
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["add_key_gradients", "add_query_gradients", "attend_band", "row_products"]

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "threshold"])
def attend_band(
    q, k, v, out, lse, key_mask, sizes, band, scale, kept_scale, seed_low, seed_high, threshold,
    D: tl.constexpr, V: tl.constexpr, WIDE_D: tl.constexpr, WIDE_V: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr, DROPPED: tl.constexpr, HOLED: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """out and lse of one tile of queries over one band; MERGED: merged into what the bands before have written."""
    num_heads, num_groups, n, m, q_offset = sizes
    step, lo, hi, _, _ = band
    batch, head, group = _place(num_heads, num_groups, False)
    first_query, first_key, queries, keys, shift = _class_of(n, m, q_offset, step)
    start = tl.program_id(0) // step * ROWS
    if start >= queries:
        return
    a = start + tl.arange(0, ROWS)
    last = tl.minimum(start + ROWS, queries) - 1
    q_base, out_base = batch * q[1] + head * q[2], batch * out[1] + head * out[2]
    rows = (first_query + a * step).to(tl.int64)
    query = _load(q, q_base, rows, a < queries, D, WIDE_D)
    lse_at = lse + (batch * num_heads + head) * n + rows
    if MERGED:
        before = tl.load(lse_at, mask=a < queries, other=float("-inf"))
        top = before * LOG2E
        total = tl.where(before == float("-inf"), 0.0, 1.0)
        sums = _load(out, out_base, rows, a < queries, V, WIDE_V).to(tl.float32) / kept_scale
    else:
        top = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, WIDE_V], tl.float32)
    dice = _row_dice(seed_low, seed_high, batch * num_heads + head, rows + q_offset)
    from_, to = tl.maximum(0, start + shift - hi), tl.minimum(keys, last + 1 + shift - lo)
    inner, outer = _unmasked(from_, to, last + shift - hi, start + 1 + shift - lo, KEYS, HOLED)
    for phase in tl.static_range(3):
        low = from_ if phase == 0 else (inner if phase == 1 else outer)
        high = tl.minimum(inner, to) if phase == 0 else (outer if phase == 1 else to)
        for j in range(low, high, KEYS):
            b = j + tl.arange(0, KEYS)
            there = (first_key + b * step).to(tl.int64)
            key = _load(k, batch * k[1] + group * k[2], there, b < keys, D, WIDE_D)
            value = _load(v, batch * v[1] + group * v[2], there, b < keys, V, WIDE_V)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * LOG2E)
            if phase != 1:
                scores = tl.where(
                    _sees(a[:, None] + shift - b[None, :], (b < keys)[None, :], band, HOLED), scores, float("-inf")
                )
            if MASKED:
                scores = tl.where(_kept_keys(key_mask, batch, there, b < keys)[None, :], scores, float("-inf"))
            now = tl.maximum(top, tl.max(scores, 1))
            anchor = tl.where(now == float("-inf"), 0.0, now)
            weights = tl.exp2(scores - anchor[:, None])
            fade = tl.exp2(top - anchor)
            total = total * fade + tl.sum(weights, 1)
            if DROPPED:
                weights = tl.where(_stays(dice[:, None], there[None, :], threshold), weights, 0.0)
            sums = sums * fade[:, None]
            sums += tl.dot(weights.to(value.dtype), value, input_precision="ieee")
            top = now
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    _store(out, out_base, rows, a < queries, V, WIDE_V, sums * (kept_scale / total)[:, None])
    tl.store(lse_at, tl.where(empty, float("-inf"), (top + tl.log2(total)) * LN2), mask=a < queries)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "threshold"])
def add_query_gradients(
    grad, q, k, v, dq, lse, delta, key_mask, sizes, band, scale, kept_scale, seed_low, seed_high, threshold,
    D: tl.constexpr, V: tl.constexpr, WIDE_D: tl.constexpr, WIDE_V: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr, DROPPED: tl.constexpr, HOLED: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """dq of one tile of queries over one band; MERGED: added to that of the bands before."""
    num_heads, num_groups, n, m, q_offset = sizes
    step, lo, hi, _, _ = band
    batch, head, group = _place(num_heads, num_groups, False)
    first_query, first_key, queries, keys, shift = _class_of(n, m, q_offset, step)
    start = tl.program_id(0) // step * ROWS
    if start >= queries:
        return
    a = start + tl.arange(0, ROWS)
    last = tl.minimum(start + ROWS, queries) - 1
    rows = (first_query + a * step).to(tl.int64)
    query = _load(q, batch * q[1] + head * q[2], rows, a < queries, D, WIDE_D)
    given = _load(grad, batch * grad[1] + head * grad[2], rows, a < queries, V, WIDE_V)
    whole, blame = _row_facts(lse, delta, (batch * num_heads + head) * n + rows, a < queries)
    dice = _row_dice(seed_low, seed_high, batch * num_heads + head, rows + q_offset)
    found = tl.zeros([ROWS, WIDE_D], tl.float32)
    from_, to = tl.maximum(0, start + shift - hi), tl.minimum(keys, last + 1 + shift - lo)
    inner, outer = _unmasked(from_, to, last + shift - hi, start + 1 + shift - lo, KEYS, HOLED)
    for phase in tl.static_range(3):
        low = from_ if phase == 0 else (inner if phase == 1 else outer)
        high = tl.minimum(inner, to) if phase == 0 else (outer if phase == 1 else to)
        for j in range(low, high, KEYS):
            b = j + tl.arange(0, KEYS)
            there = (first_key + b * step).to(tl.int64)
            key = _load(k, batch * k[1] + group * k[2], there, b < keys, D, WIDE_D)
            value = _load(v, batch * v[1] + group * v[2], there, b < keys, V, WIDE_V)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * LOG2E)
            weights = tl.exp2(scores - whole[:, None])
            if phase != 1:
                weights = tl.where(
                    _sees(a[:, None] + shift - b[None, :], (b < keys)[None, :], band, HOLED), weights, 0.0
                )
            if MASKED:
                weights = tl.where(_kept_keys(key_mask, batch, there, b < keys)[None, :], weights, 0.0)
            of_weights = tl.dot(given, tl.trans(value), input_precision="ieee")
            if DROPPED:
                of_weights = tl.where(_stays(dice[:, None], there[None, :], threshold), of_weights * kept_scale, 0.0)
            of_scores = weights * (of_weights - blame[:, None])
            found += tl.dot(of_scores.to(key.dtype), key, input_precision="ieee")
    found *= scale
    if MERGED:
        found += _load(dq, batch * dq[1] + head * dq[2], rows, a < queries, D, WIDE_D).to(tl.float32)
    _store(dq, batch * dq[1] + head * dq[2], rows, a < queries, D, WIDE_D, found)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "threshold"])
def add_key_gradients(
    grad, q, k, v, dk, dv, lse, delta, key_mask, sizes, band, scale, kept_scale, seed_low, seed_high, threshold,
    D: tl.constexpr, V: tl.constexpr, WIDE_D: tl.constexpr, WIDE_V: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr, DROPPED: tl.constexpr, HOLED: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys over one band and all heads that read it; MERGED: added to those of the bands before."""
    num_heads, num_groups, n, m, q_offset = sizes
    step, lo, hi, _, _ = band
    batch, _, group = _place(num_heads, num_groups, True)
    first_query, first_key, queries, keys, shift = _class_of(n, m, q_offset, step)
    start = tl.program_id(0) // step * KEYS
    if start >= keys:
        return
    b = start + tl.arange(0, KEYS)
    last = tl.minimum(start + KEYS, keys) - 1
    there = (first_key + b * step).to(tl.int64)
    key = _load(k, batch * k[1] + group * k[2], there, b < keys, D, WIDE_D)
    value = _load(v, batch * v[1] + group * v[2], there, b < keys, V, WIDE_V)
    of_key = tl.zeros([KEYS, WIDE_D], tl.float32)
    of_value = tl.zeros([KEYS, WIDE_V], tl.float32)
    from_, to = tl.maximum(0, start - shift + lo), tl.minimum(queries, last + 1 - shift + hi)
    inner, outer = _unmasked(from_, to, last - shift + lo, start + 1 - shift + hi, ROWS, HOLED)
    for shared in range(num_heads // num_groups):
        head = (group * (num_heads // num_groups) + shared).to(tl.int64)
        for phase in tl.static_range(3):
            low = from_ if phase == 0 else (inner if phase == 1 else outer)
            high = tl.minimum(inner, to) if phase == 0 else (outer if phase == 1 else to)
            for i in range(low, high, ROWS):
                a = i + tl.arange(0, ROWS)
                rows = (first_query + a * step).to(tl.int64)
                query = _load(q, batch * q[1] + head * q[2], rows, a < queries, D, WIDE_D)
                given = _load(grad, batch * grad[1] + head * grad[2], rows, a < queries, V, WIDE_V)
                whole, blame = _row_facts(lse, delta, (batch * num_heads + head) * n + rows, a < queries)
                scores = tl.dot(key, tl.trans(query), input_precision="ieee") * (scale * LOG2E)
                weights = tl.exp2(scores - whole[None, :])
                if phase != 1:
                    weights = tl.where(
                        _sees(a[None, :] + shift - b[:, None], (b < keys)[:, None], band, HOLED), weights, 0.0
                    )
                of_weights = tl.dot(value, tl.trans(given), input_precision="ieee")
                dropped = weights
                if DROPPED:
                    dice = _row_dice(seed_low, seed_high, batch * num_heads + head, rows + q_offset)
                    stays = _stays(dice[None, :], there[:, None], threshold)
                    dropped = tl.where(stays, weights * kept_scale, 0.0)
                    of_weights = tl.where(stays, of_weights * kept_scale, 0.0)
                of_value += tl.dot(dropped.to(given.dtype), given, input_precision="ieee")
                of_scores = weights * (of_weights - blame[None, :])
                of_key += tl.dot(of_scores.to(query.dtype), query, input_precision="ieee")
    of_key *= scale
    if MASKED:
        kept = _kept_keys(key_mask, batch, there, b < keys)[:, None]
        of_key, of_value = tl.where(kept, of_key, 0.0), tl.where(kept, of_value, 0.0)
    if MERGED:
        of_key += _load(dk, batch * dk[1] + group * dk[2], there, b < keys, D, WIDE_D).to(tl.float32)
        of_value += _load(dv, batch * dv[1] + group * dv[2], there, b < keys, V, WIDE_V).to(tl.float32)
    _store(dk, batch * dk[1] + group * dk[2], there, b < keys, D, WIDE_D, of_key)
    _store(dv, batch * dv[1] + group * dv[2], there, b < keys, V, WIDE_V, of_value)


@triton.jit
def row_products(x, y, found, num_heads, n, V: tl.constexpr, WIDE_V: tl.constexpr, ROWS: tl.constexpr):
    """found [B, H, N] = Σ_d x·y in float32, whatever x and y are."""
    place = tl.program_id(1).to(tl.int64)
    batch, head = place // num_heads, place % num_heads
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    one = _load(x, batch * x[1] + head * x[2], rows, rows < n, V, WIDE_V).to(tl.float32)
    other = _load(y, batch * y[1] + head * y[2], rows, rows < n, V, WIDE_V).to(tl.float32)
    tl.store(found + place * n + rows, tl.sum(one * other, 1), mask=rows < n)


@triton.jit
def _place(num_heads, num_groups, BY_GROUP: tl.constexpr):
    """(batch, query head, key head) of this program, 64 bits wide: they multiply strides."""
    place = tl.program_id(1).to(tl.int64)
    if BY_GROUP:
        batch, group = place // num_groups, place % num_groups
        head = group * (num_heads // num_groups)
    else:
        batch, head = place // num_heads, place % num_heads
        group = head // (num_heads // num_groups)
    return batch, head, group


@triton.jit
def _class_of(n, m, q_offset, step):
    """The program's residue class: its first query and key, how many there are of each, and the shift between them."""
    first_key = tl.program_id(0) % step
    first_query = ((first_key - q_offset) % step + step) % step
    queries = tl.cdiv(tl.maximum(n - first_query, 0), step)
    keys = tl.cdiv(tl.maximum(m - first_key, 0), step)
    return first_query, first_key, queries, keys, (first_query + q_offset - first_key) // step


@triton.jit
def _unmasked(from_, to, first, end, SIZE: tl.constexpr, HOLED: tl.constexpr):
    """Where tiles of SIZE from ``from_`` on begin and cease to lie within [first, end), where nothing needs a comparison."""
    inner = from_ + tl.cdiv(tl.maximum(first - from_, 0), SIZE) * SIZE
    whole = 0 if HOLED else tl.maximum(tl.minimum(end, to) - inner, 0) // SIZE * SIZE
    return inner, inner + whole


@triton.jit
def _sees(d, exists, band, HOLED: tl.constexpr):
    _, lo, hi, hole_lo, hole_hi = band
    seen = (d >= lo) & (d <= hi) & exists
    if HOLED:
        seen = seen & ((d < hole_lo) | (d > hole_hi))
    return seen


@triton.jit
def _kept_keys(key_mask, batch, there, exists):
    return tl.load(key_mask[0] + batch * key_mask[1] + there * key_mask[2], mask=exists, other=0) != 0


@triton.jit
def _row_facts(lse, delta, at, exists):
    """lse as a power of two, +∞ where a row saw nothing or does not exist (its weights are then 0), and δ."""
    whole = tl.load(lse + at, mask=exists, other=float("-inf"))
    whole = tl.where(whole == float("-inf"), float("inf"), whole * LOG2E)
    return whole, tl.load(delta + at, mask=exists, other=0.0)


@triton.jit
def _row_dice(seed_low, seed_high, head, i):
    inner = _mix(seed_low.to(tl.uint32) ^ _mix(seed_high.to(tl.uint32) + head.to(tl.uint32)))
    return _mix(inner + i.to(tl.uint32))


@triton.jit
def _stays(dice, j, threshold):
    return _mix(dice ^ (j.to(tl.uint32) * 0x9E3779B9)) >= threshold.to(tl.uint32)


@triton.jit
def _mix(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _load(view, base, rows, exists, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """[len(rows), WIDE] of a view, zeros where there is nothing."""
    d = tl.arange(0, WIDE)
    at = view[0] + base + rows[:, None] * view[3] + d[None, :]
    return tl.load(at, mask=exists[:, None] & (d < COLUMNS)[None, :], other=0.0)


@triton.jit
def _store(view, base, rows, exists, COLUMNS: tl.constexpr, WIDE: tl.constexpr, x):
    d = tl.arange(0, WIDE)
    at = view[0] + base + rows[:, None] * view[3] + d[None, :]
    tl.store(at, x.to(view[0].dtype.element_ty), mask=exists[:, None] & (d < COLUMNS)[None, :])
