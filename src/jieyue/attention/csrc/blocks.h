// Products of bfloat16 pairs by ARM's BFMMLA: two rows by two columns at once, over the four numbers of two cells.
//
// It takes the numbers of a row side by side, rows two by two, and so the columns: cells of two rows are put together, and
// those of four columns, which lie side by side, are zipped.  Results are floats.  Without FEAT_EBF16 the instruction rounds
// each sum to odd and takes subnormals as 0; neither has a direction.  Included by products.h where the instruction is.
#pragma once
#include "vector.h"

namespace {

struct Cells {  // cell k of row (or vector of columns) i at first[i * vector + k * cell]
  const float* first;
  int64_t cell, vector;
};

struct Pairs {
  static const int PER = 2;
  static const bool BLOCKS = true;

  static float32x2_t two(const float* p) { return vld1_f32(p); }
  static float32x2_t one(const float* p) { return vset_lane_f32(*p, vdup_n_f32(0), 0); }
  static float32x4_t add(float32x4_t sum, float32x4_t left, float32x4_t right) {
    return vbfmmlaq_f32(sum, vreinterpretq_bf16_f32(left), vreinterpretq_bf16_f32(right));
  }
  static float32x4_t lower(float32x4_t a, float32x4_t b) { return vcombine_f32(vget_low_f32(a), vget_low_f32(b)); }
  static float32x4_t upper(float32x4_t a, float32x4_t b) { return vcombine_f32(vget_high_f32(a), vget_high_f32(b)); }

  // Cells k and k + 1 of rows i and i + 1; without the second cell, zeros are in its place.
  template <bool DOWN, bool BOTH> static float32x4_t rows_of(const Cells& x, int i, int k) {
    const float* p = x.first + i * x.vector + k * x.cell;
    if (!DOWN) return BOTH ? vcombine_f32(two(p), two(p + x.vector)) : vcombine_f32(one(p), one(p + x.vector));
    const float32x2_t zero = vdup_n_f32(0), next = BOTH ? two(p + x.cell) : zero;
    return vzip1q_f32(vcombine_f32(two(p), zero), vcombine_f32(next, zero));
  }

  // a[i][j]: rows 2i and 2i + 1 by columns 2j and 2j + 1
  template <int M, int N, bool DOWN, bool BOTH>
  static void step(float32x4_t (&a)[M / 2][N * 2], const Cells& left, const Cells& right, int k) {
    float32x4_t rows[M / 2];  // these stay, columns pass: 24 sums leave 8 registers
    UNROLL for (int i = 0; i < M / 2; i++) rows[i] = rows_of<DOWN, BOTH>(left, 2 * i, k);
    UNROLL for (int j = 0; j < N; j++) {
      const float* p = right.first + j * right.vector + k * right.cell;
      const float32x4_t x = vld1q_f32(p), next = BOTH ? vld1q_f32(p + right.cell) : vdupq_n_f32(0);
      const float32x4_t first = vzip1q_f32(x, next), second = vzip2q_f32(x, next);
      UNROLL for (int i = 0; i < M / 2; i++) {
        a[i][2 * j] = add(a[i][2 * j], rows[i], first);
        a[i][2 * j + 1] = add(a[i][2 * j + 1], rows[i], second);
      }
    }
  }

  // to[M][N vectors] = what is there in `from` (null: zeros) + sum over cells of left[M rows][cell] * right[cell][N vectors].
  // DOWN: the rows of a cell of `left` lie side by side; else the cells of a row do.
  template <int M, int N, bool DOWN>
  static void multiply(const Cells& left, const Cells& right, int cells, const float* from, float* to, int64_t ld) {
    float32x4_t a[M / 2][N * 2];
    UNROLL for (int i = 0; i < M / 2; i++) {
      UNROLL for (int j = 0; j < N; j++) {
        const int64_t at = 2 * i * ld + j * VL;
        const float32x4_t zero = vdupq_n_f32(0), x = from ? vld1q_f32(from + at) : zero;
        const float32x4_t y = from ? vld1q_f32(from + at + ld) : zero;
        a[i][2 * j] = lower(x, y), a[i][2 * j + 1] = upper(x, y);
      }
    }
    int k = 0;
    for (; k + 2 <= cells; k += 2) step<M, N, DOWN, true>(a, left, right, k);
    if (k < cells) step<M, N, DOWN, false>(a, left, right, k);
    UNROLL for (int i = 0; i < M / 2; i++) {
      UNROLL for (int j = 0; j < N; j++) {
        float* p = to + 2 * i * ld + j * VL;
        vst1q_f32(p, lower(a[i][2 * j], a[i][2 * j + 1])), vst1q_f32(p + ld, upper(a[i][2 * j], a[i][2 * j + 1]));
      }
    }
  }
};

}  // namespace
