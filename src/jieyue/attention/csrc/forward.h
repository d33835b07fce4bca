// Forward of one task: a tile of queries of one head and residue class, over the keys it sees, chunk by chunk.
//
// Scores carry the factor scale * log2(e), put into the packed keys, so that weights are powers of two.  A row keeps
// (top, sum, acc): its highest score so far, the sum of 2^(score - top) and of 2^(score - top) times values; what it
// starts from is nothing, or the (out, lse) of the bands before.
#pragma once
#include "softmax.h"

namespace {

template <class E> struct ForwardSpace {
  float *keys, *values, *bias, *q, *s, *p, *acc, *top, *sum;
  float *column_keys, *column_values, *column_bias, *column_s, *column_p;
  int64_t lds, ldp, column_lds, column_ldp;
  ForwardSpace(const Plan& plan, Arena arena, int64_t* used = nullptr) {
    const int rows = plan.chunk ? plan.tile : GROUP;
    const int64_t cells = smaller<int64_t>(plan.span, plan.width + GROUP + 2 * VL);
    lds = odd_lines(cells), ldp = E::PER == 1 ? lds : odd_lines(cells / 2);
    keys = arena.take((int64_t)plan.span * plan.call.D / E::PER);
    values = arena.take((int64_t)plan.span / E::PER * plan.V);
    bias = arena.take(plan.span);
    q = arena.take(GROUP * plan.D);
    s = arena.take(GROUP * lds);
    p = E::PER == 1 ? s : arena.take(GROUP * ldp);
    acc = arena.take((int64_t)rows * plan.V);
    top = arena.take(rows);
    sum = arena.take(rows);
    const int columns = plan.num_columns();
    column_lds = odd_lines(columns), column_ldp = E::PER == 1 ? column_lds : odd_lines(columns / 2);
    column_keys = arena.take((int64_t)columns * plan.call.D / E::PER);
    column_values = arena.take((int64_t)columns / E::PER * plan.V);
    column_bias = arena.take(columns);
    column_s = arena.take(columns ? GROUP * column_lds : 0);
    column_p = E::PER == 1 ? column_s : arena.take(columns ? GROUP * column_ldp : 0);
    if (used) *used = arena.used;
  }
};

// What a tile's rows need beside their own state.
template <class E> struct Reader {
  const Plan& plan;
  const Fold& fold;
  const ForwardSpace<E>& at;
  Rows k, v;
  Dice dice;
  Softmax<E> softmax;
  Bend bend;
  int64_t b, loaded;  // the start of the run whose columns are packed
  int depth;

  void load_columns_of(int i) {
    const Call& c = plan.call;
    const int64_t start = fold.start_of(i);
    if (start == loaded) return;
    loaded = start;
    Rows keys = k, values = v;
    keys.count = values.count = (int)smaller<int64_t>(fold.stop_of(i), start + c.num_first);
    const float* bias = c.key_mask ? at.column_bias : nullptr;
    if (bias) fill_bias(plan, mask_of(plan, fold, b) + start * c.mask_key, keys.count - (int)start, 0, plan.num_columns(), at.column_bias);
    pack_panels<E>(keys, (int)start, plan.num_columns() / VL, bias, c.scale * LOG2E, at.column_keys);
    pack_summed<E>(values, (int)start, plan.num_columns(), bias, plan.V, at.column_values);
  }

  // The columns of rows [r, r + rows), run by run; their queries lie at q.
  void read_columns(int r, int rows, const float* q, int64_t ldq, float* top, float* sum, float* acc, Ahead& ahead) {
    const Call& c = plan.call;
    const Dice all = dice;
    for (int i = 0, j; i < rows; i = j) {
      int most = 0;
      for (j = i; j < rows && fold.start_of(r + j) == fold.start_of(r + i); j++) most = larger(most, fold.columns_of(r + j));
      if (!most) continue;
      load_columns_of(r + i);
      Visit visit;
      visit.first = 0, visit.last = up(most);
      for (int sub = 0; sub < SUBS; sub++) {
        const bool in = i < (sub + 1) * QM && j > sub * QM;
        visit.from[sub] = 0, visit.to[sub] = in ? up(most) : 0;
      }
      score_group<E>(visit, q, ldq, at.column_keys, depth, at.column_s, at.column_lds, ahead);
      dice.first_key = all.first_key + (uint32_t)loaded * 0x9E3779B9u;
      Row row[GROUP];
      for (int x = 0; x < GROUP; x++) {
        const bool mine = x >= i && x < j;
        row[x] = {at.column_s + x * at.column_lds, at.column_p + x * at.column_ldp, at.column_bias,
                  0, mine ? fold.columns_of(r + x) : 0, 0, up(most), 0, 0,
                  mine && c.threshold ? dice.of_row(fold.row_at(r + x) + c.q_offset) : 0};
        if (mine && plan.bent())
          bend_row(row[x].s, 0, row[x].to, bend, r + x - (int)loaded);
        else if (!mine && visit.to[x / QM])
          clear_weights<E>(row[x], 0, up(most));
      }
      softmax.read(row, i, j, dice, top, sum, acc, plan.V, ahead);
      dice = all;
      for (int t = 0; t < GROUP / PM; t++) {
        const bool in = i < (t + 1) * PM && j > t * PM;
        visit.low[t] = 0, visit.high[t] = in ? (most + 1) & -2 : 0;
      }
      weigh_group<E>(visit, at.column_p, at.column_ldp, at.column_values, plan.V, acc, ahead);
    }
  }
};

template <class E>
void forward_tile(const Plan& plan, const Fold& fold, int64_t b, int64_t h, int i0, int i1, float* workspace) {
  const ForwardSpace<E> at(plan, Arena{workspace});
  const Call& c = plan.call;
  const int64_t step = plan.band.step, g = h / (c.H / c.G);
  const Rows q = rows_of(c.q, b, h, fold.first_query, step, fold.queries, c.D);
  const Rows k = rows_of(c.k, b, g, fold.first_key, step, fold.keys, c.D);
  const Rows v = rows_of(c.v, b, g, fold.first_key, step, fold.keys, c.V);
  const Outputs to = {rows_of(c.out, b, h, fold.first_query, step, fold.queries, c.V),
                      c.lse + (b * c.H + h) * c.N + fold.first_query, step};
  const bool masked = c.key_mask;
  const float* bias = masked ? at.bias : nullptr;
  const int depth = (int)c.D / E::PER, ldq = up(depth);
  Reader<E> reader = {plan, fold, at, k, v, Dice(plan, fold, b, h), Softmax<E>(plan), bend_of<E>(plan, fold, h), b, -1, depth};
  const float sink = c.sinks && plan.last ? c.sinks[h] * LOG2E : -INF;
  int low = fold.from(i0), end = fold.to(i1 - 1);
  low = plan.chunk ? low / plan.chunk * plan.chunk : down(low);
  bool first = true, last;
  do {
    const int high = plan.chunk ? smaller(end, low + plan.chunk) : end;
    int packed = low;  // keys from low on that are packed: as many as the rows so far have needed
    last = high >= end;
    if (masked && high > low) fill_bias(plan, mask_of(plan, fold, b), fold.keys, low, up(high), at.bias);
    for (int r = i0; r < i1; r += GROUP) {
      const int rows = smaller(GROUP, i1 - r), state = plan.chunk ? r - i0 : 0;
      float *top = at.top + state, *sum = at.sum + state, *acc = at.acc + (int64_t)state * plan.V;
      if (first) begin_rows(plan, to, r, rows, top, sum, acc);
      Visit visit;
      const bool any = visit_of(fold, r, i1, low, high, visit), columns = first && plan.columns;
      if (any && packed < visit.last) {
        const int count = visit.last - packed;
        const float* kept = bias ? bias + (packed - low) : nullptr;
        pack_panels<E>(k, packed, count / VL, kept, c.scale * LOG2E, at.keys + (int64_t)(packed - low) * depth);
        pack_summed<E>(v, packed, count, kept, plan.V, at.values + (int64_t)(packed - low) / E::PER * plan.V);
        packed = visit.last;
      }
      if (any || columns) {
        // whole groups of whole vectors are read where they lie
        const bool in_place = rows == GROUP && ldq == depth && q.half == (E::PER == 2) && q.stride % 4 == 0;
        if (!in_place) pack_rows<E>(q, r, GROUP, nullptr, ldq, at.q);
        Ahead ahead;
        if (r + GROUP < i1) {
          ahead.add(q, r + GROUP, r + 2 * GROUP);
          if (first && plan.accumulate) ahead.add(to.out, r + GROUP, r + 2 * GROUP);
          const int next = smaller(high, fold.to(smaller(i1, r + 2 * GROUP) - 1));
          ahead.add(k, packed, up(next)), ahead.add(v, packed, up(next));
        }
        if (last && !(first && plan.accumulate)) ahead.add(to.out, r, r + GROUP);
        ahead.share_among((any ? steps_of(visit, plan.V) : 0) + rows);
        const float* queries = in_place ? q.floats(r) : at.q;
        const int64_t ld = in_place ? q.stride / 4 : ldq;
        if (columns) reader.read_columns(r, rows, queries, ld, top, sum, acc, ahead);
        if (any) {
          score_group<E>(visit, queries, ld, at.keys + (int64_t)(visit.first - low) * depth, depth, at.s, at.lds, ahead);
          Row row[GROUP];
          for (int i = 0; i < rows; i++) {
            const int x = r + i, a = larger(low, fold.from(x)), z = smaller(high, fold.to(x));
            row[i] = {at.s + i * at.lds - visit.first, at.p + i * at.ldp - visit.first / E::PER, at.bias - low,
                      a, z, visit.from[i / QM], visit.to[i / QM], larger(a, x + fold.hole_from), smaller(z, x + fold.hole_to),
                      c.threshold ? reader.dice.of_row(fold.row_at(x) + c.q_offset) : 0};
            if (plan.bent()) bend_row(row[i].s, a, z, reader.bend, x);
          }
          reader.softmax.read(row, 0, rows, reader.dice, top, sum, acc, plan.V, ahead);
          weigh_group<E>(visit, at.p, at.ldp, at.values + (int64_t)(visit.first - low) / E::PER * plan.V, plan.V, acc, ahead);
        }
      }
      if (!last) continue;
      alignas(64) float sinks[GROUP];
      for (int i = 0; i < GROUP; i++) {
        const bool without = i >= rows || fold.is_absent(r + i) || fold.is_global(r + i);
        sinks[i] = without ? -INF : sink;
      }
      end_rows(plan, to, r, rows, top, sum, acc, sink == -INF ? nullptr : sinks);
    }
    first = false;
    low = high;
  } while (!last);
}

}  // namespace
