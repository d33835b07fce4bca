// The backward of a task, head by head: the band's keys, and the columns of the runs.
#pragma once
#include "backward.h"

namespace {

template <class E> using Blamed = void (*)(const Row&, float*, const Dice&, const Blame&);

// One head of a piece.
template <class E> struct Head {
  const Plan& plan;
  const Fold& fold;
  const Piece& at;
  Keys<E>& keys;
  const int64_t h;
  const BackwardSpace<E>& w;
  const Rows q, grad, dq;
  const int64_t lse_at, number;  // number: of this head in its group
  Dice dice;
  Blamed<E> blamed;
  Bend bend;
  int64_t loaded = -1;
  static const int P = E::PER;
  const int depth, width, ldq, ldg;

  Head(const Plan& p, const Fold& f, const Piece& piece, int64_t head, Keys<E>& k)
      : plan(p), fold(f), at(piece), keys(k), h(head), w(k.w),
        q(rows_of(p.call.q, at.b, h, f.first_query, p.band.step, f.queries, p.call.D)),
        grad(rows_of(p.call.grad_out, at.b, h, f.first_query, p.band.step, f.queries, p.call.V)),
        dq(rows_of(p.call.dq, at.b, h, f.first_query, p.band.step, f.queries, p.call.D)),
        lse_at((at.b * p.call.H + h) * p.call.N), number(h % (p.call.H / p.call.G)), dice(p, f, at.b, h),
        bend(bend_of<E>(p, f, h)), depth((int)p.call.D / P), width((int)p.call.V / P), ldq(up(depth)), ldg(up(width)) {
    const bool masked = p.call.key_mask, drop = p.call.threshold;
    blamed = masked ? drop ? blame<E, true, true> : blame<E, true, false>
                    : drop ? blame<E, false, true> : blame<E, false, false>;
  }

  // Scores and grad.v of row i become P and S; row.s and s are indexed by key, `shift` of them before key 0 of the class.
  void blame_row(Row row, float* s, int i, int shift, float* bias_grads) {
    const int64_t place = lse_at + fold.row_at(i);
    const Blame with = blame_of(plan, plan.call.lse[place], plan.call.delta[place]);
    if (plan.call.threshold) row.hash = dice.of_row(fold.row_at(i) + plan.call.q_offset);
    float* slope = w.slope - down(row.from);
    if (plan.bent()) bend_row(row.s, row.from, row.to, bend, i - shift, slope);
    blamed(row, s, dice, with);
    if (plan.bent()) unbend_row(s, row.from, row.to, bend, plan.call.scale, slope, bias_grads);
  }

  void clear_row(float* p, float* s, int from, int to) {
    for (int j = from; j < to; j += VL) store(p + j, vf{}), store(s + j, vf{});
  }

  // The band's part of rows [r, r + m) of a block that begins at t: P and S to where the sums over queries read them; dq.
  void read_band(int t, int r, int m, int first, const Visit& visit) {
    const int64_t shift = visit.first - first + SPARE;  // spare panels on each side
    float* p = P == 1 ? w.p + (r - t) * w.lds + shift : w.group_p + SPARE;
    float* s = P == 1 ? w.s + (r - t) * w.lds + shift : w.group_s + SPARE;
    const int base = keys.base;
    score_group<E>(visit, w.q + (r - t) * ldq, ldq, w.keys + (int64_t)(visit.first - base) * depth, depth, p, w.lds);
    score_group<E>(visit, w.grad + (r - t) * ldg, ldg, w.values + (int64_t)(visit.first - base) * width, width, s, w.lds);
    float* bias_grads = plan.band.bias_grad ? at.slot.band(number) + at.bias_shift : nullptr;
    for (int i = 0; i < m; i++) {
      const int row = r + i, a = larger(at.low, fold.from(row)), z = smaller(at.high, fold.to(row));
      const Row scores = {p + i * w.lds - visit.first, w.bias - base, a, z,
                          visit.from[i / QM] - SPARE, visit.to[i / QM] + SPARE,
                          larger(a, row + fold.hole_from), smaller(z, row + fold.hole_to), 0};
      blame_row(scores, s + i * w.lds - visit.first, row, 0, bias_grads ? bias_grads - row : nullptr);
    }
    for (int i = m; i < GROUP; i++)
      clear_row(p + i * w.lds, s + i * w.lds, -SPARE, visit.last - visit.first + SPARE);
    for (int i = 0; P == 2 && i < GROUP; i += 2) {
      const int64_t from = visit.from[i / QM] - visit.first - SPARE, count = visit.to[i / QM] - visit.from[i / QM] + 2 * SPARE;
      const int64_t to = (r - t + i) / 2 * w.lds + shift + from, in = i * w.lds + from;
      pair_up(p + in, p + in + w.lds, (int)count, w.p + to, nullptr, 0);
      pair_up(s + in, s + in + w.lds, (int)count, w.s + to, w.row_s + i * w.ld_row + (SPARE + from) / 2, w.ld_row);
    }
    weigh_group<E>(visit, P == 1 ? s : w.row_s + SPARE / 2, P == 1 ? w.lds : w.ld_row,
                   w.key_rows + (int64_t)(visit.first - base) / P * plan.D, plan.D, w.dq);
  }

  // The sums over the queries [t, te) of a block, for keys [first, end).
  void gather_block(int t, int te, int first, int end) {
    const int low = larger(at.low, fold.from(t));  // no row sees keys below it
    for (int k = first; k < end; k += KM) {
      const int next = smaller(k + KM, end), from = larger(t, fold.rows_from(larger(k, low))), y = smaller(te, fold.rows_to(next));
      if (from >= y) continue;
      const int x = t + (from - t) / P, cells = (y - t + P - 1) / P - (x - t);  // a first or last half of a pair is 0
      const int64_t shift = (int64_t)(x - t) * w.lds + (k - first + SPARE), to = k - keys.base;
      const int count = smaller(KM, up(end) - k);
      gather<E>(count, w.p + shift, w.lds, w.grad_summed + (x - t) * plan.V, plan.V, cells, w.dv + to * plan.V);
      gather<E>(count, w.s + shift, w.lds, w.q_summed + (x - t) * plan.D, plan.D, cells, w.dk + to * plan.D);
    }
  }

  // The gradients of the packed columns: to where they belong if their run begins in this tile, else into the slot.
  void put_columns() {
    if (loaded < 0) return;
    const Call& c = plan.call;
    const int64_t begin = fold.starts ? loaded : -1;
    const bool own = fold.starts && begin >= fold.row_at(at.i0);
    const int count = (int)smaller<int64_t>(c.num_first, (fold.stops ? fold.stops[loaded] : c.M) - loaded);
    for (int j = 0; j < count; j++) {
      const float *dk = w.column_dk + (int64_t)j * plan.D, *dv = w.column_dv + (int64_t)j * plan.V;
      if (own) {
        put_row(c, keys.dk, (int)loaded + j, dk, 1.f, number > 0);
        put_row(c, keys.dv, (int)loaded + j, dv, c.kept_scale, number > 0);
        continue;
      }
      for (int d = 0; d < plan.D; d += VL) store(at.slot.dk(j) + d, load(at.slot.dk(j) + d) + load(dk + d));
      for (int d = 0; d < plan.V; d += VL) store(at.slot.dv(j) + d, load(at.slot.dv(j) + d) + load(dv + d) * c.kept_scale);
    }
    loaded = -1;
  }

  void load_columns_of(int i) {
    const int64_t start = fold.start_of(i);
    if (start == loaded) return;
    put_columns();
    loaded = start;
    const Call& c = plan.call;
    const int columns = plan.num_columns();
    Rows k = keys.k, v = keys.v;
    k.count = v.count = (int)smaller<int64_t>(fold.stop_of(i), start + c.num_first);
    const float* bias = c.key_mask ? w.column_bias : nullptr;
    if (bias) fill_bias(plan, mask_of(plan, fold, at.b) + start * c.mask_key, k.count - (int)start, 0, columns, w.column_bias);
    pack_panels<E>(k, (int)start, columns / VL, bias, c.scale * LOG2E, w.column_keys);
    pack_panels<E>(v, (int)start, columns / VL, bias, (plan.bent() ? 1.f : c.scale) * c.kept_scale, w.column_values);
    pack_summed<E>(k, (int)start, columns, bias, plan.D, w.column_rows);
    memset(w.column_dk, 0, sizeof(float) * (columns + KM) * plan.D);
    memset(w.column_dv, 0, sizeof(float) * (columns + KM) * plan.V);
  }

  // The columns of rows [r, r + m) of a block that begins at t, run by run.
  void read_columns(int t, int r, int m) {
    const Dice all = dice;
    for (int i = 0, j; i < m; i = j) {
      int most = 0;
      for (j = i; j < m && fold.start_of(r + j) == fold.start_of(r + i); j++) most = larger(most, fold.columns_of(r + j));
      if (fold.is_absent(r + i)) continue;
      load_columns_of(r + i);
      if (most) read_run(t, r, i, j, most);
      dice = all;
    }
  }

  void read_run(int t, int r, int i, int j, int most) {
    const int lds = (int)w.column_lds, panels = up(most);
    Visit visit;
    visit.first = 0, visit.last = panels;
    for (int sub = 0; sub < SUBS; sub++) visit.from[sub] = 0, visit.to[sub] = i < (sub + 1) * QM && j > sub * QM ? panels : 0;
    score_group<E>(visit, w.q + (r - t) * ldq, ldq, w.column_keys, depth, w.column_p, lds);
    score_group<E>(visit, w.grad + (r - t) * ldg, ldg, w.column_values, width, w.column_s, lds);
    dice.first_key += (uint32_t)loaded * 0x9E3779B9u;
    float* grads = nullptr;
    if (plan.band.bias_grad) {
      const bool own = fold.starts && loaded >= fold.row_at(at.i0);
      // column c of row x: own[tile - 1 - (x - start) + c], incoming[tile - 1 - (x - i0) + c]
      grads = own ? at.slot.own(number) + loaded : at.slot.incoming(number) + at.i0;
      grads += plan.tile - 1;
    }
    for (int x = 0; x < GROUP; x++) {
      float *p = w.column_p + x * lds, *s = w.column_s + x * lds;
      if (x < i || x >= j) {
        clear_row(p, s, 0, panels);
        continue;
      }
      const Row row = {p, w.column_bias, 0, fold.columns_of(r + x), 0, panels, 0, 0, 0};
      blame_row(row, s, r + x, (int)loaded, grads ? grads - (r + x) : nullptr);
    }
    for (int x = 0; P == 2 && x < GROUP; x += 2) {
      pair_up(w.column_p + x * lds, w.column_p + (x + 1) * lds, panels, w.column_pairs_p + x / 2 * lds, nullptr, 0);
      pair_up(w.column_s + x * lds, w.column_s + (x + 1) * lds, panels, w.column_pairs_s + x / 2 * lds,
              w.column_row_s + x * w.column_ld_row, w.column_ld_row);
    }
    visit.last = (most + P - 1) / P * P;
    for (int sub = 0; sub < SUBS; sub++) visit.to[sub] = smaller(visit.to[sub], visit.last);
    weigh_group<E>(visit, w.column_row_s, w.column_ld_row, w.column_rows, plan.D, w.dq);
    for (int k = 0; k < most; k += KM) {
      const int count = smaller(KM, (most - k + 1) & ~1);
      gather<E>(count, w.column_pairs_p + k, lds, w.grad_summed + (r - t) / P * plan.V, plan.V, GROUP / P,
                w.column_dv + (int64_t)k * plan.V);
      gather<E>(count, w.column_pairs_s + k, lds, w.q_summed + (r - t) / P * plan.D, plan.D, GROUP / P,
                w.column_dk + (int64_t)k * plan.D);
    }
  }

  void differentiate(bool last) {
    const Call& c = plan.call;
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
      if (fold.starts || fold.num_global)  // rows without keys lie among others and are not written
        memset(w.p, 0, sizeof(float) * BLOCK / P * w.lds), memset(w.s, 0, sizeof(float) * BLOCK / P * w.lds);
      for (int r = t; r < te; r += GROUP) {
        const int m = smaller(GROUP, te - r);
        Visit visit;
        const bool any = visit_of(fold, r, te, at.low, at.high, visit);
        prefetch<1>(dq, r, r + m);
        for (int d = 0; d < m * plan.D; d += VL) store(w.dq + d, vf{});
        if (at.columns) read_columns(t, r, m);
        if (any) read_band(t, r, m, first, visit);
        if (any || at.columns || !at.add_dq)
          for (int i = 0; i < m; i++) put_row(c, dq, r + i, w.dq + i * plan.D, 1.f, at.add_dq);
      }
      gather_block(t, te, first, end);
      if (last) keys.release(te < at.i1 ? smaller(at.high, fold.from(te)) : at.high);
    }
    if (at.columns) put_columns();
  }
};

template <class E> void backward_piece(const Plan& plan, const Fold& fold, const Piece& at, float* workspace) {
  const int64_t heads = plan.call.H / plan.call.G;
  Keys<E> keys(plan, fold, at, workspace);
  for (int64_t i = 0; i < heads; i++) Head<E>(plan, fold, at, at.g * heads + i, keys).differentiate(i == heads - 1);
  keys.release(at.high);
}

}  // namespace
