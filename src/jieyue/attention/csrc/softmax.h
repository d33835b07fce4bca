// The softmax of a group of rows: scores become weights, and each row's (top, sum, acc) goes on.
#pragma once
#include "logits.h"

namespace {

struct Row {          // what one row of scores needs; s, p, bias are indexed by key
  float *s, *p;       // the scores; where their weights go: to s itself, or as bfloat16 to p
  const float* bias;
  int from, to, low, high;  // keys that it sees; panels that are read of it afterwards
  int hole_from, hole_to;
  uint32_t hash;
};

template <class E> inline void put_weights(const Row& row, int j, vf x) {
  if (E::PER == 1)
    store(row.s + j, x);
  else
    store_any((bf16*)row.p + j, x);
}

template <class E> inline void clear_weights(const Row& row, int from, int to) {
  for (int j = from; j < to; j += VL) put_weights<E>(row, j, vf{});
}

// The highest score of a row, times `factor` where scores are not made of scaled keys, minus infinity where there is none
// or all are NaN.  Keys that the row does not see become minus infinity, those of masked ones too.
template <class E, bool MASK> float peak(const Row& row, float factor) {
  if (row.from >= row.to) return -INF;
  float* s = row.s;
  const int from = down(row.from), to = up(row.to);
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
      high = highest(x, high);
    }
  for (; j + 2 * VL <= to; j += 2 * VL) high = highest(load(s + j), high), high2 = highest(load(s + j + VL), high2);
  for (; j < to; j += VL) high = highest(load(s + j), high);
  const float found = highest_of(highest(high, high2));
  return E::PER == 1 ? found : found * factor;
}

// Turns scores, times `factor`, into weights 2^(score - top), 0 outside the row's keys; returns their sum.
template <class E, bool DROP> float soften(const Row& row, const Dice& dice, float factor, float top) {
  if (row.from >= row.to) return clear_weights<E>(row, row.low, row.high), 0.f;
  const float* s = row.s;
  const int from = down(row.from), to = up(row.to);
  clear_weights<E>(row, row.low, from);
  clear_weights<E>(row, to, row.high);
  const vf c = all(factor), t = all(top);
  const auto weight = [&](int j) { return exp2_of(E::PER == 1 ? load(s + j) - t : load(s + j) * c - t); };
  const auto put = [&](int j, vf e) { put_weights<E>(row, j, DROP ? dice.kept(row.hash, j) ? e : vf{} : e); };
  vf total = {}, total2 = {};
  int j = from;
  for (; j + 2 * VL <= to; j += 2 * VL) {
    const vf e = weight(j), f = weight(j + VL);
    total += e, total2 += f;
    put(j, e), put(j + VL, f);
  }
  for (; j < to; j += VL) {
    const vf e = weight(j);
    total += e;
    put(j, e);
  }
  return sum_of(total + total2);
}

template <class E> struct Softmax {
  float (*peak)(const Row&, float);
  float (*soften)(const Row&, const Dice&, float, float);
  float factor;

  Softmax(const Plan& plan) : factor(E::PER == 2 && !plan.bent() ? plan.call.scale * LOG2E : 1.f) {
    peak = plan.call.key_mask ? ::peak<E, true> : ::peak<E, false>;
    soften = plan.call.threshold ? ::soften<E, true> : ::soften<E, false>;
  }

  // Rows [i, j) of a group; steps ahead once a row.
  void read(const Row* rows, int i, int j, const Dice& dice, float* top, float* sum, float* acc, int V, Ahead& ahead) const {
    alignas(64) float high[GROUP], base[GROUP], fade[GROUP];
    for (int x = 0; x < GROUP; x++) high[x] = x >= i && x < j ? peak(rows[x], factor) : -INF;
    for (int x = 0; x < GROUP; x += VL) {
      const vf before = load(top + x), now = highest(load(high + x), before), from = now == -INF ? vf{} : now;
      store(top + x, now);
      store(base + x, from);
      store(fade + x, before == now ? all(1.f) : exp2_of(before - from));
    }
    for (int x = i; x < j; x++) {
      if (fade[x] != 1.f && sum[x] != 0.f)
        for (int d = 0; d < V; d += VL) store(acc + x * V + d, load(acc + x * V + d) * fade[x]);
      sum[x] = sum[x] * fade[x] + soften(rows[x], dice, factor, base[x]);
      ahead.step();
    }
  }
};

struct Outputs {  // of one head and class
  Rows out;
  float* lse;
  int64_t lse_stride;
};

// The first `rows` rows of a group from row i on: nothing yet, or what earlier bands have found.
inline void begin_rows(const Plan& plan, const Outputs& to, int i, int rows, float* top, float* sum, float* acc) {
  for (int x = 0; x < GROUP; x++) {
    const float lse = plan.accumulate && x < rows ? to.lse[(i + x) * to.lse_stride] : -INF;
    top[x] = lse * LOG2E, sum[x] = lse == -INF ? 0.f : 1.f;
  }
  const float back = 1.f / plan.call.kept_scale;
  for (int x = 0; x < rows; x++)
    for (int d = 0; d < plan.V; d += VL) store(acc + x * plan.V + d, sum[x] == 0.f ? vf{} : to.out.get(i + x, d) * back);
}

// `sink` is one more score of a row, times log2 e, or minus infinity.
inline void end_rows(const Plan& plan, const Outputs& to, int i, int rows, const float* top, const float* sum, const float* acc,
                     const float* sinks) {
  alignas(64) float share[GROUP], lse[GROUP];
  for (int x = 0; x < GROUP; x += VL) {
    vf t = load(top + x), s = load(sum + x), fade = all(1.f);
    if (sinks) {
      const vf sink = load(sinks + x), now = highest(sink, t);
      const vi without = sink == -INF;
      fade = without ? fade : s == 0.f ? vf{} : exp2_of(t - now);
      s = without ? s : s * fade + exp2_of(sink - now);
      t = without ? t : now;
    }
    store(share + x, s == 0.f ? vf{} : fade * plan.call.kept_scale / s);
    store(lse + x, s == 0.f ? all(-INF) : (t + log2_of(s)) * LN2);
  }
  const bool watched = plan.call.nonfinite;
  vf odd = {};
  for (int x = 0; x < rows; x++) {
    for (int d = 0; d < plan.V; d += VL) {
      const vf y = load(acc + x * plan.V + d) * share[x];
      if (watched) odd += y * 0.f;
      to.out.put(i + x, d, y);
    }
    to.lse[(i + x) * to.lse_stride] = lse[x];
  }
  if (watched && sum_of(odd) != 0.f) *plan.call.nonfinite = 1;
}

}  // namespace
