// Forward of one task: a tile of queries of one head and residue class, over the keys it sees, chunk by chunk.
//
// Scores carry the factor scale * log2(e), put into the packed queries, so that weights are powers of two.  A row keeps
// (top, sum, acc): its highest score so far, the sum of 2^(score - top) and of 2^(score - top) times values; what it
// starts from is nothing, or the (out, lse) of the bands before.
#pragma once
#include "softmax.h"

namespace {

template <class E> struct ForwardSpace {
  float *keys, *values, *bias, *q, *s, *p, *acc, *top, *sum;
  float *column_keys, *column_values, *column_bias, *column_s, *column_p;
  int64_t ldk;
  ForwardSpace(const Plan& plan, Arena arena, int64_t* used = nullptr) {
    const int rows = plan.chunk ? plan.tile : LANES, span = plan.span + 2 * VL;
    const int64_t cells = smaller<int64_t>(plan.span, plan.width + LANES + 2 * VL) + 2 * VL;
    const auto weights = [&](float* s, int64_t keys) { return E::PER == 1 ? s : arena.take(keys / 2 * LANES); };
    ldk = up((int)plan.call.D / E::PER);
    keys = arena.take(span * ldk);
    values = arena.take((int64_t)span / E::PER * plan.V);
    bias = arena.take(span);
    q = arena.take(ldk * LANES);
    s = arena.take(cells * LANES);
    p = weights(s, cells);
    acc = arena.take((int64_t)rows * plan.V);
    top = arena.take(rows);
    sum = arena.take(rows);
    const int columns = plan.num_columns() ? plan.num_columns() + 2 * VL : 0;
    column_keys = arena.take(columns * ldk);
    column_values = arena.take((int64_t)columns / E::PER * plan.V);
    column_bias = arena.take(columns);
    column_s = arena.take((int64_t)columns * LANES);
    column_p = weights(column_s, columns);
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
  int64_t b, loaded;  // the start of the run whose columns are packed
  int depth;

  void load_columns_of(int i) {
    const Call& c = plan.call;
    const int64_t start = fold.start_of(i);
    if (start == loaded) return;
    loaded = start;
    Rows keys = k, values = v;
    keys.count = values.count = (int)smaller<int64_t>(fold.stop_of(i), start + c.num_first);
    const int count = plan.num_columns() + VL;
    const float* bias = c.key_mask ? at.column_bias : nullptr;
    if (bias) fill_bias(plan, mask_of(plan, fold, b) + start * c.mask_key, keys.count - (int)start, 0, count, at.column_bias);
    pack_rows<E>(keys, (int)start, count, bias, (int)at.ldk, at.column_keys);
    pack_summed<E>(values, (int)start, count, bias, plan.V, at.column_values);
  }

  // The columns of rows [r, r + rows), run by run.
  void read_columns(int r, int rows, float* top, float* sum, float* acc) {
    const Call& c = plan.call;
    for (int i = 0, j; i < rows; i = j) {
      for (j = i; j < rows && fold.start_of(r + j) == fold.start_of(r + i);) j++;
      Lanes lanes = {};
      for (int x = i; x < j; x++) {
        lanes.to[x] = fold.columns_of(r + x);
        if (c.threshold) lanes.hash[x] = dice.of_row(fold.row_at(r + x) + c.q_offset);
      }
      if (!lanes.settle()) continue;
      load_columns_of(r + i);
      Dice own = dice;
      own.first_key += (uint32_t)loaded * 0x9E3779B9u;
      score_lanes<E>(lanes, at.column_keys, at.ldk, at.q, depth, at.column_s);
      softmax.read(lanes, r, (int)loaded, at.column_s, at.column_p, c.key_mask ? at.column_bias : nullptr, own, top, sum, acc);
      weigh_lanes<E>(lanes, at.column_p, at.column_values, plan.V, acc);
    }
  }

  // What rows [r, r + rows) see of keys [low, high); false for nothing.
  bool look(int r, int rows, int low, int high, Lanes& lanes) const {
    const Call& c = plan.call;
    lanes = {};
    for (int x = 0; x < rows; x++) {
      const int i = r + x, from = larger(low, fold.from(i)), to = smaller(high, fold.to(i));
      lanes.from[x] = from, lanes.to[x] = to;
      lanes.hole_from[x] = larger(from, i + fold.hole_from), lanes.hole_to[x] = smaller(to, i + fold.hole_to);
      if (c.threshold) lanes.hash[x] = dice.of_row(fold.row_at(i) + c.q_offset);
    }
    return lanes.settle();
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
  const float* bias = c.key_mask ? at.bias : nullptr;
  const int depth = (int)c.D / E::PER;
  Reader<E> reader = {plan, fold, at, k, v, Dice(plan, fold, b, h), Softmax<E>(plan, fold, h), b, -1, depth};
  const float sink = c.sinks && plan.last ? c.sinks[h] * LOG2E : -INF;
  int low = fold.from(i0), end = fold.to(i1 - 1);
  low = plan.chunk ? low / plan.chunk * plan.chunk : down(low);
  bool first = true, last;
  do {
    const int high = plan.chunk ? smaller(end, low + plan.chunk) : end;
    int packed = low;  // keys from low on that are packed: as many as the rows so far have needed, in whole tiles of scores
    last = high >= end;
    if (bias && high > low) fill_bias(plan, mask_of(plan, fold, b), fold.keys, low, up(high + QM), at.bias);
    for (int r = i0; r < i1; r += LANES) {
      const int rows = smaller(LANES, i1 - r), state = plan.chunk ? r - i0 : 0;
      float *top = at.top + state, *sum = at.sum + state, *acc = at.acc + (int64_t)state * plan.V;
      if (first) begin_rows(plan, to, r, rows, top, sum, acc);
      Lanes lanes;
      const bool any = reader.look(r, rows, low, high, lanes), columns = first && plan.columns;
      const int needed = up(lanes.last + QM);
      if (any && packed < needed) {
        const int count = needed - packed;
        const float* kept = bias ? bias + (packed - low) : nullptr;
        pack_rows<E>(k, packed, count, kept, (int)at.ldk, at.keys + (packed - low) * at.ldk);
        pack_summed<E>(v, packed, count, kept, plan.V, at.values + (int64_t)(packed - low) / E::PER * plan.V);
        packed = needed;
      }
      if (any || columns) {
        pack_panels<E>(q, r, PANELS, nullptr, c.scale * LOG2E, at.q);
        if (last) prefetch<1>(to.out, r, r + rows);
        if (columns) reader.read_columns(r, rows, top, sum, acc);
        if (any) {
          const int64_t from = lanes.first - low;
          score_lanes<E>(lanes, at.keys + from * at.ldk, at.ldk, at.q, depth, at.s);
          reader.softmax.read(lanes, r, 0, at.s, at.p, bias ? bias - low : nullptr, reader.dice, top, sum, acc);
          weigh_lanes<E>(lanes, at.p, at.values + from / E::PER * plan.V, plan.V, acc);
        }
      }
      if (!last) continue;
      alignas(64) float sinks[LANES];
      for (int i = 0; i < LANES; i++) {
        const bool without = i >= rows || sink == -INF || fold.is_absent(r + i) || fold.is_global(r + i);
        sinks[i] = without ? -INF : sink;
      }
      end_rows(plan, to, r, rows, top, sum, acc, sinks);
    }
    first = false;
    low = high;
  } while (!last);
}

}  // namespace
