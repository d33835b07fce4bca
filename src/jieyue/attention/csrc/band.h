// The door of the library: plain C structures, filled by engines/native.py and read by every build of the kernel.
//
// B batch, H query heads, G key heads (H % G == 0, query head h reads key head h / (H / G)), N queries, M keys,
// D size of a query or key, V size of a value.  Query i sees key j of a band when d = i + q_offset - j is a multiple of
// step, lo <= d / step <= hi and not hole_lo <= d / step <= hole_hi, and when the key mask keeps j.
#pragma once
#include <stdint.h>

extern "C" {

// A tensor [batch, head, row, column] of float, or of bfloat16 where `half`: strides in elements, the last one is 1.
struct View {
  void* data;
  int64_t batch, head, row, half;
};

// lo, hi and the hole count steps and are finite: the caller clips them to the offsets that exist.
struct Band {
  int64_t step, lo, hi, hole_lo, hole_hi;
};

// Runs work(data) once on each of `threads` threads, and returns when all are done: the signature of GOMP_parallel.
typedef void (*Parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

struct Call {
  int64_t B, H, G, N, M, D, V, q_offset;
  View q, k, v, out;               // q, k, v of one type; forward writes out, or merges into it
  View grad_out, dq, dk, dv;       // backward only
  float* lse;                      // [B, H, N] contiguous; natural logarithm; -inf for a row without keys
  float* delta;                    // [B, H, N] contiguous; backward reads it, delta writes it
  const uint8_t* key_mask;         // non-zero = keep; null = keep all
  int64_t mask_batch, mask_key;    // its strides in bytes
  const Band* bands;               // disjoint
  int64_t num_bands;
  int64_t accumulate;              // 0: outputs are written; 1: merged into (out, lse), added to dq, dk, dv
  float scale, kept_scale;         // of the scores; of the weights that dropout keeps: 1 / (1 - p)
  uint32_t threshold, seed_low, seed_high;  // of dropout: floor(p 2^32), 0 for none
  float* workspace;                // threads x jieyue_band_workspace(...) floats, 64-byte aligned
  int64_t threads;
  Parallel parallel;               // null: one thread
};

// What one build (one instruction set) offers.
struct Kernel {
  const char* name;
  int64_t (*workspace)(const Call*, int backward);  // floats per thread, independent of N and M once these are large
  void (*forward)(const Call*);
  void (*backward)(const Call*);
  void (*delta)(const Call*);                       // delta = row sums of grad_out * out; reads nothing else
};
}
