// The softmax of LANES queries at once: scores lie key by key, a lane to a query, so that highest scores and sums are
// vectors, and what a query does not see is a comparison of its key with vectors.
#pragma once
#include "logits.h"

#define PANELS 2               // panels of queries
#define LANES (PANELS * VL)

namespace {

// What each of LANES queries sees: keys from ... to - 1, but not those of its hole.
struct Lanes {
  alignas(64) int from[LANES], to[LANES], hole_from[LANES], hole_to[LANES];
  alignas(64) uint32_t hash[LANES];
  int first, last;                    // keys that any of them sees
  int low[PANELS], high[PANELS];      // that a panel of them does: even numbers, where pairs begin
  int common[PANELS], parted[PANELS]; // from where on all of a panel do, but for holes, and from where on no longer
  int hole_low[PANELS], hole_high[PANELS];

  // From what each sees; false where none sees anything.
  bool settle() {
    first = 1 << 30, last = 0;
    for (int p = 0; p < PANELS; p++) {
      int least = 1 << 30, most = 0, begin = 0, end = 1 << 30, hole = 1 << 30, behind = 0;
      for (int i = p * VL; i < (p + 1) * VL; i++) {
        if (from[i] >= to[i]) {
          begin = 1 << 30, end = 0;  // no key is common
          continue;
        }
        begin = larger(begin, from[i]), end = smaller(end, to[i]);
        least = smaller(least, from[i]), most = larger(most, to[i]);
        if (hole_from[i] < hole_to[i]) hole = smaller(hole, hole_from[i]), behind = larger(behind, hole_to[i]);
      }
      const bool any = least < most;
      low[p] = any ? least & -2 : 0, high[p] = any ? (most + 1) & -2 : 0;
      common[p] = larger(low[p], smaller(begin, high[p])), parted[p] = larger(common[p], smaller(end, high[p]));
      hole_low[p] = larger(hole, common[p]), hole_high[p] = smaller(behind, parted[p]);
      if (any) first = smaller(first, low[p]), last = larger(last, high[p]);
    }
    return first < last;
  }
};

inline vi load_ints(const int* p) { return *(const vi*)p; }

// s[key][LANES] = scores of keys, which lie as rows, and panels of queries; s and keys begin at lanes.first.
template <class E>
inline void score_lanes(const Lanes& lanes, const float* keys, int64_t ldk, const float* q, int depth, float* s) {
  for (int j = lanes.first; j < lanes.last; j += QM, keys += QM * ldk, s += QM * LANES) {
    const bool one = j + QM > lanes.low[0] && j < lanes.high[0], other = j + QM > lanes.low[1] && j < lanes.high[1];
    if (one && other)
      score_tile<E, QM, 2>(keys, ldk, q, depth, s, LANES);
    else if (one)
      score_tile<E, QM, 1>(keys, ldk, q, depth, s, LANES);
    else if (other)
      score_tile<E, QM, 1>(keys, ldk, q + (int64_t)depth * VL, depth, s + VL, LANES);
  }
}

template <class E, int N>
inline void weigh_lanes(const Lanes& lanes, const float* p, const float* rows, int64_t ld, float* out) {
  const int step = KEYS_AT_ONCE * E::PER;
  for (int c = lanes.first; c < lanes.last; c += step)
    for (int i = 0; i < LANES; i += PM) {
      int from = 1 << 30, to = 0;
      for (int x = i; x < i + PM; x++)
        if (lanes.from[x] < lanes.to[x]) from = smaller(from, lanes.from[x]), to = larger(to, lanes.to[x]);
      from = larger(c, from & -2), to = smaller(c + step, (to + 1) & -2);
      if (from >= to) continue;
      const int at = (from - lanes.first) / E::PER;
      gather_tile<E, PM, N>(p + (int64_t)at * LANES + i, LANES, rows + at * ld, ld, (to - from) / E::PER, out + i * ld);
    }
}

// out[LANES][ld] += weights . rows; p[cell of keys][LANES] and rows begin at lanes.first.
template <class E> inline void weigh_lanes(const Lanes& lanes, const float* p, const float* rows, int64_t ld, float* out) {
  for (int d = 0; d < ld;) {
    const int n = smaller((int)(ld - d) / VL, PN);
    if (n == 1) weigh_lanes<E, 1>(lanes, p, rows + d, ld, out + d);
    if (n == 2) weigh_lanes<E, 2>(lanes, p, rows + d, ld, out + d);
    if (n == 3) weigh_lanes<E, 3>(lanes, p, rows + d, ld, out + d);
    if (n == 4) weigh_lanes<E, 4>(lanes, p, rows + d, ld, out + d);
    d += n * VL;
  }
}

// Turns scores into weights 2^(score - top), 0 where a query does not see the key, panel by panel.
template <class E> struct Softmax {
  const Plan& plan;
  const Bend bend;
  const float factor;  // of scores that are not made of scaled queries

  Softmax(const Plan& p, const Fold& fold, int64_t h)
      : plan(p), bend(bend_of<E>(p, fold, h)), factor(E::PER == 2 && !p.bent() ? p.call.scale * LOG2E : 1.f) {}

  // s and p begin at lanes.first, bias at key 0; the first query is row i, less `shift` keys before key 0 of its class.
  void read(const Lanes& lanes, int i, int shift, float* s, float* p, const float* bias, const Dice& dice, float* top,
            float* sum, float* acc) const {
    for (int x = 0; x < PANELS; x++) {
      const int at = x * VL;
      if (lanes.low[x] >= lanes.high[x]) continue;
      float* scores = s + at - (int64_t)lanes.first * LANES;
      if (plan.bent()) bend_panel(scores, lanes.low[x], lanes.high[x], i - shift + at);
      hide(lanes, x, bias, scores);
      const vf had = load(sum + at);
      const vf fade = plan.call.threshold ? soften<true>(lanes, x, scores, p + at, dice, top + at, sum + at)
                                          : soften<false>(lanes, x, scores, p + at, dice, top + at, sum + at);
      for (int l = 0; l < VL; l++) {
        float* row = acc + (int64_t)(at + l) * plan.V;
        if (fade[l] != 1.f && had[l] != 0.f)
          for (int d = 0; d < plan.V; d += VL) store(row + d, load(row + d) * fade[l]);
      }
    }
  }

  void bend_panel(float* s, int from, int to, int i) const {
    const vf scale = all(bend.factor), cap = all(bend.cap), inverse = all(bend.cap ? 1.f / bend.cap : 0.f);
    for (int j = from; j < to; j++) {
      vf y = load(s + j * LANES) * scale;
      if (bend.cap) y = tanh_of(y * inverse) * cap;
      if (bend.table) y += reversed(load_any(bend.table + j - i - (VL - 1)));
      store(s + j * LANES, y);
    }
  }

  // Minus infinity for what is not seen.
  void hide(const Lanes& lanes, int x, const float* bias, float* s) const {
    const vi from = load_ints(lanes.from + x * VL), to = load_ints(lanes.to + x * VL);
    const vi hole_from = load_ints(lanes.hole_from + x * VL), hole_to = load_ints(lanes.hole_to + x * VL);
    const auto cover = [&](int j, int end) {
      for (; j < end; j++) {
        const vi seen = (from <= j) & (to > j) & ((hole_from > j) | (hole_to <= j));
        store(s + j * LANES, seen ? load(s + j * LANES) : all(-INF));
      }
    };
    cover(lanes.low[x], lanes.common[x]);
    cover(lanes.hole_low[x], lanes.hole_high[x]);
    cover(lanes.parted[x], lanes.high[x]);
    if (bias)
      for (int j = lanes.low[x]; j < lanes.high[x]; j++)
        if (bias[j] < 0.f) store(s + j * LANES, all(-INF));
  }

  // Returns what earlier sums of the panel are to be multiplied by.  NaN scores pass by the highest and make the sum NaN.
  template <bool DROP>
  vf soften(const Lanes& lanes, int x, const float* s, float* p, const Dice& dice, float* top, float* sum) const {
    const int low = lanes.low[x], high = lanes.high[x];
    vf most = all(-INF), most2 = most;
    for (int j = low; j < high; j += 2) {
      most = highest(load(s + j * LANES), most);
      most2 = highest(load(s + (j + 1) * LANES), most2);
    }
    most = highest(most, most2);
    const vf before = load(top), c = all(factor);
    vf now = highest(E::PER == 1 ? most : most * c, before);
    if (sum_of(now == INF ? all(1.f) : vf{}) != 0.f) now = infinite(s, low, high, now);
    const vf t = now == -INF ? vf{} : now;
    const vu hash = *(const vu*)(lanes.hash + x * VL);
    const auto weight = [&](int j) { return exp2_of(E::PER == 1 ? load(s + j * LANES) - t : load(s + j * LANES) * c - t); };
    const auto put = [&](int j, vf e, vf f) {
      if (DROP) e = dice.kept(hash, j) ? e : vf{}, f = dice.kept(hash, j + 1) ? f : vf{};
      if (E::PER == 1)
        store(p + (int64_t)(j - lanes.first) * LANES, e), store(p + (int64_t)(j + 1 - lanes.first) * LANES, f);
      else
        store(p + (int64_t)(j - lanes.first) / 2 * LANES, paired(narrow(e), narrow(f)));
    };
    vf total = {}, total2 = {};
    for (int j = low; j < high; j += 2) {
      const vf e = weight(j), f = weight(j + 1);
      total += e, total2 += f;
      put(j, e, f);
    }
    const vf fade = now == before ? all(1.f) : exp2_of(before - t);
    store(top, now);
    store(sum, load(sum) * fade + (total + total2));
    return fade;
  }

  // The highest scores `now` where some are infinite: NaN if another score is.
  static vf infinite(const float* s, int low, int high, vf now) {
    vi odd = {};
    for (int j = low; j < high; j++) odd |= load(s + j * LANES) != load(s + j * LANES);
    return odd & (now == INF) ? all(__builtin_nanf("")) : now;
  }
};

struct Outputs {  // of one head and class
  Rows out;
  float* lse;
  int64_t lse_stride;
};

// The first `rows` of LANES rows from row i on: nothing yet, or what earlier bands have found.
inline void begin_rows(const Plan& plan, const Outputs& to, int i, int rows, float* top, float* sum, float* acc) {
  const float back = 1.f / plan.call.kept_scale;
  for (int x = 0; x < LANES; x++, acc += plan.V) {
    const float lse = plan.accumulate && x < rows ? to.lse[(i + x) * to.lse_stride] : -INF;
    top[x] = lse * LOG2E, sum[x] = lse == -INF ? 0.f : 1.f;
    for (int d = 0; d < plan.V; d += VL) store(acc + d, lse == -INF ? vf{} : to.out.get(i + x, d) * back);
  }
}

// `sinks`: one more score of each row, times log2 e, or minus infinity.
inline void end_rows(const Plan& plan, const Outputs& to, int i, int rows, const float* top, const float* sum, const float* acc,
                     const float* sinks) {
  alignas(64) float share[LANES], lse[LANES];
  for (int x = 0; x < LANES; x += VL) {
    vf t = load(top + x), s = load(sum + x), fade = all(1.f);
    const vf sink = load(sinks + x), now = t < sink ? sink : t;
    const vi with = sink != -INF, boundless = (t == INF) & (sink == sink);  // where boundless, the sum is NaN
    fade = with ? s == 0.f ? vf{} : exp2_of(t - now) : fade;
    s = with ? s * fade + (sink == now ? all(1.f) : exp2_of(sink - now)) : s;
    t = with ? now : t;
    store(share + x, s == 0.f ? vf{} : fade * plan.call.kept_scale / s);
    store(lse + x, s == 0.f ? all(-INF) : boundless ? all(INF) : (t + log2_of(s)) * LN2);
  }
  const bool watched = plan.call.nonfinite;
  vf odd = {};
  for (int x = 0; x < rows; x++, acc += plan.V) {
    for (int d = 0; d < plan.V; d += VL) {
      const vf y = load(acc + d) * share[x];
      if (watched) odd += y * 0.f;
      to.out.put(i + x, d, y);
    }
    to.lse[(i + x) * to.lse_stride] = lse[x];
  }
  if (watched && sum_of(odd) != 0.f) *plan.call.nonfinite = 1;
}

}  // namespace
