// Packing of strided rows, and the three products of attention as loops over registers.
//
// Scores come from rows of queries and panels of keys: a panel holds VL rows transposed, panel[d][lane].  The products with
// probabilities read rows.
#pragma once
#include "vector.h"
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && VL == 4
#include "blocks.h"
#endif

#if VL == 16 || defined(__aarch64__)  // 32 registers
#define QM 8  // queries of a score tile
#define QN 3  // its key panels
#define PM 4  // queries of a tile of probabilities x values
#define PN 4  // its column vectors
#define KM 6  // keys of a tile of transposed probabilities x rows
#define KN 4  // its column vectors
#else         // 16 registers
#define QM 4
#define QN 3
#define PM 4
#define PN 3
#define KM 4
#define KN 3
#endif
#if defined(__aarch64__)
#define GROUP 16
#else
#define GROUP VL              // query rows that are worked on together,
#endif
#define SUBS (GROUP / QM)     // in so many score tiles
#define SPARE ((KM + VL - 2) / VL * VL)  // cells beside the panels of a row that a tile of keys may touch
#define TILE __attribute__((noinline))  // inside a larger function the strides of a tile's rows do not stay in registers
#define KEYS_AT_ONCE 96       // values that stay in the first cache while a group's rows pass

namespace {

struct Rows {  // `count` rows of `columns` numbers, `stride` bytes apart: floats, or bfloat16 where `half`
  char* data;
  int64_t stride;
  int count, columns;
  bool half;
  char* at(int row) const { return data + row * stride; }
  const float* floats(int row) const { return (const float*)at(row); }
  vf get(int row, int d) const {  // from column d on, zeros behind the last
    return half ? load_columns((const bf16*)at(row) + d, columns - d) : load_columns(floats(row) + d, columns - d);
  }
  void put(int row, int d, vf x) const {
    half ? store_columns((bf16*)at(row) + d, x, columns - d) : store_columns((float*)at(row) + d, x, columns - d);
  }
};

inline Rows floats_as_rows(float* first, int64_t ld, int count, int columns) {
  return {(char*)first, ld * 4, count, columns, false};
}

// Asks for rows [from, to) of x ahead of their use; to_write where they will be written.
template <int to_write> inline void prefetch(const Rows& x, int from, int to) {
  to = smaller(to, x.count);
  const int64_t bytes = (int64_t)x.columns * (x.half ? 2 : 4);
  for (int j = larger(from, 0); j < to; j++) {
    const char* row = x.at(j);
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row + byte, to_write, 2);  // into the second-level cache: the first has too few slots to wait in
  }
}

// What the 32-bit cells of the workspace hold: a float each, or two bfloat16 that lie side by side along the axis that a
// product sums over.  Sums are floats either way.
struct Floats {
  static const int PER = 1;
  static const bool BLOCKS = false;  // multiplies number by number, not block by block
  static vf spread(const float* cell) { return all(*cell); }
  static vf add_product(vf sum, vf x, vf y) { return sum + x * y; }
};

#if defined(__AVX512BF16__)
#define PAIRS 1
struct Pairs {
  static const int PER = 2;
  static const bool BLOCKS = false;
  static vf spread(const float* cell) {
    int32_t bits;
    memcpy(&bits, cell, 4);
    return (vf)_mm512_set1_epi32(bits);
  }
  static vf add_product(vf sum, vf x, vf y) { return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y); }
};
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && VL == 4
#define PAIRS 1
#else
#define PAIRS 0
typedef Floats Pairs;
#endif

// Rows of bfloat16 as rows of half as many cells.
inline Rows cells_of(const Rows& x) { return {x.data, x.stride, x.count, x.columns / 2, false}; }

// One vector of cells from each of two rows of bfloat16: their numbers side by side.
inline vf side_by_side(vf even, vf odd) { return (vf)((vu)even >> 16 | (vu)odd); }

// Rows first, first + 1, ... into panels, times c where they are floats; rows outside x, and rows whose bias is not 0,
// become zeros.  Asks for the panel behind each ahead of its use: rows lie far apart.
template <bool SCALED>
inline void pack_panels_of(const Rows& x, int first, int panels, const float* bias, float c, float* out) {
  for (int p = 0; p < panels; p++) {
    prefetch<0>(x, first + (p + 1) * VL, first + (p + 2) * VL);
    for (int d = 0; d < x.columns; d += VL) {
      vf r[VL];
      UNROLL for (int j = 0; j < VL; j++) {
        const int at = p * VL + j, row = first + at;
        const bool kept = row >= 0 && row < x.count && !(bias && bias[at]);
        r[j] = !kept ? vf{} : SCALED ? x.get(row, d) * c : load_columns(x.floats(row) + d, x.columns - d);
      }
      transpose(r);
      float* panel = out + ((int64_t)p * x.columns + d) * VL;
      const int columns = smaller(VL, x.columns - d);
      if (columns == VL) {
        UNROLL for (int j = 0; j < VL; j++) store(panel + j * VL, r[j]);
      } else
        for (int j = 0; j < columns; j++) store(panel + j * VL, r[j]);
    }
  }
}

