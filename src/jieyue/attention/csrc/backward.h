// Backward of one task: a tile of queries of all heads that share a key head, in one residue class, over a range of keys.
//
// With P_ij = exp(scale q_i.k_j - lse_i) of the whole union and delta_i as the caller gives it,
//     S_ij = scale P_ij (kept_ij grad_i.v_j - delta_i),   dq_i = sum_j S_ij k_j,   dk_j = sum_i S_ij q_i,
//     dv_j = sum_i kept_ij P_ij grad_i,                   kept_ij = 0 or 1 / (1 - p).
// P and S of BLOCK queries stay in the cache for the three products; dk and dv gather in the workspace until the tile is
// done.  Five products in one pass, none of them done twice.
#pragma once
#include "forward.h"

namespace {

// p and s: probabilities and S of BLOCK queries, as the sums over queries read them; row_s: S of a group, as the sum over
// keys reads it.  In pairs these are made from the floats of one group, group_p and group_s.
template <class E> struct BackwardSpace {
  float *keys, *values, *key_rows, *dk, *dv, *bias, *q, *grad, *q_summed, *grad_summed, *p, *s, *dq;
  float *group_p, *group_s, *row_s, *slope;
  float *column_keys, *column_values, *column_rows, *column_dk, *column_dv, *column_bias, *column_p, *column_s;
  float *column_pairs_p, *column_pairs_s, *column_row_s;
  int64_t lds, ld_row, column_lds, column_ld_row;
  BackwardSpace(const Plan& plan, Arena arena, int64_t* used = nullptr) {
    const int64_t span = plan.span, D = plan.call.D, V = plan.call.V;
    lds = odd_lines(smaller<int64_t>(span, plan.width + BLOCK + 2 * VL) + 2 * VL + 2 * SPARE);
    ld_row = E::PER == 1 ? lds : odd_lines(lds / 2);
    keys = arena.take(span * D / E::PER), values = arena.take(span * V / E::PER);
    key_rows = arena.take(span / E::PER * plan.D), dk = arena.take(span * plan.D), dv = arena.take(span * plan.V);
    bias = arena.take(span);
    q = arena.take(BLOCK * plan.D), grad = arena.take(BLOCK * plan.V);
    p = arena.take(BLOCK / E::PER * lds), s = arena.take(BLOCK / E::PER * lds);
    q_summed = q, grad_summed = grad, group_p = group_s = row_s = nullptr;
    if (E::PER == 2) {
      q_summed = arena.take(BLOCK / 2 * plan.D), grad_summed = arena.take(BLOCK / 2 * plan.V);
      group_p = arena.take(GROUP * lds), group_s = arena.take(GROUP * lds), row_s = arena.take(GROUP * ld_row);
    }
    dq = arena.take(GROUP * plan.D);
    const int columns = plan.num_columns(), there = columns ? GROUP : 0;
    slope = arena.take(plan.bent() ? larger<int64_t>(lds, columns) : 0);
    column_lds = odd_lines(columns), column_ld_row = E::PER == 1 ? column_lds : odd_lines(columns / 2);
    column_keys = arena.take(columns * D / E::PER), column_values = arena.take(columns * V / E::PER);
    column_rows = arena.take(columns / E::PER * plan.D), column_bias = arena.take(columns);
    column_dk = arena.take((columns + KM) * plan.D), column_dv = arena.take((columns + KM) * plan.V);
    column_p = arena.take(there * column_lds), column_s = arena.take(there * column_lds);
    column_pairs_p = column_p, column_pairs_s = column_row_s = column_s;
    if (E::PER == 2) {
      column_pairs_p = arena.take(there / 2 * column_lds), column_pairs_s = arena.take(there / 2 * column_lds);
      column_row_s = arena.take(there * column_ld_row);
    }
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

// Scores, times `factor` where they are not made of scaled keys, become P (with the dropped ones 0) and scale kept grad.v
// becomes S; both 0 outside the row's keys.
struct Blame {
  float lse, delta, factor, grad_factor;
};

// What to blame a row with; scale is left to the end where scores are bent.
inline Blame blame_of(const Plan& plan, float lse, float delta) {
  const Call& c = plan.call;
  const float scale = plan.bent() ? 1.f : c.scale;
  return {lse == -INF ? INF : lse * LOG2E, delta * scale, plan.bent() ? 1.f : c.scale * LOG2E, scale * c.kept_scale};
}

template <class E, bool MASK, bool DROP>
void blame(const Row& row, float* s, const Dice& dice, const Blame& with) {
  float* p = row.s;
  if (row.from >= row.to) {
    for (int j = row.low; j < row.high; j += VL) store(p + j, vf{}), store(s + j, vf{});
    return;
  }
  const int from = down(row.from), to = up(row.to);
  for (int j = row.low; j < from; j += VL) store(p + j, vf{}), store(s + j, vf{});
  for (int j = to; j < row.high; j += VL) store(p + j, vf{}), store(s + j, vf{});
  const vf l = all(with.lse), d = all(with.delta), c = all(with.factor), g = all(with.grad_factor);
  for (int j = from; j < to; j += VL) {
    const vf score = E::PER == 1 ? load(p + j) : load(p + j) * c, back = E::PER == 1 ? load(s + j) : load(s + j) * g;
    const vf e = exp2_of((MASK ? load(row.bias + j) < 0.f ? all(-INF) : score : score) - l);
    if (DROP) {
      const vi kept = dice.kept(row.hash, j);
      store(p + j, kept ? e : vf{});
      store(s + j, e * ((kept ? back : vf{}) - d));
    } else {
      store(p + j, e);
      store(s + j, e * (back - d));
    }
  }
  for (int j = from;; j = to - VL) {  // the first panel and the last
    const vi seen = within(j, row.from, row.to);
    store(p + j, seen ? load(p + j) : vf{}), store(s + j, seen ? load(s + j) : vf{});
    if (j == to - VL) break;
  }
  for (int j = down(row.hole_from); j < row.hole_to; j += VL) {
    const vi hidden = within(j, row.hole_from, row.hole_to);
    store(p + j, hidden ? vf{} : load(p + j)), store(s + j, hidden ? vf{} : load(s + j));
  }
}

// Two rows of floats as pairs: with one another into `summed`, and each with itself, along the row, into `rows` if there.
inline void pair_up(const float* even, const float* odd, int count, float* summed, float* rows, int64_t ld_row) {
  for (int j = 0; j < count; j += VL) {
    const vh a = narrow(load(even + j)), b = narrow(load(odd + j));
    store(summed + j, paired(a, b));
    if (rows) *(vh_unaligned*)((bf16*)rows + j) = a, *(vh_unaligned*)((bf16*)(rows + ld_row) + j) = b;
  }
}

inline void put_row(const Call& c, const Rows& x, int row, const float* from, float times, bool add) {
  const bool watched = c.nonfinite;
  vf odd = {};
  for (int d = 0; d < x.columns; d += VL) {
    const vf y = load(from + d) * times;
    if (watched) odd += y * 0.f;
    x.put(row, d, add ? x.get(row, d) + y : y);
  }
  if (watched && sum_of(odd) != 0.f) *c.nonfinite = 1;
}

// Keys [from, to) get no gradient from any band; those of columns come elsewhere.
inline void zero_keys(const Plan& plan, const Fold& fold, int64_t b, int64_t g, int from, int to) {
  const Call& c = plan.call;
  const Rows dk = rows_of(c.dk, b, g, fold.first_key, plan.band.step, fold.keys, c.D);
  const Rows dv = rows_of(c.dv, b, g, fold.first_key, plan.band.step, fold.keys, c.V);
  for (int j = from; j < to; j++)
    if (fold.plain || !fold.is_column(j))
      memset(dk.at(j), 0, c.D * (dk.half ? 2 : 4)), memset(dv.at(j), 0, c.V * (dv.half ? 2 : 4));
}

// What a task leaves to be added up when all are done, so that results depend on no order: a header; for each head of its
// group the gradients of the biases of its band, of the columns of the run it begins in and of those that begin in it;
// dk and dv of the columns of the run it begins in.
struct Slot {
  struct Header {
    int64_t used, b, g, bias_at, incoming, incoming_at, own_at;  // incoming: the start of the run; -1 = none
  };
  float* data;
  int64_t band_floats, column_floats, heads, D, V;  // PAD included

  Slot(const Plan& plan, float* at) : data(at) {
    const Call& c = plan.call;
    const bool biased = plan.band.bias_grad;
    heads = c.H / c.G, D = plan.D, V = plan.V;
    const int64_t diagonals = plan.whole ? plan.queries + plan.keys : plan.chunk ? plan.tile + plan.chunk : plan.width;
    band_floats = biased ? up16(diagonals + 2 * PAD) : 0;
    column_floats = biased && plan.columns ? up16(plan.tile + plan.num_columns() + 2 * PAD) : 0;
  }
  static int64_t up16(int64_t x) { return (x + 15) / 16 * 16; }
  int64_t floats(const Plan& plan) const {
    return up16(16 + heads * (band_floats + 2 * column_floats) + (plan.columns ? plan.call.num_first * (D + V) : 0));
  }
  Header& header() const { return *(Header*)data; }
  float* band(int64_t head) const { return data + 16 + head * (band_floats + 2 * column_floats) + PAD; }
  float* incoming(int64_t head) const { return band(head) + band_floats; }
  float* own(int64_t head) const { return incoming(head) + column_floats; }
  float* dk(int64_t column) const { return data + 16 + heads * (band_floats + 2 * column_floats) + column * (D + V); }
  float* dv(int64_t column) const { return dk(column) + D; }
};

// The work of a task: queries [i0, i1) against keys [low, high).  dk and dv are added to what is there for keys below
// `add_below` and from `add_from` on, and written in between.  Columns are taken along where `columns`.
struct Piece {
  int64_t b, g;
  int i0, i1, low, high;
  bool add_dq;
  int add_below, add_from;
  bool columns;
  Slot slot;
  int64_t bias_shift;  // the bias of row i and key j has its gradient at slot.band(head)[j - i + bias_shift]
};

// The keys of a piece in the workspace: packed when the first queries need them, their dk and dv put down when the last
// queries have passed, so that memory moves while the products run.
template <class E> struct Keys {
  const Plan& plan;
  const Piece& at;
  const BackwardSpace<E> w;
  Rows k, v, dk, dv;
  const Fold& fold;
  const int base;
  int ready, done;

  Keys(const Plan& p, const Fold& f, const Piece& piece, float* workspace)
      : plan(p), at(piece), w(plan, Arena{workspace}), fold(f), base(down(piece.low)), ready(base), done(piece.low) {
    const Call& c = plan.call;
    const auto rows = [&](const View& x, int64_t columns) {
      return rows_of(x, at.b, at.g, fold.first_key, plan.band.step, fold.keys, columns);
    };
    k = rows(c.k, c.D), v = rows(c.v, c.V), dk = rows(c.dk, c.D), dv = rows(c.dv, c.V);
    if (c.key_mask && at.low < at.high) fill_bias(plan, mask_of(plan, fold, at.b), fold.keys, base, up(at.high), w.bias);
  }

  void need(int end) {  // keys below `end`
    const int count = up(end) - ready;
    if (count <= 0) return;
    const Call& c = plan.call;
    const int64_t from = ready - base;
    const float* bias = c.key_mask ? w.bias + from : nullptr;
    pack_panels<E>(k, ready, count / VL, bias, c.scale * LOG2E, w.keys + from * c.D / E::PER);
    pack_panels<E>(v, ready, count / VL, bias, (plan.bent() ? 1.f : c.scale) * c.kept_scale, w.values + from * c.V / E::PER);
    pack_summed<E>(k, ready, count, bias, plan.D, w.key_rows + from / E::PER * plan.D);
    memset(w.dk + from * plan.D, 0, sizeof(float) * count * plan.D);
    memset(w.dv + from * plan.V, 0, sizeof(float) * count * plan.V);
    ready += count;
  }

  void release(int end) {  // keys below `end`
    need(end);
    for (; done < end; done++) {
      if (!fold.plain && fold.is_column(done)) continue;
      const bool add = done < at.add_below || done >= at.add_from;
      put_row(plan.call, dk, done, w.dk + (int64_t)(done - base) * plan.D, 1.f, add);
      put_row(plan.call, dv, done, w.dv + (int64_t)(done - base) * plan.V, plan.call.kept_scale, add);
    }
  }
};

}  // namespace
