// Scores bent before the softmax: softcap, then the offset bias of their diagonal; and the same backwards.
#pragma once
#include "plan.h"

namespace {

struct Bend {
  float factor, cap;   // of the scores as the product gives them; of softcap, times log2 e; 0 = none
  const float* table;  // of a head and class: the bias of row i and key j at table[j - i]; null = none
};

// Where the bias of row 0 and key 0 of a class stands in a row of biases.
inline int64_t bias_origin(const Call& c, const Fold& fold) {
  return divided(c.N - 1 - fold.first_query + fold.first_key, fold.step);
}

template <class E> inline Bend bend_of(const Plan& plan, const Fold& fold, int64_t h) {
  const Call& c = plan.call;
  const float* table = plan.band.bias ? plan.band.bias + h * plan.band.bias_head + bias_origin(c, fold) : nullptr;
  return {E::PER == 1 ? 1.f : c.scale * LOG2E, c.softcap * LOG2E, table};
}

// tanh y = -m / (2 + m), m = e^(-2 |y|) - 1, exact near 0 too: m = 2^k g + (2^k - 1), g = 2^f - 1 a polynomial without constant.
inline vf tanh_of(vf y) {
  const vi sign = (vi)y & (int32_t)0x80000000;
  vf z = (vf)((vi)y & 0x7fffffff) * (-2.f * LOG2E);
  z = z < -80.f ? all(-80.f) : z;
  const vf whole = (z + 12582912.f) - 12582912.f, f = z - whole;
  vf p = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  const vf power = (vf)((vu)(__builtin_convertvector(whole, vi) + 127) << 23);
  const vf m = power * (p * f) + (power - 1.f);
  return (vf)((vi)(-m / (m + 2.f)) | sign);
}

// Scores of keys [from, to), whole panels, of row i; where `slope` is, the derivative of softcap goes there.
template <bool CAP, bool BIAS> void bend(float* s, int from, int to, const Bend& with, int i, float* slope) {
  const vf factor = all(with.factor), cap = all(with.cap), inverse = all(CAP ? 1.f / with.cap : 0.f);
  for (int j = from; j < to; j += VL) {
    vf x = load(s + j) * factor;
    if (CAP) {
      const vf t = tanh_of(x * inverse);
      x = t * cap;
      if (slope) store(slope + j, all(1.f) - t * t);
    }
    if (BIAS) x += load_any(with.table + j - i);
    store(s + j, x);
  }
}

inline void bend_row(float* s, int from, int to, const Bend& with, int i, float* slope = nullptr) {
  if (from >= to) return;
  (with.cap ? with.table ? bend<true, true> : bend<true, false> : bend<false, true>)(s, down(from), up(to), with, i, slope);
}

// The gradient of the bent scores becomes scale times that of the product; on the way it is added along the diagonal.
template <bool CAP, bool BIAS> void unbend(float* s, int from, int to, float scale, const float* slope, float* grads) {
  for (int j = from; j < to; j += VL) {
    const vf x = load(s + j);
    if (BIAS) store_any(grads + j, load_any(grads + j) + x);
    store(s + j, CAP ? x * load(slope + j) * scale : x * scale);
  }
}

inline void unbend_row(float* s, int from, int to, const Bend& with, float scale, const float* slope, float* grads) {
  if (from >= to) return;
  const auto way = with.cap ? grads ? unbend<true, true> : unbend<true, false>
                            : grads ? unbend<false, true> : unbend<false, false>;
  way(s, down(from), up(to), scale, slope, grads);
}

}  // namespace