template <class E>
void pack_panels(const Rows& x, int first, int panels, const float* bias, float c, float* out) {
  if (E::PER == 2)
    pack_panels_of<false>(cells_of(x), first, panels, bias, 1, out);
  else
    pack_panels_of<true>(x, first, panels, bias, c, out);
}

// The same rows as rows of ld cells (a multiple of VL), zeros behind their columns.
template <class E>
void pack_rows(const Rows& from, int first, int rows, const float* bias, int ld, float* out) {
  const Rows x = E::PER == 2 ? cells_of(from) : from;
  for (int j = 0; j < rows; j++, out += ld) {
    const int row = first + j;
    prefetch<0>(x, row + VL, row + VL + 1);
    int d = 0;
    if (row >= 0 && row < x.count && !(bias && bias[j]))
      for (; d < x.columns; d += VL)
        store(out + d, E::PER == 2 ? load_columns(x.floats(row) + d, x.columns - d) : x.get(row, d));
    for (; d < ld; d += VL) store(out + d, vf{});
  }
}

// The same rows for a product that sums over them: as they are, or two and two side by side.
template <class E>
void pack_summed(const Rows& x, int first, int rows, const float* bias, int ld, float* out) {
  if (E::PER == 1) return pack_rows<E>(x, first, rows, bias, ld, out);
  for (int j = 0; j < rows; j += 2, out += ld) {
    const int row = first + j;
    prefetch<0>(x, row + VL, row + VL + 2);
    const bool even = row >= 0 && row < x.count && !(bias && bias[j]);
    const bool odd = row + 1 >= 0 && row + 1 < x.count && !(bias && bias[j + 1]);
    int d = 0;
    for (; d < x.columns; d += VL)
      store(out + d, side_by_side(even ? x.get(row, d) : vf{}, odd ? x.get(row + 1, d) : vf{}));
    for (; d < ld; d += VL) store(out + d, vf{});
  }
}

// s[M queries][N panels] = query rows . key panels
template <class E, int M, int N>
TILE void score_tile(const float* q, int64_t ldq, const float* keys, int depth, float* s, int64_t lds) {
  if constexpr (E::BLOCKS) {
    E::template multiply<M, N, false>({q, 1, ldq}, {keys, VL, (int64_t)depth * VL}, depth, nullptr, s, lds);
  } else {
    vf a[M][N];
    UNROLL for (int i = 0; i < M; i++) {
      UNROLL for (int j = 0; j < N; j++) a[i][j] = vf{};
    }
    const int64_t panel = (int64_t)depth * VL;
    for (int d = 0; d < depth; d++, q++, keys += VL) {
      vf b[N];
      UNROLL for (int j = 0; j < N; j++) b[j] = load(keys + j * panel);
      UNROLL for (int i = 0; i < M; i++) {
        const vf x = E::spread(q + i * ldq);
        UNROLL for (int j = 0; j < N; j++) a[i][j] = E::add_product(a[i][j], x, b[j]);
      }
    }
    UNROLL for (int i = 0; i < M; i++) {
      UNROLL for (int j = 0; j < N; j++) store(s + i * lds + j * VL, a[i][j]);
    }
  }
}

// out[M][N vectors] += sum over keys of p[M][key] * rows[key]
template <class E, int M, int N>
TILE void weigh_tile(const float* p, int64_t ldp, const float* rows, int64_t ld, int keys, float* out) {
  if constexpr (E::BLOCKS) {
    E::template multiply<M, N, false>({p, 1, ldp}, {rows, ld, VL}, keys, out, out, ld);
  } else {
    vf a[M][N];
    UNROLL for (int i = 0; i < M; i++) {
      UNROLL for (int j = 0; j < N; j++) a[i][j] = load(out + i * ld + j * VL);
    }
    for (int k = 0; k < keys; k++, rows += ld) {
      vf b[N];
      UNROLL for (int j = 0; j < N; j++) b[j] = load(rows + j * VL);
      UNROLL for (int i = 0; i < M; i++) {
        const vf x = E::spread(p + i * ldp + k);
        UNROLL for (int j = 0; j < N; j++) a[i][j] = E::add_product(a[i][j], x, b[j]);
      }
    }
    UNROLL for (int i = 0; i < M; i++) {
      UNROLL for (int j = 0; j < N; j++) store(out + i * ld + j * VL, a[i][j]);
    }
  }
}

