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

struct BackwardSpace {
  float *keys, *values, *key_rows, *dk, *dv, *bias, *q, *grad, *p, *s, *dq;
  int64_t lds;
  BackwardSpace(const Plan& plan, Arena arena, int64_t* used = nullptr) {
    const int64_t span = plan.span, D = plan.call.D, V = plan.call.V;
    lds = odd_lines(smaller<int64_t>(span, plan.width + BLOCK + 2 * VL) + 4 * VL);
    keys = arena.take(span * D), values = arena.take(span * V);
    key_rows = arena.take(span * plan.D), dk = arena.take(span * plan.D), dv = arena.take(span * plan.V);
    bias = arena.take(span);
    q = arena.take(BLOCK * plan.D), grad = arena.take(BLOCK * plan.V);
    p = arena.take(BLOCK * lds), s = arena.take(BLOCK * lds);
    dq = arena.take(GROUP * plan.D);
    if (used) *used = arena.used;
  }
};

// Scores become P (with the dropped ones 0) and scale kept grad.v becomes S; both 0 outside the row's keys.
template <bool MASK, bool DROP>
inline void blame(const Row& row, float* s, const Dice& dice, float lse, float delta) {
  float* p = row.s;
  if (row.from >= row.to) {
    for (int j = row.low; j < row.high; j += VL) store(p + j, vf{}), store(s + j, vf{});
    return;
  }
  const int from = down(row.from), to = up(row.to);
  for (int j = row.low; j < from; j += VL) store(p + j, vf{}), store(s + j, vf{});
  for (int j = to; j < row.high; j += VL) store(p + j, vf{}), store(s + j, vf{});
  const vf l = all(lse), d = all(delta);
  for (int j = from; j < to; j += VL) {
    const vf e = exp2_of((MASK ? load(p + j) + load(row.bias + j) : load(p + j)) - l);
    if (DROP) {
      const vi kept = dice.kept(row.hash, j);
      store(p + j, kept ? e : vf{});
      store(s + j, e * ((kept ? load(s + j) : vf{}) - d));
    } else {
      store(p + j, e);
      store(s + j, e * (load(s + j) - d));
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

inline void put_row(const Rows& x, int row, const float* from, float times, bool add) {
  float* to = x.at(row);
  for (int d = 0; d < x.columns; d += VL) {
    const vf y = load(from + d) * times;
    store_columns(to + d, add ? load_columns(to + d, x.columns - d) + y : y, x.columns - d);
  }
}

inline void zero_keys(const Plan& plan, const Fold& fold, int64_t b, int64_t g, int from, int to) {
  const Call& c = plan.call;
  const Rows dk = rows_of(c.dk, b, g, fold.first_key, plan.band.step, fold.keys, c.D);
  const Rows dv = rows_of(c.dv, b, g, fold.first_key, plan.band.step, fold.keys, c.V);
  for (int j = from; j < to; j++) memset(dk.at(j), 0, c.D * sizeof(float)), memset(dv.at(j), 0, c.V * sizeof(float));
}

// The work of a task: queries [i0, i1) against keys [low, high).  dk and dv are added to what is there for keys below
// `add_below` and from `add_from` on, and written in between.
struct Piece {
  int64_t b, g;
  int i0, i1, low, high;
  bool add_dq;
  int add_below, add_from;
};

// The keys of a piece in the workspace: packed when the first queries need them, their dk and dv put down when the last
// queries have passed, so that memory moves while the products run.
template <bool MASK> struct Keys {
  const Plan& plan;
  const Piece& at;
  const BackwardSpace& w;
  Rows k, v, dk, dv;
  const int base;
  int ready, done;

  Keys(const Plan& p, const Fold& fold, const Piece& piece, const BackwardSpace& space)
      : plan(p), at(piece), w(space), base(down(piece.low)), ready(base), done(piece.low) {
    const Call& c = plan.call;
    const auto rows = [&](const View& x, int64_t columns) {
      return rows_of(x, at.b, at.g, fold.first_key, plan.band.step, fold.keys, columns);
    };
    k = rows(c.k, c.D), v = rows(c.v, c.V), dk = rows(c.dk, c.D), dv = rows(c.dv, c.V);
    if (MASK && at.low < at.high) fill_bias(plan, mask_of(plan, fold, at.b), fold.keys, base, up(at.high), w.bias);
  }

  void need(int end) {  // keys below `end`
    const int count = up(end) - ready;
    if (count <= 0) return;
    const Call& c = plan.call;
    const int64_t from = ready - base;
    const float* bias = MASK ? w.bias + from : nullptr;
    pack_panels(k, ready, count / VL, bias, c.scale * LOG2E, w.keys + from * c.D);
    pack_panels(v, ready, count / VL, bias, c.scale * c.kept_scale, w.values + from * c.V);
    pack_rows(k, ready, count, bias, plan.D, w.key_rows + from * plan.D);
    memset(w.dk + from * plan.D, 0, sizeof(float) * count * plan.D);
    memset(w.dv + from * plan.V, 0, sizeof(float) * count * plan.V);
    ready += count;
  }

  void release(int end) {  // keys below `end`
    need(end);
    for (; done < end; done++) {
      const bool add = done < at.add_below || done >= at.add_from;
      put_row(dk, done, w.dk + (int64_t)(done - base) * plan.D, 1.f, add);
      put_row(dv, done, w.dv + (int64_t)(done - base) * plan.V, plan.call.kept_scale, add);
    }
  }
};

template <bool MASK, bool DROP>
void backward_head(const Plan& plan, const Fold& fold, const Piece& at, int64_t h, bool last, Keys<MASK>& keys) {
  const Call& c = plan.call;
  const BackwardSpace& w = keys.w;
  const int64_t step = plan.band.step, b = at.b, base = keys.base;
  const Rows q = rows_of(c.q, b, h, fold.first_query, step, fold.queries, c.D);
  const Rows grad = rows_of(c.grad_out, b, h, fold.first_query, step, fold.queries, c.V);
  const Rows dq = rows_of(c.dq, b, h, fold.first_query, step, fold.queries, c.D);
  const int64_t lse_at = (b * c.H + h) * c.N + fold.first_query;
  const Dice dice(plan, fold, b, h);
  for (int t = at.i0; t < at.i1; t += BLOCK) {
    const int te = smaller(t + BLOCK, at.i1), rows = (te - t + GROUP - 1) / GROUP * GROUP;
    const int first = down(larger(at.low, fold.from(t))), end = smaller(at.high, fold.to(te - 1));
    keys.need(end);
    pack_rows(q, t, rows, nullptr, plan.D, w.q);
    pack_rows(grad, t, rows, nullptr, plan.V, w.grad);
    for (int r = t; r < te; r += GROUP) {
      const int m = smaller(GROUP, te - r);
      Visit visit;
      const bool any = visit_of(fold, r, te, at.low, at.high, visit);
      prefetch<1>(dq, r, r + m);
      for (int d = 0; d < m * plan.D; d += VL) store(w.dq + d, vf{});
      if (any) {
        const int64_t shift = (r - t) * w.lds + (visit.first - first + VL);  // one spare panel on each side
        float *p = w.p + shift, *s = w.s + shift;
        score_group(visit, w.q + (r - t) * plan.D, plan.D, w.keys + (visit.first - base) * c.D, (int)c.D, p, w.lds);
        score_group(visit, w.grad + (r - t) * plan.V, plan.V, w.values + (visit.first - base) * c.V, (int)c.V, s, w.lds);
        for (int i = 0; i < m; i++) {
          const int row = r + i, a = larger(at.low, fold.from(row)), z = smaller(at.high, fold.to(row));
          const Row scores = {p + i * w.lds - visit.first, w.bias - base, a, z, visit.from[i / QM] - VL, visit.to[i / QM] + VL,
                              larger(a, row + fold.hole_from), smaller(z, row + fold.hole_to),
                              DROP ? dice.of_row(fold.first_query + row * step + c.q_offset) : 0};
          const float lse = c.lse[lse_at + row * step], delta = c.delta[lse_at + row * step];
          blame<MASK, DROP>(scores, s + i * w.lds - visit.first, dice, lse == -INF ? INF : lse * LOG2E, delta * c.scale);
        }
        for (int i = m; i < GROUP; i++)
          for (int j = visit.first; j < visit.last; j += VL) store(s + i * w.lds + j - visit.first, vf{});
        weigh_group(visit, s, w.lds, w.key_rows + (visit.first - base) * plan.D, plan.D, w.dq);
      }
      if (any || !at.add_dq)
        for (int i = 0; i < m; i++) put_row(dq, r + i, w.dq + i * plan.D, 1.f, at.add_dq);
    }
    for (int k = first; k < end; k += KM) {
      const int x = larger(t, k - fold.right), y = smaller(te, smaller(k + KM, end) + fold.left);
      if (x >= y) continue;
      const int64_t shift = (x - t) * w.lds + (k - first + VL), to = k - base;
      const int count = smaller(KM, up(end) - k);
      gather(count, w.p + shift, w.lds, w.grad + (x - t) * plan.V, plan.V, y - x, w.dv + to * plan.V);
      gather(count, w.s + shift, w.lds, w.q + (x - t) * plan.D, plan.D, y - x, w.dk + to * plan.D);
    }
    if (last) keys.release(smaller(at.high, fold.from(te)));
  }
}

template <bool MASK, bool DROP>
void backward_piece(const Plan& plan, const Fold& fold, const Piece& at, const BackwardSpace& w) {
  const int64_t heads = plan.call.H / plan.call.G;
  Keys<MASK> keys(plan, fold, at, w);
  for (int64_t i = 0; i < heads; i++) backward_head<MASK, DROP>(plan, fold, at, at.g * heads + i, i == heads - 1, keys);
  keys.release(at.high);
}

}  // namespace
