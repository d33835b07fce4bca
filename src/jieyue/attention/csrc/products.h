// Packing of strided rows, and the three products of attention as loops over registers.
//
// Scores come from rows of queries and panels of keys: a panel holds VL rows transposed, panel[d][lane].  The products with
// probabilities read rows.
#pragma once
#include "vector.h"

#if VL == 16  // 32 registers
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
#define GROUP VL              // query rows that are worked on together,
#define SUBS (GROUP / QM)     // in so many score tiles
#define KEYS_AT_ONCE 96       // values that stay in the first cache while a group's rows pass

namespace {

struct Rows {  // `count` rows of `columns` floats, `stride` floats apart
  float* data;
  int64_t stride;
  int count, columns;
  float* at(int row) const { return data + row * stride; }
};

// Asks for rows [from, to) of x ahead of their use; to_write where they will be written.
template <int to_write> inline void prefetch(const Rows& x, int from, int to) {
  to = smaller(to, x.count);
  for (int j = larger(from, 0); j < to; j++) {
    const char* row = (const char*)x.at(j);
    for (int64_t byte = 0; byte < x.columns * 4; byte += 64) __builtin_prefetch(row + byte, to_write, 2);  // into the second-level cache: the first has too few slots to wait in
  }
}

inline vf load_columns(const float* p, int columns) {  // the first `columns` of a vector, zeros behind
  if (columns >= VL) return load_any(p);
  vf r = {};
  for (int i = 0; i < columns; i++) r[i] = p[i];
  return r;
}

inline void store_columns(float* p, vf x, int columns) {
  if (columns >= VL) return store_any(p, x);
  for (int i = 0; i < columns; i++) p[i] = x[i];
}

// Rows first, first + 1, ... times c into panels; rows outside x, and rows whose bias is not 0, become zeros.  Asks for
// the panel behind each ahead of its use: rows lie far apart.
void pack_panels(const Rows& x, int first, int panels, const float* bias, float c, float* out) {
  for (int p = 0; p < panels; p++) {
    prefetch<0>(x, first + (p + 1) * VL, first + (p + 2) * VL);
    for (int d = 0; d < x.columns; d += VL) {
      vf r[VL];
      UNROLL for (int j = 0; j < VL; j++) {
        const int at = p * VL + j, row = first + at;
        const bool kept = row >= 0 && row < x.count && !(bias && bias[at]);
        r[j] = kept ? load_columns(x.at(row) + d, x.columns - d) * c : vf{};
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

// The same rows as rows of ld floats (a multiple of VL), zeros behind their columns.
void pack_rows(const Rows& x, int first, int rows, const float* bias, int ld, float* out) {
  for (int j = 0; j < rows; j++, out += ld) {
    const int row = first + j;
    prefetch<0>(x, row + VL, row + VL + 1);
    int d = 0;
    if (row >= 0 && row < x.count && !(bias && bias[j]))
      for (; d < x.columns; d += VL) store(out + d, load_columns(x.at(row) + d, x.columns - d));
    for (; d < ld; d += VL) store(out + d, vf{});
  }
}

// s[M queries][N panels] = query rows . key panels
template <int M, int N>
inline void score_tile(const float* q, int64_t ldq, const float* keys, int depth, float* s, int64_t lds) {
  vf a[M][N];
  UNROLL for (int i = 0; i < M; i++) {
    UNROLL for (int j = 0; j < N; j++) a[i][j] = vf{};
  }
  const int64_t panel = (int64_t)depth * VL;
  for (int d = 0; d < depth; d++, q++, keys += VL) {
    vf b[N];
    UNROLL for (int j = 0; j < N; j++) b[j] = load(keys + j * panel);
    UNROLL for (int i = 0; i < M; i++) {
      const vf x = all(q[i * ldq]);
      UNROLL for (int j = 0; j < N; j++) a[i][j] += x * b[j];
    }
  }
  UNROLL for (int i = 0; i < M; i++) {
    UNROLL for (int j = 0; j < N; j++) store(s + i * lds + j * VL, a[i][j]);
  }
}

// out[M][N vectors] += sum over keys of p[M][key] * rows[key]
template <int M, int N>
inline void weigh_tile(const float* p, int64_t ldp, const float* rows, int64_t ld, int keys, float* out) {
  vf a[M][N];
  UNROLL for (int i = 0; i < M; i++) {
    UNROLL for (int j = 0; j < N; j++) a[i][j] = load(out + i * ld + j * VL);
  }
  for (int k = 0; k < keys; k++, rows += ld) {
    vf b[N];
    UNROLL for (int j = 0; j < N; j++) b[j] = load(rows + j * VL);
    UNROLL for (int i = 0; i < M; i++) {
      const vf x = all(p[i * ldp + k]);
      UNROLL for (int j = 0; j < N; j++) a[i][j] += x * b[j];
    }
  }
  UNROLL for (int i = 0; i < M; i++) {
    UNROLL for (int j = 0; j < N; j++) store(out + i * ld + j * VL, a[i][j]);
  }
}

// out[M keys][N vectors] += sum over queries of p[query][M keys] * rows[query]
template <int M, int N>
inline void gather_tile(const float* p, int64_t ldp, const float* rows, int64_t ld, int queries, float* out) {
  vf a[M][N];
  UNROLL for (int i = 0; i < M; i++) {
    UNROLL for (int j = 0; j < N; j++) a[i][j] = load(out + i * ld + j * VL);
  }
  for (int r = 0; r < queries; r++, p += ldp, rows += ld) {
    vf b[N];
    UNROLL for (int j = 0; j < N; j++) b[j] = load(rows + j * VL);
    UNROLL for (int i = 0; i < M; i++) {
      const vf x = all(p[i]);
      UNROLL for (int j = 0; j < N; j++) a[i][j] += x * b[j];
    }
  }
  UNROLL for (int i = 0; i < M; i++) {
    UNROLL for (int j = 0; j < N; j++) store(out + i * ld + j * VL, a[i][j]);
  }
}

// The panels that each score tile of a group visits, as keys [from[i], to[i]), and their union [first, last).
struct Visit {
  int from[SUBS], to[SUBS], first, last;
};

// s[GROUP][...] = scores of a group; s and keys begin at visit.first.
inline void score_group(const Visit& visit, const float* q, int64_t ldq, const float* keys, int depth, float* s, int64_t lds) {
  for (int p = visit.first; p < visit.last; p += QN * VL)
    for (int i = 0; i < SUBS; i++) {
      const int from = larger(p, visit.from[i]), panels = (smaller(p + QN * VL, visit.to[i]) - from) / VL;
      const float* k = keys + (int64_t)(from - visit.first) * depth;
      float* to = s + i * QM * lds + (from - visit.first);
      if (panels == 3) score_tile<QM, 3>(q + i * QM * ldq, ldq, k, depth, to, lds);
      if (panels == 2) score_tile<QM, 2>(q + i * QM * ldq, ldq, k, depth, to, lds);
      if (panels == 1) score_tile<QM, 1>(q + i * QM * ldq, ldq, k, depth, to, lds);
    }
}

template <int N>
inline void weigh_columns(const Visit& visit, const float* p, int64_t ldp, const float* rows, int64_t ld, float* out) {
  for (int c = visit.first; c < visit.last; c += KEYS_AT_ONCE)
    for (int i = 0; i < SUBS; i++) {
      const int from = larger(c, visit.from[i]), to = smaller(c + KEYS_AT_ONCE, visit.to[i]), at = from - visit.first;
      if (from >= to) continue;
      for (int r = i * QM; r < (i + 1) * QM; r += PM)
        weigh_tile<PM, N>(p + r * ldp + at, ldp, rows + at * ld, ld, to - from, out + r * ld);
    }
}

// out[GROUP][ld] += p . rows; p and rows begin at visit.first.
inline void weigh_group(const Visit& visit, const float* p, int64_t ldp, const float* rows, int64_t ld, float* out) {
  for (int d = 0; d < ld;) {
    const int n = smaller((int)(ld - d) / VL, PN);
    if (n == 1) weigh_columns<1>(visit, p, ldp, rows + d, ld, out + d);
    if (n == 2) weigh_columns<2>(visit, p, ldp, rows + d, ld, out + d);
    if (n == 3) weigh_columns<3>(visit, p, ldp, rows + d, ld, out + d);
    if (n == 4) weigh_columns<4>(visit, p, ldp, rows + d, ld, out + d);
    d += n * VL;
  }
}

template <int M>
inline void gather_keys(const float* p, int64_t ldp, const float* rows, int64_t ld, int queries, float* out) {
  for (int d = 0; d < ld;) {
    const int n = smaller((int)(ld - d) / VL, KN);
    if (n == 1) gather_tile<M, 1>(p, ldp, rows + d, ld, queries, out + d);
    if (n == 2) gather_tile<M, 2>(p, ldp, rows + d, ld, queries, out + d);
    if (n == 3) gather_tile<M, 3>(p, ldp, rows + d, ld, queries, out + d);
    if (n == 4) gather_tile<M, 4>(p, ldp, rows + d, ld, queries, out + d);
    d += n * VL;
  }
}

// out[keys][ld] += transposed p . rows, for 2 to KM keys (an even number).
inline void gather(int keys, const float* p, int64_t ldp, const float* rows, int64_t ld, int queries, float* out) {
  if (keys == KM) return gather_keys<KM>(p, ldp, rows, ld, queries, out);
  for (int e = 0; e < keys; e += 2) gather_keys<2>(p + e, ldp, rows, ld, queries, out + e * ld);
}

}  // namespace