// out[M keys][N vectors] += sum over queries of p[query][M keys] * rows[query]
template <class E, int M, int N>
TILE void gather_tile(const float* p, int64_t ldp, const float* rows, int64_t ld, int queries, float* out) {
  if constexpr (E::BLOCKS) {
    E::template multiply<M, N, true>({p, ldp, 1}, {rows, ld, VL}, queries, out, out, ld);
  } else {
    vf a[M][N];
    UNROLL for (int i = 0; i < M; i++) {
      UNROLL for (int j = 0; j < N; j++) a[i][j] = load(out + i * ld + j * VL);
    }
    for (int r = 0; r < queries; r++, p += ldp, rows += ld) {
      vf b[N];
      UNROLL for (int j = 0; j < N; j++) b[j] = load(rows + j * VL);
      UNROLL for (int i = 0; i < M; i++) {
        const vf x = E::spread(p + i);
        UNROLL for (int j = 0; j < N; j++) a[i][j] = E::add_product(a[i][j], x, b[j]);
      }
    }
    UNROLL for (int i = 0; i < M; i++) {
      UNROLL for (int j = 0; j < N; j++) store(out + i * ld + j * VL, a[i][j]);
    }
  }
}

// The panels that each score tile of a group visits, as keys [from[i], to[i]), and their union [first, last).
struct Visit {
  int from[SUBS], to[SUBS], first, last;
};

// s[GROUP][...] = scores of a group; s and keys begin at visit.first.
template <class E>
inline void score_group(const Visit& visit, const float* q, int64_t ldq, const float* keys, int depth, float* s, int64_t lds) {
  for (int p = visit.first; p < visit.last; p += QN * VL)
    for (int i = 0; i < SUBS; i++) {
      const int from = larger(p, visit.from[i]), panels = (smaller(p + QN * VL, visit.to[i]) - from) / VL;
      const float* k = keys + (int64_t)(from - visit.first) * depth;
      float* to = s + i * QM * lds + (from - visit.first);
      if (panels == 3) score_tile<E, QM, 3>(q + i * QM * ldq, ldq, k, depth, to, lds);
      if (panels == 2) score_tile<E, QM, 2>(q + i * QM * ldq, ldq, k, depth, to, lds);
      if (panels == 1) score_tile<E, QM, 1>(q + i * QM * ldq, ldq, k, depth, to, lds);
    }
}

template <class E, int N>
inline void weigh_columns(const Visit& visit, const float* p, int64_t ldp, const float* rows, int64_t ld, float* out) {
  for (int c = visit.first; c < visit.last; c += KEYS_AT_ONCE * E::PER)
    for (int i = 0; i < SUBS; i++) {
      const int from = larger(c, visit.from[i]), to = smaller(c + KEYS_AT_ONCE * E::PER, visit.to[i]);
      const int at = (from - visit.first) / E::PER;
      if (from >= to) continue;
      for (int r = i * QM; r < (i + 1) * QM; r += PM)
        weigh_tile<E, PM, N>(p + r * ldp + at, ldp, rows + at * ld, ld, (to - from) / E::PER, out + r * ld);
    }
}

// out[GROUP][ld] += p . rows; p and rows begin at visit.first.
template <class E>
inline void weigh_group(const Visit& visit, const float* p, int64_t ldp, const float* rows, int64_t ld, float* out) {
  for (int d = 0; d < ld;) {
    const int n = smaller((int)(ld - d) / VL, PN);
    if (n == 1) weigh_columns<E, 1>(visit, p, ldp, rows + d, ld, out + d);
    if (n == 2) weigh_columns<E, 2>(visit, p, ldp, rows + d, ld, out + d);
    if (n == 3) weigh_columns<E, 3>(visit, p, ldp, rows + d, ld, out + d);
    if (n == 4) weigh_columns<E, 4>(visit, p, ldp, rows + d, ld, out + d);
    d += n * VL;
  }
}

template <class E, int M>
inline void gather_keys(const float* p, int64_t ldp, const float* rows, int64_t ld, int queries, float* out) {
  for (int d = 0; d < ld;) {
    const int n = smaller((int)(ld - d) / VL, KN);
    if (n == 1) gather_tile<E, M, 1>(p, ldp, rows + d, ld, queries, out + d);
    if (n == 2) gather_tile<E, M, 2>(p, ldp, rows + d, ld, queries, out + d);
    if (n == 3) gather_tile<E, M, 3>(p, ldp, rows + d, ld, queries, out + d);
    if (n == 4) gather_tile<E, M, 4>(p, ldp, rows + d, ld, queries, out + d);
    d += n * VL;
  }
}

// out[keys][ld] += transposed p . rows, for 2 to KM keys (an even number); `queries` counts cells.
template <class E>
inline void gather(int keys, const float* p, int64_t ldp, const float* rows, int64_t ld, int queries, float* out) {
  if (keys == KM) return gather_keys<E, KM>(p, ldp, rows, ld, queries, out);
  for (int e = 0; e < keys; e += 2) gather_keys<E, 2>(p + e, ldp, rows, ld, queries, out + e * ld);
}

}  // namespace
