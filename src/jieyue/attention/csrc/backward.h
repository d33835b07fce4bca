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
  float *group_p, *group_s, *row_s;
  int64_t lds, ld_row;
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
    if (used) *used = arena.used;
  }
};

// Scores, times `factor` where they are not made of scaled keys, become P (with the dropped ones 0) and scale kept grad.v
// becomes S; both 0 outside the row's keys.
struct Blame {
  float lse, delta, factor, grad_factor;
};

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
    const vf e = exp2_of((MASK ? score + load(row.bias + j) : score) - l);
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
    store(summed + j, (vf)(__builtin_convertvector(a, vu) | __builtin_convertvector(b, vu) << 16));
    if (rows) *(vh_unaligned*)((bf16*)rows + j) = a, *(vh_unaligned*)((bf16*)(rows + ld_row) + j) = b;
  }
}

inline void put_row(const Rows& x, int row, const float* from, float times, bool add) {
  for (int d = 0; d < x.columns; d += VL) {
    const vf y = load(from + d) * times;
    x.put(row, d, add ? x.get(row, d) + y : y);
  }
}

inline void zero_keys(const Plan& plan, const Fold& fold, int64_t b, int64_t g, int from, int to) {
  const Call& c = plan.call;
  const Rows dk = rows_of(c.dk, b, g, fold.first_key, plan.band.step, fold.keys, c.D);
  const Rows dv = rows_of(c.dv, b, g, fold.first_key, plan.band.step, fold.keys, c.V);
  for (int j = from; j < to; j++) memset(dk.at(j), 0, c.D * (dk.half ? 2 : 4)), memset(dv.at(j), 0, c.V * (dv.half ? 2 : 4));
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
template <class E> struct Keys {
  const Plan& plan;
  const Piece& at;
  const BackwardSpace<E> w;
  Rows k, v, dk, dv;
  const int base;
  int ready, done;

  Keys(const Plan& p, const Fold& fold, const Piece& piece, float* workspace)
      : plan(p), at(piece), w(plan, Arena{workspace}), base(down(piece.low)), ready(base), done(piece.low) {
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
    pack_panels<E>(v, ready, count / VL, bias, c.scale * c.kept_scale, w.values + from * c.V / E::PER);
    pack_summed<E>(k, ready, count, bias, plan.D, w.key_rows + from / E::PER * plan.D);
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

template <class E>
void backward_head(const Plan& plan, const Fold& fold, const Piece& at, int64_t h, bool last, Keys<E>& keys) {
  const Call& c = plan.call;
  const BackwardSpace<E>& w = keys.w;
  const int64_t step = plan.band.step, b = at.b, base = keys.base;
  const Rows q = rows_of(c.q, b, h, fold.first_query, step, fold.queries, c.D);
  const Rows grad = rows_of(c.grad_out, b, h, fold.first_query, step, fold.queries, c.V);
  const Rows dq = rows_of(c.dq, b, h, fold.first_query, step, fold.queries, c.D);
  const int64_t lse_at = (b * c.H + h) * c.N + fold.first_query;
  const Dice dice(plan, fold, b, h);
  const bool masked = c.key_mask, drop = c.threshold;
  const auto blamed = masked ? drop ? blame<E, true, true> : blame<E, true, false>
                             : drop ? blame<E, false, true> : blame<E, false, false>;
  const int P = E::PER, depth = (int)c.D / P, width = (int)c.V / P, ldq = up(depth), ldg = up(width);
  for (int t = at.i0; t < at.i1; t += BLOCK) {
    const int te = smaller(t + BLOCK, at.i1), rows = (te - t + GROUP - 1) / GROUP * GROUP;
    const int first = down(larger(at.low, fold.from(t))), end = smaller(at.high, fold.to(te - 1));
    keys.need(end);
    pack_rows<E>(q, t, rows, nullptr, ldq, w.q);
    pack_rows<E>(grad, t, rows, nullptr, ldg, w.grad);
    if (P == 2) {
      pack_summed<E>(q, t, rows, nullptr, plan.D, w.q_summed);
      pack_summed<E>(grad, t, rows, nullptr, plan.V, w.grad_summed);
    }
    for (int r = t; r < te; r += GROUP) {
      const int m = smaller(GROUP, te - r);
      Visit visit;
      const bool any = visit_of(fold, r, te, at.low, at.high, visit);
      prefetch<1>(dq, r, r + m);
      for (int d = 0; d < m * plan.D; d += VL) store(w.dq + d, vf{});
      if (any) {
        const int64_t shift = visit.first - first + SPARE;  // spare panels on each side
        float* p = P == 1 ? w.p + (r - t) * w.lds + shift : w.group_p + SPARE;
        float* s = P == 1 ? w.s + (r - t) * w.lds + shift : w.group_s + SPARE;
        score_group<E>(visit, w.q + (r - t) * ldq, ldq, w.keys + (visit.first - base) * depth, depth, p, w.lds);
        score_group<E>(visit, w.grad + (r - t) * ldg, ldg, w.values + (visit.first - base) * width, width, s, w.lds);
        for (int i = 0; i < m; i++) {
          const int row = r + i, a = larger(at.low, fold.from(row)), z = smaller(at.high, fold.to(row));
          const Row scores = {p + i * w.lds - visit.first, nullptr, w.bias - base, a, z,
                              visit.from[i / QM] - SPARE, visit.to[i / QM] + SPARE,
                              larger(a, row + fold.hole_from), smaller(z, row + fold.hole_to),
                              drop ? dice.of_row(fold.first_query + row * step + c.q_offset) : 0};
          const float lse = c.lse[lse_at + row * step], delta = c.delta[lse_at + row * step];
          const Blame with = {lse == -INF ? INF : lse * LOG2E, delta * c.scale, c.scale * LOG2E, c.scale * c.kept_scale};
          blamed(scores, s + i * w.lds - visit.first, dice, with);
        }
        for (int i = m; i < GROUP; i++)
          for (int j = visit.first - SPARE; j < visit.last + SPARE; j += VL)
            store(p + i * w.lds + j - visit.first, vf{}), store(s + i * w.lds + j - visit.first, vf{});
        for (int i = 0; P == 2 && i < GROUP; i += 2) {
          const int64_t from = visit.from[i / QM] - visit.first - SPARE, count = visit.to[i / QM] - visit.from[i / QM] + 2 * SPARE;
          const int64_t to = (r - t + i) / 2 * w.lds + shift + from;
          const float *even = p + i * w.lds + from, *odd = even + w.lds;
          pair_up(even, odd, (int)count, w.p + to, nullptr, 0);
          pair_up(s + (even - p), s + (odd - p), (int)count, w.s + to, w.row_s + i * w.ld_row + (SPARE + from) / 2, w.ld_row);
        }
        weigh_group<E>(visit, P == 1 ? s : w.row_s + SPARE / 2, P == 1 ? w.lds : w.ld_row,
                       w.key_rows + (visit.first - base) / P * plan.D, plan.D, w.dq);
      }
      if (any || !at.add_dq)
        for (int i = 0; i < m; i++) put_row(dq, r + i, w.dq + i * plan.D, 1.f, at.add_dq);
    }
    for (int k = first; k < end; k += KM) {
      const int from = larger(t, k - fold.right), y = smaller(te, smaller(k + KM, end) + fold.left);
      if (from >= y) continue;
      const int x = t + (from - t) / P, cells = (y - t + P - 1) / P - (x - t);  // a first or last half of a pair is 0
      const int64_t shift = (int64_t)(x - t) * w.lds + (k - first + SPARE), to = k - base;
      const int count = smaller(KM, up(end) - k);
      gather<E>(count, w.p + shift, w.lds, w.grad_summed + (x - t) * plan.V, plan.V, cells, w.dv + to * plan.V);
      gather<E>(count, w.s + shift, w.lds, w.q_summed + (x - t) * plan.D, plan.D, cells, w.dk + to * plan.D);
    }
    if (last) keys.release(smaller(at.high, fold.from(te)));
  }
}

template <class E> void backward_piece(const Plan& plan, const Fold& fold, const Piece& at, float* workspace) {
  const int64_t heads = plan.call.H / plan.call.G;
  Keys<E> keys(plan, fold, at, workspace);
  for (int64_t i = 0; i < heads; i++) backward_head<E>(plan, fold, at, at.g * heads + i, i == heads - 1, keys);
  keys.release(at.high);
}

}  // namespace
