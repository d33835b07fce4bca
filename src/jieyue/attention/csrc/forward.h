// Forward of one task: a tile of queries of one head and residue class, over the keys it sees, chunk by chunk.
//
// Scores carry the factor scale * log2(e), put into the packed keys, so that weights are powers of two.  A row keeps
// (top, sum, acc): its highest score so far, the sum of 2^(score - top) and of 2^(score - top) times values; what it
// starts from is nothing, or the (out, lse) of the bands before.
#pragma once
#include "plan.h"

namespace {

struct ForwardSpace {
  float *keys, *values, *bias, *q, *s, *acc, *top, *sum;
  int64_t lds;
  ForwardSpace(const Plan& p, Arena arena, int64_t* used = nullptr) {
    const int rows = p.chunk ? p.tile : GROUP;
    lds = odd_lines(smaller<int64_t>(p.span, p.width + GROUP + 2 * VL));
    keys = arena.take((int64_t)p.span * p.call.D);
    values = arena.take((int64_t)p.span * p.V);
    bias = arena.take(p.span);
    q = arena.take(GROUP * p.D);
    s = arena.take(GROUP * lds);
    acc = arena.take((int64_t)rows * p.V);
    top = arena.take(rows);
    sum = arena.take(rows);
    if (used) *used = arena.used;
  }
};

struct Row {          // what one row of scores needs; s, bias are indexed by key
  float* s;
  const float* bias;
  int from, to, low, high;  // keys that it sees; panels that are read of it afterwards
  int hole_from, hole_to;
  uint32_t hash;
};

// Turns scores into weights 2^(s - top), 0 outside the row's keys, and updates its state.
template <bool MASK, bool DROP>
inline void soften(const Row& row, const Dice& dice, float& top, float& sum, float* acc, int V) {
  float* s = row.s;
  if (row.from >= row.to) {
    for (int j = row.low; j < row.high; j += VL) store(s + j, vf{});
    return;
  }
  const int from = down(row.from), to = up(row.to);
  for (int j = row.low; j < from; j += VL) store(s + j, vf{});
  for (int j = to; j < row.high; j += VL) store(s + j, vf{});
  const vf none = all(-INF);
  store(s + from, within(from, row.from, row.to) ? load(s + from) : none);
  store(s + to - VL, within(to - VL, row.from, row.to) ? load(s + to - VL) : none);
  for (int j = down(row.hole_from); j < row.hole_to; j += VL)
    store(s + j, within(j, row.hole_from, row.hole_to) ? none : load(s + j));
  vf high = none, high2 = none;
  int j = from;
  if (MASK)
    for (; j < to; j += VL) {
      const vf x = load(s + j) + load(row.bias + j);
      store(s + j, x);
      high = highest(high, x);
    }
  for (; j + 2 * VL <= to; j += 2 * VL) high = highest(high, load(s + j)), high2 = highest(high2, load(s + j + VL));
  for (; j < to; j += VL) high = highest(high, load(s + j));
  const float before = top, now = larger(before, highest_of(highest(high, high2)));
  if (now == -INF) {
    for (j = from; j < to; j += VL) store(s + j, vf{});
    return;
  }
  const vf t = all(now);
  vf total = {}, total2 = {};
  for (j = from; j + 2 * VL <= to; j += 2 * VL) {
    const vf e = exp2_of(load(s + j) - t), f = exp2_of(load(s + j + VL) - t);
    total += e, total2 += f;
    store(s + j, DROP ? dice.kept(row.hash, j) ? e : vf{} : e);
    store(s + j + VL, DROP ? dice.kept(row.hash, j + VL) ? f : vf{} : f);
  }
  for (; j < to; j += VL) {
    const vf e = exp2_of(load(s + j) - t);
    total += e;
    store(s + j, DROP ? dice.kept(row.hash, j) ? e : vf{} : e);
  }
  const float fade = exp2_of(before - now);
  if (fade != 1.f && before != -INF)
    for (int d = 0; d < V; d += VL) store(acc + d, load(acc + d) * fade);
  sum = sum * fade + sum_of(total + total2);
  top = now;
}

struct Outputs {  // of one head and class
  float *out, *lse;
  int64_t out_stride, lse_stride;
};

inline void begin_row(const Plan& plan, const Outputs& to, int i, float& top, float& sum, float* acc) {
  const float lse = plan.accumulate ? to.lse[i * to.lse_stride] : -INF;
  top = lse * LOG2E;
  sum = lse == -INF ? 0.f : 1.f;
  const float* out = to.out + i * to.out_stride;
  const float back = 1.f / plan.call.kept_scale;
  for (int d = 0; d < plan.V; d += VL)
    store(acc + d, lse == -INF ? vf{} : load_columns(out + d, (int)plan.call.V - d) * back);
}

inline void end_row(const Plan& plan, const Outputs& to, int i, float top, float sum, const float* acc) {
  const float share = sum == 0.f ? 0.f : plan.call.kept_scale / sum;
  float* out = to.out + i * to.out_stride;
  for (int d = 0; d < plan.V; d += VL) store_columns(out + d, load(acc + d) * share, (int)plan.call.V - d);
  to.lse[i * to.lse_stride] = sum == 0.f ? -INF : (top + log2_of(sum)) * LN2;
}

template <bool MASK, bool DROP>
void forward_tile(const Plan& plan, const Fold& fold, int64_t b, int64_t h, int i0, int i1, const ForwardSpace& at) {
  const Call& c = plan.call;
  const int64_t step = plan.band.step, g = h / (c.H / c.G);
  const Rows q = rows_of(c.q, b, h, fold.first_query, step, fold.queries, c.D);
  const Rows k = rows_of(c.k, b, g, fold.first_key, step, fold.keys, c.D);
  const Rows v = rows_of(c.v, b, g, fold.first_key, step, fold.keys, c.V);
  const Rows out = rows_of(c.out, b, h, fold.first_query, step, fold.queries, c.V);
  const Outputs to = {c.out.data + b * c.out.batch + h * c.out.head + fold.first_query * c.out.row,
                      c.lse + (b * c.H + h) * c.N + fold.first_query, step * c.out.row, step};
  const Dice dice(plan, fold, b, h);
  const float* bias = MASK ? at.bias : nullptr;
  int low = fold.from(i0), end = fold.to(i1 - 1);
  low = plan.chunk ? low / plan.chunk * plan.chunk : down(low);
  bool first = true, last;
  do {
    const int high = plan.chunk ? smaller(end, low + plan.chunk) : end;
    int packed = low;  // keys from low on that are packed: as many as the rows so far have needed
    last = high >= end;
    if (MASK && high > low) fill_bias(plan, mask_of(plan, fold, b), fold.keys, low, up(high), at.bias);
    for (int r = i0; r < i1; r += GROUP) {
      const int rows = smaller(GROUP, i1 - r), state = plan.chunk ? r - i0 : 0;
      float *top = at.top + state, *sum = at.sum + state, *acc = at.acc + (int64_t)state * plan.V;
      if (first)
        for (int i = 0; i < rows; i++) begin_row(plan, to, r + i, top[i], sum[i], acc + i * plan.V);
      Visit visit;
      if (visit_of(fold, r, i1, low, high, visit)) {
        if (packed < visit.last) {
          const int count = visit.last - packed;
          const float* kept = bias ? bias + (packed - low) : nullptr;
          pack_panels(k, packed, count / VL, kept, c.scale * LOG2E, at.keys + (int64_t)(packed - low) * c.D);
          pack_rows(v, packed, count, kept, plan.V, at.values + (int64_t)(packed - low) * plan.V);
          packed = visit.last;
        }
        const bool in_place = rows == GROUP && plan.D == c.D;  // whole groups of whole vectors are read where they lie
        if (in_place)
          prefetch<0>(q, r + GROUP, r + 2 * GROUP);
        else
          pack_rows(q, r, GROUP, nullptr, plan.D, at.q);
        const float* queries = in_place ? q.at(r) : at.q;
        const int64_t ldq = in_place ? q.stride : plan.D;
        if (last) prefetch<1>(out, r, r + GROUP);
        score_group(visit, queries, ldq, at.keys + (int64_t)(visit.first - low) * c.D, (int)c.D, at.s, at.lds);
        for (int i = 0; i < rows; i++) {
          const int row = r + i, a = larger(low, fold.from(row)), z = smaller(high, fold.to(row));
          const Row scores = {at.s + i * at.lds - visit.first, at.bias - low, a, z, visit.from[i / QM], visit.to[i / QM],
                              larger(a, row + fold.hole_from), smaller(z, row + fold.hole_to),
                              DROP ? dice.of_row(fold.first_query + row * step + c.q_offset) : 0};
          soften<MASK, DROP>(scores, dice, top[i], sum[i], acc + i * plan.V, plan.V);
        }
        weigh_group(visit, at.s, at.lds, at.values + (int64_t)(visit.first - low) * plan.V, plan.V, acc);
      }
      if (last)
        for (int i = 0; i < rows; i++) end_row(plan, to, r + i, top[i], sum[i], acc + i * plan.V);
    }
    first = false;
    low = high;
  } while (!last);
}

}  // namespace
