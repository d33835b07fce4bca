// Forward of one task: a tile of queries of one head and residue class, over the keys it sees, chunk by chunk.
//
// Scores carry the factor scale * log2(e), put into the packed keys, so that weights are powers of two.  A row keeps
// (top, sum, acc): its highest score so far, the sum of 2^(score - top) and of 2^(score - top) times values; what it
// starts from is nothing, or the (out, lse) of the bands before.
#pragma once
#include "logits.h"

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

// The highest of scores [from, to), whole panels, that no finite number is: NaN where there is one, else as it was found.
inline float highest_not_finite(const float* s, int from, int to, float found) {
  for (int j = from; j < to; j++)
    if (s[j] != s[j]) return s[j];
  return found;
}

// Turns scores, times `factor` where they are not made of scaled keys, into weights 2^(s - top), 0 outside the row's keys,
// and updates its state.  A NaN score makes the sum NaN, and the top too where no other score is finite.
template <class E, bool MASK, bool DROP>
void soften(const Row& row, const Dice& dice, float factor, float& top, float& sum, float* acc, int V) {
  float* s = row.s;
  if (row.from >= row.to) return clear_weights<E>(row, row.low, row.high);
  const int from = down(row.from), to = up(row.to);
  clear_weights<E>(row, row.low, from);
  clear_weights<E>(row, to, row.high);
  const vf c = all(factor);
  const vf none = all(-INF);
  store(s + from, within(from, row.from, row.to) ? load(s + from) : none);
  store(s + to - VL, within(to - VL, row.from, row.to) ? load(s + to - VL) : none);
  for (int j = down(row.hole_from); j < row.hole_to; j += VL)
    store(s + j, within(j, row.hole_from, row.hole_to) ? none : load(s + j));
  vf high = none, high2 = none;
  int j = from;
  const auto score = [&](int at) { return E::PER == 1 ? load(s + at) : load(s + at) * c; };
  if (MASK)
    for (; j < to; j += VL) {
      const vf x = load(row.bias + j) < 0.f ? none : load(s + j);  // a sum would keep NaN
      store(s + j, x);
      high = highest(E::PER == 1 ? x : x * c, high);
    }
  for (; j + 2 * VL <= to; j += 2 * VL) high = highest(score(j), high), high2 = highest(score(j + VL), high2);
  for (; j < to; j += VL) high = highest(score(j), high);
  const float before = top;
  float now = larger(before, highest_of(highest(high, high2)));
  if (now - now != 0.f) now = highest_not_finite(s, from, to, now);
  if (now == -INF) return clear_weights<E>(row, from, to);
  const vf t = all(now);
  vf total = {}, total2 = {};
  for (j = from; j + 2 * VL <= to; j += 2 * VL) {
    const vf e = exp2_of(score(j) - t), f = exp2_of(score(j + VL) - t);
    total += e, total2 += f;
    put_weights<E>(row, j, DROP ? dice.kept(row.hash, j) ? e : vf{} : e);
    put_weights<E>(row, j + VL, DROP ? dice.kept(row.hash, j + VL) ? f : vf{} : f);
  }
  for (; j < to; j += VL) {
    const vf e = exp2_of(score(j) - t);
    total += e;
    put_weights<E>(row, j, DROP ? dice.kept(row.hash, j) ? e : vf{} : e);
  }
  const float fade = exp2_of(before - now);
  if (fade != 1.f && before != -INF)
    for (int d = 0; d < V; d += VL) store(acc + d, load(acc + d) * fade);
  sum = sum * fade + sum_of(total + total2);
  top = now;
}

struct Outputs {  // of one head and class
  Rows out;
  float* lse;
  int64_t lse_stride;
};

inline void begin_row(const Plan& plan, const Outputs& to, int i, float& top, float& sum, float* acc) {
  const float lse = plan.accumulate ? to.lse[i * to.lse_stride] : -INF;
  top = lse * LOG2E;
  sum = lse == -INF ? 0.f : 1.f;
  const float back = 1.f / plan.call.kept_scale;
  for (int d = 0; d < plan.V; d += VL) store(acc + d, lse == -INF ? vf{} : to.out.get(i, d) * back);
}

// `sink` is one more score, times log2 e, or minus infinity.
inline void end_row(const Plan& plan, const Outputs& to, int i, float top, float sum, const float* acc, float sink) {
  const bool infinite = top == INF && sink == sink;  // then sum is NaN
  float fade = 1;
  if (sink != -INF) {
    const float now = larger(top, sink);
    fade = sum == 0.f ? 0.f : exp2_of(top - now);
    sum = sum * fade + (sink == now ? 1.f : exp2_of(sink - now));  // both may be infinite
    top = now;
  }
  const float share = sum == 0.f ? 0.f : plan.call.kept_scale * fade / sum;
  const bool watched = plan.call.nonfinite;
  vf odd = {};
  for (int d = 0; d < plan.V; d += VL) {
    const vf y = load(acc + d) * share;
    if (watched) odd += y * 0.f;
    to.out.put(i, d, y);
  }
  if (watched && sum_of(odd) != 0.f) *plan.call.nonfinite = 1;
  to.lse[i * to.lse_stride] = sum == 0.f ? -INF : infinite ? INF : (top + log2_of(sum)) * LN2;
}

