// Vectors of VL floats in the compiler's own notation (GCC and Clang), so that one source serves every instruction set.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX__)
#define VL 8
#else
#define VL 4
#endif

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef float vf_unaligned __attribute__((vector_size(VL * 4), aligned(4)));
typedef uint16_t bf16;  // a bfloat16: the upper half of a float
typedef bf16 vh __attribute__((vector_size(VL * 2)));
typedef bf16 vh_unaligned __attribute__((vector_size(VL * 2), aligned(2), may_alias));

const float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f, INF = __builtin_inff();

template <class T> inline T smaller(T a, T b) { return b < a ? b : a; }
template <class T> inline T larger(T a, T b) { return a < b ? b : a; }
inline int down(int x) { return x & -VL; }             // to a multiple of VL, towards minus infinity
inline int up(int x) { return (x + VL - 1) & -VL; }

inline vf load(const float* p) { return *(const vf*)p; }  // aligned to the vector
inline void store(float* p, vf x) { *(vf*)p = x; }
inline vf load_any(const float* p) { return *(const vf_unaligned*)p; }
inline void store_any(float* p, vf x) { *(vf_unaligned*)p = x; }
inline vf widen(vh x) { return (vf)(__builtin_convertvector(x, vu) << 16); }
inline vh narrow(vf x) {  // to the nearest, ties to even; NaN stays NaN
#if defined(__AVX512BF16__)
  return (vh)_mm512_cvtneps_pbh((__m512)x);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && VL == 4
  return (vh)vcvt_bf16_f32((float32x4_t)x);
#else
  const vu u = (vu)x, rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  return __builtin_convertvector(x == x ? rounded : u >> 16 | 64u, vh);
#endif
}
inline vf paired(vh even, vh odd) {  // two numbers a lane
  return (vf)(__builtin_convertvector(even, vu) | __builtin_convertvector(odd, vu) << 16);
}
inline vf load_any(const bf16* p) { return widen(*(const vh_unaligned*)p); }
inline void store_any(bf16* p, vf x) { *(vh_unaligned*)p = narrow(x); }
inline vf all(float x) { return x - vf{}; }
inline vf highest(vf a, vf b) { return a > b ? a : b; }  // b where one of them is NaN
inline vi lanes() {
  vi r;
  for (int i = 0; i < VL; i++) r[i] = i;
  return r;
}
inline vi within(int base, int from, int to) {  // which of the lanes base, base + 1, ... lie in [from, to)
  const vi j = lanes() + base;
  return (j >= from) & (j < to);
}
inline float sum_of(vf a) {
  float s = 0;
  for (int i = 0; i < VL; i++) s += a[i];
  return s;
}

template <class T> inline vf load_columns(const T* p, int columns) {  // the first `columns` of a vector, zeros behind
  if (columns >= VL) return load_any(p);
  T r[VL] = {};
  for (int i = 0; i < columns; i++) r[i] = p[i];
  return load_any(r);
}

template <class T> inline void store_columns(T* p, vf x, int columns) {
  if (columns >= VL) return store_any(p, x);
  T r[VL];
  store_any(r, x);
  for (int i = 0; i < columns; i++) p[i] = r[i];
}

// 2^x for x <= 0.  Below 2^-100 exactly 0: a subnormal would slow every later product many times over.  NaN stays NaN.
inline vf exp2_of(vf x) {
  const vf whole = (x + 12582912.f) - 12582912.f, f = x - whole;
  vf p = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.f;
  const vu e = (vu)__builtin_convertvector(whole, vi) << 23;
  return x < -100.f ? vf{} : (vf)((vu)p + e);
}

// log2 of positive normal numbers, infinity and NaN, by atanh: x = 2^e m, log2 m = 2 / ln 2 * (s + s^3/3 + s^5/5 + ...), s = (m-1)/(m+1).
inline vf log2_of(vf x) {
  const vi e = ((vi)x - 0x3f3504f3) >> 23;  // sqrt(1/2) <= m < sqrt(2)
  const vf m = (vf)((vi)x - (e << 23)), s = (m - 1.f) / (m + 1.f), t = s * s;
  vf p = t * (1.f / 11) + 1.f / 9;
  p = p * t + 1.f / 7;
  p = p * t + 1.f / 5;
  p = p * t + 1.f / 3;
  p = p * t + 1.f;
  return x < INF ? __builtin_convertvector(e, vf) + p * s * 2.885390081777927f : x;
}

// The rows r[0], ..., r[VL-1] become columns, by log2(VL) perfect shuffles.
inline void transpose(vf* r) {
#if VL == 16
#define LOW_HALVES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH_HALVES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VL == 8
#define LOW_HALVES 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH_HALVES 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW_HALVES 0, 4, 1, 5
#define HIGH_HALVES 2, 6, 3, 7
#endif
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif
  vf t[VL];
  UNROLL for (int s = 1; s < VL; s *= 2) {
    UNROLL for (int i = 0; i < VL / 2; i++) {
      t[2 * i] = SHUFFLE(r[i], r[i + VL / 2], LOW_HALVES);
      t[2 * i + 1] = SHUFFLE(r[i], r[i + VL / 2], HIGH_HALVES);
    }
    UNROLL for (int i = 0; i < VL; i++) r[i] = t[i];
  }
}

inline vf reversed(vf x) {  // the last lane first
#if VL == 16
  return SHUFFLE(x, x, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#elif VL == 8
  return SHUFFLE(x, x, 7, 6, 5, 4, 3, 2, 1, 0);
#else
  return SHUFFLE(x, x, 3, 2, 1, 0);
#endif
}

// The counter hash of dropout: element (b, h, i, j) is kept when mix(row ^ j * 0x9E3779B9) >= p * 2^32.
template <class T> inline T mix(T x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

}  // namespace
