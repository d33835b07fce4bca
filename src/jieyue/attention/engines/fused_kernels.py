"""The Triton kernels of the fused engine: one band in one pass, forward and backward. Imported only where Triton is.

A band of step r is r independent bands of step 1, one for each residue class of the positions. Within a class, query a (at
first_query + a·r) sees key b (at first_key + b·r) when lo ≤ a + shift − b ≤ hi, lo and hi counted in steps, and not within the
hole. A program takes a tile of one class and walks the tiles of the other side that it meets; only those at the edge of the
band are compared lane by lane (in loops of their own; with a hole or segments one loop compares all). A launch works on a
rectangle of rows and keys: first keys, global rows and the rest of a pattern are one each. With segments the rectangle counts
from the start of each row's run, and tiles outside the runs of a tile's rows are not visited.

    forward     out and lse of the tile's queries, begun from (out, lse) of the bands before where there are any
    backward    P = 2^(s − lse),  dS = P ∘ (kept·dO Vᵀ − δ):  dq by tiles of queries, dk and dv by tiles of keys

Logits are softcap(scale·q·k) + bias; scores are their powers of two; sums, scores and gradients are float32 whatever the tensors
are; dropout is ``dropout.py``'s.

Letters: B batch, H query heads, G key heads, N queries, M keys, D size of a query, V size of a value; a ``view`` is (pointer,
stride of batch, of head, of row); ``sizes`` is (H, G, N, M, q_offset); ``band`` is (step, lo, hi, hole_lo, hole_hi); ``part`` and
``within`` are (first row, end of rows, first key, end of keys) of the launch and from a run's start; ``runs`` are pointers to the
starts and ends [B, N] of each row's run; ``bias`` is (pointer, stride of head, pointer of its gradient).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .fused_lanes import (
    LN2,
    LOG2E,
    class_of,
    cut_to_runs,
    kept_keys,
    load_rows,
    logits_of,
    place_of,
    present_rows,
    row_dice,
    row_facts,
    run_of,
    sees,
    stays,
    store_rows,
    unmasked,
)

__all__ = ["add_key_gradients", "add_query_gradients", "attend_band", "row_products"]


@triton.jit(do_not_specialize=["seed_low", "seed_high", "threshold"])
def attend_band(
    q, k, v, out, lse, key_mask, runs, bias, sizes, part, within, band, scale, softcap, kept_scale,
    seed_low, seed_high, threshold,
    D: tl.constexpr, V: tl.constexpr, WIDE_D: tl.constexpr, WIDE_V: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr, DROPPED: tl.constexpr, HOLED: tl.constexpr, MERGED: tl.constexpr, PACKED: tl.constexpr,
    CAPPED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """out and lse of one tile of queries over one band; MERGED: merged into what the bands before have written."""
    num_heads, num_groups, n, m, q_offset = sizes
    step, lo, hi, _, _ = band
    batch, head, group = place_of(num_heads, num_groups, False)
    first_query, first_key, queries, keys, shift = class_of(part, q_offset, step)
    start = tl.program_id(0) // step * ROWS
    if start >= queries:
        return
    a = start + tl.arange(0, ROWS)
    last = tl.minimum(start + ROWS, queries) - 1
    out_base = batch * out[1] + head * out[2]
    rows = (first_query + a * step).to(tl.int64)
    query = load_rows(q, batch * q[1] + head * q[2], rows, a < queries, D, WIDE_D)
    lse_at = lse + (batch * num_heads + head) * n + rows
    if MERGED:
        before = tl.load(lse_at, mask=a < queries, other=float("-inf"))
        top = before * LOG2E
        total = tl.where(before == float("-inf"), 0.0, 1.0)
        sums = load_rows(out, out_base, rows, a < queries, V, WIDE_V).to(tl.float32) / kept_scale
    else:
        top = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, WIDE_V], tl.float32)
    dice = row_dice(seed_low, seed_high, batch * num_heads + head, rows + q_offset)
    from_, to = tl.maximum(0, start + shift - hi), tl.minimum(keys, last + 1 + shift - lo)
    if PACKED:
        opens, closes = run_of(runs, batch, rows, a < queries, n, within[0], within[1], within[2], within[3])
        from_, to = cut_to_runs(from_, to, opens, closes, first_key, step)
    inner, outer = unmasked(from_, to, last + shift - hi, start + 1 + shift - lo, KEYS, HOLED, PACKED)
    for phase in tl.static_range(1 if HOLED or PACKED else 3):
        low = from_ if phase == 0 else (inner if phase == 1 else outer)
        high = tl.minimum(inner, to) if phase == 0 else (outer if phase == 1 else to)
        for j in range(low, high, KEYS):
            b = j + tl.arange(0, KEYS)
            there = (first_key + b * step).to(tl.int64)
            kept = kept_keys(key_mask, runs, batch, there, b < keys, n, MASKED, PACKED)
            key = load_rows(k, batch * k[1] + group * k[2], there, kept, D, WIDE_D)
            value = load_rows(v, batch * v[1] + group * v[2], there, kept, V, WIDE_V)
            products = tl.dot(query, tl.trans(key), input_precision="ieee")
            at = rows[:, None] - there[None, :] + m - 1
            both = (a < queries)[:, None] & (b < keys)[None, :]
            scores, _slope = logits_of(products, scale, softcap, bias, head, at, both, CAPPED, BIASED)
            if phase != 1:
                seen = sees(a[:, None] + shift - b[None, :], (b < keys)[None, :], band, HOLED)
                if PACKED:
                    seen = seen & (there[None, :] >= opens[:, None]) & (there[None, :] < closes[:, None])
                scores = tl.where(seen, scores, float("-inf"))
            if MASKED:
                scores = tl.where(kept[None, :], scores, float("-inf"))
            now = tl.maximum(top, tl.max(scores, 1))
            anchor = tl.where(now == float("-inf"), 0.0, now)
            weights, fade = tl.exp2(scores - anchor[:, None]), tl.exp2(top - anchor)
            total = total * fade + tl.sum(weights, 1)
            if DROPPED:
                weights = tl.where(stays(dice[:, None], there[None, :], threshold), weights, 0.0)
            sums = sums * fade[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
            top = now
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    store_rows(out, out_base, rows, a < queries, V, WIDE_V, sums * (kept_scale / total)[:, None])
    tl.store(lse_at, tl.where(empty, float("-inf"), (top + tl.log2(total)) * LN2), mask=a < queries)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "threshold"])
def add_query_gradients(
    grad, q, k, v, dq, lse, delta, key_mask, runs, bias, sizes, part, within, band, scale, softcap, kept_scale,
    seed_low, seed_high, threshold,
    D: tl.constexpr, V: tl.constexpr, WIDE_D: tl.constexpr, WIDE_V: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr, DROPPED: tl.constexpr, HOLED: tl.constexpr, MERGED: tl.constexpr, PACKED: tl.constexpr,
    CAPPED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """dq of one tile of queries over one band; MERGED: added to that of the bands before."""
    num_heads, num_groups, n, m, q_offset = sizes
    step, lo, hi, _, _ = band
    batch, head, group = place_of(num_heads, num_groups, False)
    first_query, first_key, queries, keys, shift = class_of(part, q_offset, step)
    start = tl.program_id(0) // step * ROWS
    if start >= queries:
        return
    a = start + tl.arange(0, ROWS)
    last = tl.minimum(start + ROWS, queries) - 1
    rows = (first_query + a * step).to(tl.int64)
    present = present_rows(runs, batch, rows, a < queries, n, PACKED)
    query = load_rows(q, batch * q[1] + head * q[2], rows, present, D, WIDE_D)
    given = load_rows(grad, batch * grad[1] + head * grad[2], rows, present, V, WIDE_V)
    whole, blame = row_facts(lse, delta, (batch * num_heads + head) * n + rows, present)
    dice = row_dice(seed_low, seed_high, batch * num_heads + head, rows + q_offset)
    found = tl.zeros([ROWS, WIDE_D], tl.float32)
    from_, to = tl.maximum(0, start + shift - hi), tl.minimum(keys, last + 1 + shift - lo)
    if PACKED:
        opens, closes = run_of(runs, batch, rows, a < queries, n, within[0], within[1], within[2], within[3])
        from_, to = cut_to_runs(from_, to, opens, closes, first_key, step)
    inner, outer = unmasked(from_, to, last + shift - hi, start + 1 + shift - lo, KEYS, HOLED, PACKED)
    for phase in tl.static_range(1 if HOLED or PACKED else 3):
        low = from_ if phase == 0 else (inner if phase == 1 else outer)
        high = tl.minimum(inner, to) if phase == 0 else (outer if phase == 1 else to)
        for j in range(low, high, KEYS):
            b = j + tl.arange(0, KEYS)
            there = (first_key + b * step).to(tl.int64)
            kept = kept_keys(key_mask, runs, batch, there, b < keys, n, MASKED, PACKED)
            key = load_rows(k, batch * k[1] + group * k[2], there, kept, D, WIDE_D)
            value = load_rows(v, batch * v[1] + group * v[2], there, kept, V, WIDE_V)
            products = tl.dot(query, tl.trans(key), input_precision="ieee")
            at = rows[:, None] - there[None, :] + m - 1
            both = (a < queries)[:, None] & (b < keys)[None, :]
            scores, slope = logits_of(products, scale, softcap, bias, head, at, both, CAPPED, BIASED)
            weights = tl.exp2(scores - whole[:, None])
            if phase != 1:
                seen = sees(a[:, None] + shift - b[None, :], (b < keys)[None, :], band, HOLED)
                if PACKED:
                    seen = seen & (there[None, :] >= opens[:, None]) & (there[None, :] < closes[:, None])
                weights = tl.where(seen, weights, 0.0)
            if MASKED:
                weights = tl.where(kept[None, :], weights, 0.0)
            of_weights = tl.dot(given, tl.trans(value), input_precision="ieee")
            if DROPPED:
                of_weights = tl.where(stays(dice[:, None], there[None, :], threshold), of_weights * kept_scale, 0.0)
            of_scores = weights * (of_weights - blame[:, None])
            if BIASED:
                tl.atomic_add(bias[2] + head * bias[1] + at, of_scores, mask=both & (of_scores != 0.0))
            if CAPPED:
                of_scores = of_scores * slope
            found += tl.dot(of_scores.to(key.dtype), key, input_precision="ieee")
    found *= scale
    if MERGED:
        found += load_rows(dq, batch * dq[1] + head * dq[2], rows, a < queries, D, WIDE_D).to(tl.float32)
    store_rows(dq, batch * dq[1] + head * dq[2], rows, a < queries, D, WIDE_D, found)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "threshold"])
def add_key_gradients(
    grad, q, k, v, dk, dv, lse, delta, key_mask, runs, bias, sizes, part, within, band, scale, softcap, kept_scale,
    seed_low, seed_high, threshold,
    D: tl.constexpr, V: tl.constexpr, WIDE_D: tl.constexpr, WIDE_V: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr, DROPPED: tl.constexpr, HOLED: tl.constexpr, MERGED: tl.constexpr, PACKED: tl.constexpr,
    CAPPED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys over one band and all heads that read it; MERGED: added to those of the bands before."""
    num_heads, num_groups, n, m, q_offset = sizes
    step, lo, hi, _, _ = band
    batch, _, group = place_of(num_heads, num_groups, True)
    first_query, first_key, queries, keys, shift = class_of(part, q_offset, step)
    start = tl.program_id(0) // step * KEYS
    if start >= keys:
        return
    b = start + tl.arange(0, KEYS)
    last = tl.minimum(start + KEYS, keys) - 1
    there = (first_key + b * step).to(tl.int64)
    kept = kept_keys(key_mask, runs, batch, there, b < keys, n, MASKED, PACKED)
    key = load_rows(k, batch * k[1] + group * k[2], there, kept, D, WIDE_D)
    value = load_rows(v, batch * v[1] + group * v[2], there, kept, V, WIDE_V)
    of_key, of_value = tl.zeros([KEYS, WIDE_D], tl.float32), tl.zeros([KEYS, WIDE_V], tl.float32)
    from_, to = tl.maximum(0, start - shift + lo), tl.minimum(queries, last + 1 - shift + hi)
    if PACKED:
        opens, closes = run_of(runs, batch, there, b < keys, n, within[2], within[3], within[0], within[1])
        from_, to = cut_to_runs(from_, to, opens, closes, first_query, step)
    inner, outer = unmasked(from_, to, last - shift + lo, start + 1 - shift + hi, ROWS, HOLED, PACKED)
    for shared in range(num_heads // num_groups):
        head = (group * (num_heads // num_groups) + shared).to(tl.int64)
        for phase in tl.static_range(1 if HOLED or PACKED else 3):
            low = from_ if phase == 0 else (inner if phase == 1 else outer)
            high = tl.minimum(inner, to) if phase == 0 else (outer if phase == 1 else to)
            for i in range(low, high, ROWS):
                a = i + tl.arange(0, ROWS)
                rows = (first_query + a * step).to(tl.int64)
                present = present_rows(runs, batch, rows, a < queries, n, PACKED)
                query = load_rows(q, batch * q[1] + head * q[2], rows, present, D, WIDE_D)
                given = load_rows(grad, batch * grad[1] + head * grad[2], rows, present, V, WIDE_V)
                whole, blame = row_facts(lse, delta, (batch * num_heads + head) * n + rows, present)
                products = tl.dot(key, tl.trans(query), input_precision="ieee")
                at = rows[None, :] - there[:, None] + m - 1
                both = (a < queries)[None, :] & (b < keys)[:, None]
                scores, slope = logits_of(products, scale, softcap, bias, head, at, both, CAPPED, BIASED)
                weights = tl.exp2(scores - whole[None, :])
                if phase != 1:
                    seen = sees(a[None, :] + shift - b[:, None], (b < keys)[:, None], band, HOLED)
                    if PACKED:
                        seen = seen & (rows[None, :] >= opens[:, None]) & (rows[None, :] < closes[:, None])
                    weights = tl.where(seen, weights, 0.0)
                of_weights = tl.dot(value, tl.trans(given), input_precision="ieee")
                dropped = weights
                if DROPPED:
                    dice = row_dice(seed_low, seed_high, batch * num_heads + head, rows + q_offset)
                    lasting = stays(dice[None, :], there[:, None], threshold)
                    dropped = tl.where(lasting, weights * kept_scale, 0.0)
                    of_weights = tl.where(lasting, of_weights * kept_scale, 0.0)
                of_value += tl.dot(dropped.to(given.dtype), given, input_precision="ieee")
                of_scores = weights * (of_weights - blame[None, :]) * slope
                of_key += tl.dot(of_scores.to(query.dtype), query, input_precision="ieee")
    of_key *= scale
    if MASKED or PACKED:
        of_key, of_value = tl.where(kept[:, None], of_key, 0.0), tl.where(kept[:, None], of_value, 0.0)
    if MERGED:
        of_key += load_rows(dk, batch * dk[1] + group * dk[2], there, b < keys, D, WIDE_D).to(tl.float32)
        of_value += load_rows(dv, batch * dv[1] + group * dv[2], there, b < keys, V, WIDE_V).to(tl.float32)
    store_rows(dk, batch * dk[1] + group * dk[2], there, b < keys, D, WIDE_D, of_key)
    store_rows(dv, batch * dv[1] + group * dv[2], there, b < keys, V, WIDE_V, of_value)


@triton.jit
def row_products(x, y, found, num_heads, n, V: tl.constexpr, WIDE_V: tl.constexpr, ROWS: tl.constexpr):
    """found [B, H, N] = Σ_d x·y in float32, whatever x and y are."""
    place = tl.program_id(1).to(tl.int64)
    batch, head = place // num_heads, place % num_heads
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    one = load_rows(x, batch * x[1] + head * x[2], rows, rows < n, V, WIDE_V).to(tl.float32)
    other = load_rows(y, batch * y[1] + head * y[2], rows, rows < n, V, WIDE_V).to(tl.float32)
    tl.store(found + place * n + rows, tl.sum(one * other, 1), mask=rows < n)