template <class E> using Weights = void (*)(const Row&, const Dice&, float, float&, float&, float*, int);

// What a tile's rows need beside their own state.
template <class E> struct Reader {
  const Plan& plan;
  const Fold& fold;
  const ForwardSpace<E>& at;
  Rows k, v;
  Dice dice;
  Weights<E> weights;
  Bend bend;
  int64_t b, loaded;  // the start of the run whose columns are packed
  int depth;

  // Turns the scores of one row into weights: from and to are its keys in s, `shift` of them before key 0 of the class.
  void read_row(Row row, int i, int shift, float& top, float& sum, float* acc) {
    if (plan.bent()) bend_row(row.s, row.from, row.to, bend, i - shift);
    weights(row, dice, E::PER == 2 && !plan.bent() ? plan.call.scale * LOG2E : 1.f, top, sum, acc, plan.V);
  }

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
  void read_columns(int r, int rows, const float* q, int64_t ldq, float* top, float* sum, float* acc) {
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
      score_group<E>(visit, q, ldq, at.column_keys, depth, at.column_s, at.column_lds);
      dice.first_key = all.first_key + (uint32_t)loaded * 0x9E3779B9u;
      for (int x = 0; x < GROUP; x++) {
        const bool mine = x >= i && x < j;
        const Row row = {at.column_s + x * at.column_lds, at.column_p + x * at.column_ldp, at.column_bias,
                         0, mine ? fold.columns_of(r + x) : 0, 0, up(most), 0, 0,
                         mine && c.threshold ? dice.of_row(fold.row_at(r + x) + c.q_offset) : 0};
        if (mine)
          read_row(row, r + x, (int)loaded, top[x], sum[x], acc + x * plan.V);
        else if (visit.to[x / QM])
          clear_weights<E>(row, 0, up(most));
      }
      dice = all;
      visit.last = (most + E::PER - 1) / E::PER * E::PER;
      for (int sub = 0; sub < SUBS; sub++) visit.to[sub] = smaller(visit.to[sub], visit.last);
      weigh_group<E>(visit, at.column_p, at.column_ldp, at.column_values, plan.V, acc);
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
  const bool masked = c.key_mask, drop = c.threshold;
  const float* bias = masked ? at.bias : nullptr;
  const Weights<E> weights = masked ? drop ? soften<E, true, true> : soften<E, true, false>
                                    : drop ? soften<E, false, true> : soften<E, false, false>;
  const int depth = (int)c.D / E::PER, ldq = up(depth);
  Reader<E> reader = {plan, fold, at, k, v, Dice(plan, fold, b, h), weights, bend_of<E>(plan, fold, h), b, -1, depth};
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
      if (first)
        for (int i = 0; i < rows; i++) begin_row(plan, to, r + i, top[i], sum[i], acc + i * plan.V);
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
        if (in_place)
          prefetch<0>(q, r + GROUP, r + 2 * GROUP);
        else
          pack_rows<E>(q, r, GROUP, nullptr, ldq, at.q);
        if (last) prefetch<1>(to.out, r, r + GROUP);
        const float* queries = in_place ? q.floats(r) : at.q;
        const int64_t ld = in_place ? q.stride / 4 : ldq;
        if (columns) reader.read_columns(r, rows, queries, ld, top, sum, acc);
        if (any) {
          score_group<E>(visit, queries, ld, at.keys + (int64_t)(visit.first - low) * depth, depth, at.s, at.lds);
          for (int i = 0; i < rows; i++) {
            const int row = r + i, a = larger(low, fold.from(row)), z = smaller(high, fold.to(row));
            float* p = at.p + i * at.ldp - visit.first / E::PER;
            const Row scores = {at.s + i * at.lds - visit.first, p, at.bias - low, a, z, visit.from[i / QM], visit.to[i / QM],
                                larger(a, row + fold.hole_from), smaller(z, row + fold.hole_to),
                                drop ? reader.dice.of_row(fold.row_at(row) + c.q_offset) : 0};
            reader.read_row(scores, row, 0, top[i], sum[i], acc + i * plan.V);
          }
          weigh_group<E>(visit, at.p, at.ldp, at.values + (int64_t)(visit.first - low) / E::PER * plan.V, plan.V, acc);
        }
      }
      if (last)
        for (int i = 0; i < rows; i++) {
          const bool without = sink == -INF || fold.is_absent(r + i) || fold.is_global(r + i);
          end_row(plan, to, r + i, top[i], sum[i], acc + i * plan.V, without ? -INF : sink);
        }
    }
    first = false;
    low = high;
  } while (!last);
}

}  // namespace
