"""What the Triton kernels of ``fused_kernels`` are put together from: places, masks, logits, dropout, loads and stores of a tile.

Letters and tuples: as in ``fused_kernels``.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "LN2",
    "LOG2E",
    "class_of",
    "cut_to_runs",
    "kept_keys",
    "load_rows",
    "logits_of",
    "mix",
    "place_of",
    "present_rows",
    "row_dice",
    "row_facts",
    "run_of",
    "sees",
    "stays",
    "store_rows",
    "unmasked",
]

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def place_of(num_heads, num_groups, BY_GROUP: tl.constexpr):
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
def class_of(part, q_offset, step):
    """The program's residue class: its first query and key, how many there are of each, and the shift between them."""
    first_row, end_row, first_key, end_key = part
    first_key += tl.program_id(0) % step
    first_query = first_row + ((first_key - q_offset - first_row) % step + step) % step
    queries = tl.cdiv(tl.maximum(end_row - first_query, 0), step)
    keys = tl.cdiv(tl.maximum(end_key - first_key, 0), step)
    return first_query, first_key, queries, keys, (first_query + q_offset - first_key) // step


@triton.jit
def run_of(runs, batch, places, exists, n, first, end, other_first, other_end):
    """For rows (or keys) at these places: where the keys (or rows) that they meet begin and end; 2³⁰ and 0 where there are none.

    A place takes part when it is between ``first`` and ``end`` from its run's start; it meets those between the other two.
    """
    start = tl.load(runs[0] + batch * n + places, mask=exists, other=0)
    stop = tl.load(runs[1] + batch * n + places, mask=exists, other=0)
    inside = exists & (stop > 0) & (places - start >= first) & (places - start < end)
    low = tl.where(inside, start + other_first, 1 << 30)
    high = tl.where(inside, tl.minimum(stop, start + other_end), 0)
    return low, high


@triton.jit
def cut_to_runs(from_, to, low, high, first, step):
    """The numbers from_..to of a class, cut to those whose places are between the least low and the greatest high."""
    from_ = tl.maximum(from_, tl.maximum(tl.min(low, 0) - first, 0) // step)
    return from_, tl.minimum(to, tl.cdiv(tl.maximum(tl.max(high, 0) - first, 0), step))


@triton.jit
def unmasked(from_, to, first, end, SIZE: tl.constexpr, HOLED: tl.constexpr, PACKED: tl.constexpr):
    """Where tiles of SIZE from ``from_`` on begin and cease to lie within [first, end), where nothing needs a comparison."""
    if HOLED or PACKED:
        inner = tl.maximum(from_, to)
        return inner, inner
    else:
        inner = from_ + tl.cdiv(tl.maximum(first - from_, 0), SIZE) * SIZE
        return inner, inner + tl.maximum(tl.minimum(end, to) - inner, 0) // SIZE * SIZE


@triton.jit
def logits_of(products, scale, softcap, bias, head, at, both, CAPPED: tl.constexpr, BIASED: tl.constexpr):
    """Logits as powers of two, and the derivative of softcap (ones where there is none)."""
    slope = tl.full(products.shape, 1.0, tl.float32)
    if CAPPED:
        x = products * (scale / softcap)
        small = x * x
        fade = tl.exp2(tl.abs(x) * (-2 * LOG2E))
        far = (1 - fade) / (1 + fade)
        near = x * (1 - small * (0.3333333333 - small * (0.1333333333 - small * 0.0539682540)))
        bent = tl.where(small < 0.04, near, tl.where(x < 0, -far, far))
        slope = 1 - bent * bent
        scores = bent * (softcap * LOG2E)
    else:
        scores = products * (scale * LOG2E)
    if BIASED:
        scores += tl.load(bias[0] + head * bias[1] + at, mask=both, other=0.0) * LOG2E
    return scores, slope


@triton.jit
def sees(d, exists, band, HOLED: tl.constexpr):
    _, lo, hi, hole_lo, hole_hi = band
    seen = (d >= lo) & (d <= hi) & exists
    if HOLED:
        seen = seen & ((d < hole_lo) | (d > hole_hi))
    return seen


@triton.jit
def kept_keys(key_mask, runs, batch, there, exists, n, MASKED: tl.constexpr, PACKED: tl.constexpr):
    """Which keys somebody may see: kept by the mask, and of a segment. The others are not read: 0 times NaN is NaN."""
    kept = present_rows(runs, batch, there, exists, n, PACKED)
    if MASKED:
        kept = kept & (tl.load(key_mask[0] + batch * key_mask[1] + there * key_mask[2], mask=exists, other=0) != 0)
    return kept


@triton.jit
def present_rows(runs, batch, places, exists, n, PACKED: tl.constexpr):
    """Which rows there are, and of a segment."""
    if PACKED:
        exists = exists & (tl.load(runs[1] + batch * n + places, mask=exists, other=0) > 0)
    return exists


@triton.jit
def row_facts(lse, delta, at, exists):
    """lse as a power of two, +∞ where a row saw nothing or does not exist (its weights are then 0), and δ."""
    whole = tl.load(lse + at, mask=exists, other=float("-inf"))
    whole = tl.where(whole == float("-inf"), float("inf"), whole * LOG2E)
    blame = tl.load(delta + at, mask=exists, other=0.0)
    return whole, tl.where(whole == float("inf"), 0.0, blame)


@triton.jit
def row_dice(seed_low, seed_high, head, i):
    inner = mix(seed_low.to(tl.uint32) ^ mix(seed_high.to(tl.uint32) + head.to(tl.uint32)))
    return mix(inner + i.to(tl.uint32))


@triton.jit
def stays(dice, j, threshold):
    return mix(dice ^ (j.to(tl.uint32) * 0x9E3779B9)) >= threshold.to(tl.uint32)


@triton.jit
def mix(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def load_rows(view, base, rows, exists, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """[len(rows), WIDE] of a view, zeros where there is nothing."""
    d = tl.arange(0, WIDE)
    at = view[0] + base + rows[:, None] * view[3] + d[None, :]
    return tl.load(at, mask=exists[:, None] & (d < COLUMNS)[None, :], other=0.0)


@triton.jit
def store_rows(view, base, rows, exists, COLUMNS: tl.constexpr, WIDE: tl.constexpr, x):
    d = tl.arange(0, WIDE)
    at = view[0] + base + rows[:, None] * view[3] + d[None, :]
    tl.store(at, x.to(view[0].dtype.element_ty), mask=exists[:, None] & (d < COLUMNS)[None, :])
