// One key head of one example, cut into chunks of 64 positions: its rows brought into cache, mapped and padded, and its sums.
#pragma once
#include "../../attention/csrc/products.h"
#include "linear.h"

namespace {

#define RM (QM < VL ? QM : VL)  // rows of a score tile here: a group has VL of them

const int CHUNK = 64;
const int BUNCH = 6;  // heads whose rows are read side by side

// e^x for x <= 0.  Below 2^-125 exactly 0.  NaN stays NaN.
inline vf exp_of(vf x) {
  const vf whole = (x * LOG2E + 12582912.f) - 12582912.f;
  const vf f = ((x - whole * 0.693359375f) + whole * 2.12194440e-4f) * LOG2E;  // ln 2 in two parts: no cancellation
  vf p = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.f;
  const vu e = (vu)__builtin_convertvector(whole, vi) << 23;
  return whole < -125.f ? vf{} : (vf)((vu)p + e);
}

// elu(x) + 1 without a subtraction
inline vf elu_of(vf x) { return x > 0.f ? x + 1.f : exp_of(x > 0.f ? vf{} : x); }

// The rows of one head in a tensor, in the order in which the positions are read.
inline Rows rows_of(const View& view, int64_t b, int64_t head, int64_t count, int64_t columns, int64_t direction) {
  const int64_t bytes = view.half ? 2 : 4, row = view.row * bytes;
  char* first = (char*)view.data + (b * view.batch + head * view.head) * bytes;
  if (direction < 0) return {first + (count - 1) * row, -row, (int)count, (int)columns, view.half != 0};
  return {first, row, (int)count, (int)columns, view.half != 0};
}

// Numbers of one row per position, in the same order.
template <class T> struct Line {
  T* first;
  int64_t stride;
  T& operator[](int64_t i) const { return first[i * stride]; }
};

template <class T> inline Line<T> line_of(T* first, int64_t stride, int64_t count, int64_t direction) {
  if (direction < 0 && first) return {first + (count - 1) * stride, -stride};
  return {first, stride};
}

// Results go past the caches, which they would only clear of what is still read; `all_put` ends a task.
inline void put(const Rows& x, int row, int d, vf y) {
#if VL == 16
  if (!x.half && x.columns - d >= VL && !((uintptr_t)(x.floats(row) + d) & 63))
    return _mm512_stream_ps((float*)x.at(row) + d, (__m512)y);
#endif
  x.put(row, d, y);
}
inline void all_put() {
#if VL == 16
  _mm_sfence();
#endif
}

inline vf keep_columns(vf x, int columns) { return columns >= VL ? x : (lanes() < columns) ? x : vf{}; }

struct Sizes {
  int D, V, F, ldF, ldV;  // ld: a row in the workspace, a multiple of the vector
  explicit Sizes(const LinearCall& c)
      : D((int)c.D), V((int)c.V), F((int)(c.D + c.constant)), ldF(up(F)), ldV(up(V)) {}
};

struct Arena {
  float* base;
  int64_t used = 0;
  float* take(int64_t floats) {
    float* at = base + used;
    used += (floats + 15) / 16 * 16;
    return at;
  }
};

// S [F][ldV] and z [ldF].  Rows of S up to a multiple of KM stand ready for the products.
struct Sums {
  float *S, *z;
  Sums() {}
  Sums(const Sizes& s, Arena& arena) : S(arena.take((int64_t)(s.F + KM) * s.ldV)), z(arena.take(s.ldF)) {}
};

inline void clear(float* p, int64_t floats) { memset(p, 0, floats * sizeof(float)); }

// In the tensors the constant feature comes first, here last: so rows stay aligned.
inline const float* packed_row(const float* packed, const Sizes& s, int f, int64_t constant) {
  return packed + (int64_t)(constant ? (f == s.D ? 0 : f + 1) : f) * (s.V + 1);
}

inline void load_sums(const float* packed, const Sizes& s, int64_t constant, const Sums& to) {
  clear(to.S, (int64_t)(s.F + KM) * s.ldV);
  clear(to.z, s.ldF);
  if (!packed) return;
  for (int f = 0; f < s.F; f++) {
    const float* row = packed_row(packed, s, f, constant);
    memcpy(to.S + (int64_t)f * s.ldV, row, s.V * sizeof(float));
    to.z[f] = row[s.V];
  }
}

inline void store_sums(const Sums& from, const Sizes& s, int64_t constant, float* packed) {
  for (int f = 0; f < s.F; f++) {
    float* row = (float*)packed_row(packed, s, f, constant);
    memcpy(row, from.S + (int64_t)f * s.ldV, s.V * sizeof(float));
    row[s.V] = from.z[f];
  }
}

// Rows [first, first + count) of x as features of `scale` x: [CHUNK][ldF], zeros where a row is masked or missing.  Asks for the
// rows `ahead` of these, so that they come while these are worked on.
// inverse[j] = 1 / |x_j| for the cosine map, 0 for a row without direction.
void pack_features(const LinearCall& c, const Sizes& s, const Rows& x, const Line<const uint8_t>& mask, int first, int count,
                   int ahead, float scale, float* out, float* inverse) {
  for (int j = 0; j < CHUNK; j++, out += s.ldF) {
    if (j >= count || (mask.first && !mask[first + j])) {
      clear(out, s.ldF);
      continue;
    }
    prefetch<0>(x, first + j + ahead, first + j + ahead + 1);
    float length = 1;
    if (c.map == COSINE) {
      vf square = {};
      for (int d = 0; d < s.D; d += VL) {
        const vf y = x.get(first + j, d) * scale;
        square += y * y;
      }
      const float sum = sum_of(square);
      length = sum > 0 && sum < INF ? 1 / __builtin_sqrtf(sum) : 0;
      inverse[j] = length;
    }
    const float factor = scale * length;
    for (int d = 0; d < s.ldF; d += VL) {
      if (d >= s.D) {
        store(out + d, vf{});
        continue;
      }
      vf y = x.get(first + j, d) * factor;
      if (c.map == ELU) y = keep_columns(elu_of(y), s.D - d);
      if (c.map == RELU) y = y > 0.f ? y : vf{};
      store(out + d, y);
    }
    if (c.constant) out[s.D] = c.root;
  }
}

// Rows of values: [CHUNK][ldV], the same way.
void pack_values(const Sizes& s, const Rows& x, const Line<const uint8_t>& mask, int first, int count, int ahead, float* out) {
  for (int j = 0; j < CHUNK; j++, out += s.ldV) {
    if (j >= count || (mask.first && !mask[first + j])) {
      clear(out, s.ldV);
      continue;
    }
    prefetch<0>(x, first + j + ahead, first + j + ahead + 1);
    for (int d = 0; d < s.ldV; d += VL) store(out + d, d < s.V ? x.get(first + j, d) : vf{});
  }
}

// The gradient of a row from that of its features, times `scale`, to where it belongs.
inline void write_gradient(const LinearCall& c, const Sizes& s, const float* features, const float* grad, float inverse,
                           float scale, const Rows& to, int at) {
  float along = 0;
  if (c.map == COSINE) {
    vf sum = {};
    for (int d = 0; d < s.D; d += VL) sum += keep_columns(load(features + d) * load(grad + d), s.D - d);
    along = sum_of(sum);
  }
  for (int d = 0; d < s.D; d += VL) {
    const vf b = load(features + d);
    vf g = load(grad + d);
    if (c.map == ELU) g *= b < 1.f ? b : all(1.f);
    if (c.map == RELU) g = b > 0.f ? g : vf{};
    if (c.map == COSINE) g = (g - b * along) * inverse;
    put(to, at, d, g * scale);
  }
}

// out[rows][ld] += p[rows][keys] . x[keys][ld], rows a multiple of PM
inline void weigh(int rows, const float* p, int64_t ldp, int keys, const float* x, int64_t ld, float* out) {
  for (int d = 0; d < ld; d += PN * VL) {
    const int n = smaller((int)(ld - d) / VL, PN);
    for (int r = 0; r < rows; r += PM) {
      const float* left = p + r * ldp;
      float* to = out + r * ld + d;
      if (n == 4) weigh_tile<Floats, PM, 4>(left, ldp, x + d, ld, keys, to);
      if (n == 3) weigh_tile<Floats, PM, 3>(left, ldp, x + d, ld, keys, to);
      if (n == 2) weigh_tile<Floats, PM, 2>(left, ldp, x + d, ld, keys, to);
      if (n == 1) weigh_tile<Floats, PM, 1>(left, ldp, x + d, ld, keys, to);
    }
  }
}

// s[RM][panels] = rows . panels
inline void score(const float* rows, int64_t ld, const float* panels, int count, int depth, float* s, int64_t lds) {
  for (int p = 0; p < count; p += QN) {
    const float* at = panels + (int64_t)p * depth * VL;
    const int n = smaller(count - p, QN);
    if (n == 3) score_tile<Floats, RM, 3>(rows, ld, at, depth, s + p * VL, lds);
    if (n == 2) score_tile<Floats, RM, 2>(rows, ld, at, depth, s + p * VL, lds);
    if (n == 1) score_tile<Floats, RM, 1>(rows, ld, at, depth, s + p * VL, lds);
  }
}

// out[columns][ld] += transposed p[queries][columns] . rows[queries][ld]; where `triangle`, p is 0 above its diagonal
inline void gather_all(int columns, const float* p, int64_t ldp, const float* rows, int64_t ld, int queries, bool triangle,
                       float* out) {
  for (int e = 0; e < columns; e += KM) {
    const int from = triangle ? e : 0;
    if (from < queries)
      gather<Floats>(smaller(KM, (columns - e + 1) & ~1), p + from * ldp + e, ldp, rows + from * ld, ld, queries - from, out + e * ld);
  }
}

// z += the sum of the rows, each times its weight (null: 1)
inline void add_rows(const float* rows, int64_t ld, int count, const float* weight, float* z) {
  for (int d = 0; d < ld; d += VL) {
    vf sum = load(z + d);
    for (int j = 0; j < count; j++) sum += load(rows + j * ld + d) * (weight ? weight[j] : 1.f);
    store(z + d, sum);
  }
}

// The sums over each of VL vectors, side by side: transposed, they are sums of whole vectors.
inline vf sums_of(vf* rows) {
  transpose(rows);
  vf sum = rows[0];
  UNROLL for (int i = 1; i < VL; i++) sum += rows[i];
  return sum;
}

}  // namespace
