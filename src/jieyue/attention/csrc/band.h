// The door of the library: plain C structures, filled by engines/native.py and read by every build of the kernel.
// With runs, row i sees keys starts[i] <= j < stops[i] only (N = M, q_offset = 0; starts = stops = i where it sees none), without,
// all.  The first num_first keys from there on are columns: bands show keys behind them, and row i sees column c where
// first_is_past is 0 or c <= i + q_offset - starts[i].  Rows less than num_global behind starts[i] are seen to by `wholes` alone.
// Bands come ordered by step; where there are columns the first of them has step 1.
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

// lo, hi and the hole count steps and are finite: the caller clips them to the offsets that exist; lo > hi shows nothing.
// The offset bias of row i and key j stands at bias[h * bias_head + (N - 1 - i + j) / step], times log2 e, and its gradient
// goes to bias_grad[h * bias_columns + the same]; 16 more numbers lie before and behind each row.  Null = none.
struct Band {
  int64_t step, lo, hi, hole_lo, hole_hi;
  const float* bias;
  float* bias_grad;
  int64_t bias_head, bias_columns;
};

// Runs work(data) once on each of `threads` threads, and returns when all are done: the signature of GOMP_parallel.
typedef void (*Parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

// `rows` queries from first_row on that see `keys` keys from first_key on: what global rows see.
struct Whole {
  int64_t batch, first_row, rows, first_key, keys;
};

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
  const int32_t *starts, *stops;   // [B, N] contiguous, or null
  int64_t num_first, first_is_past, num_global;
  const Whole* wholes;
  int64_t num_wholes;
  const float* sinks;              // [H]: one logit more in each row's sum, without a value; null = none
  int32_t* nonfinite;              // set to 1 where a result is NaN or infinite; may be null
  float* shared;                   // backward: jieyue_band_shared(...) floats, 64-byte aligned
  float* workspace;                // threads x jieyue_band_workspace(...) floats, 64-byte aligned
  int64_t threads;
  Parallel parallel;               // null: one thread
  float scale, kept_scale;         // of the scores; of the weights that dropout keeps: 1 / (1 - p)
  float softcap;                   // scores x become softcap tanh(x / softcap); 0 = as they are
  uint32_t threshold, seed_low, seed_high;  // of dropout: floor(p 2^32), 0 for none
};

// What one build (one instruction set) offers.
struct Kernel {
  const char* name;
  int64_t (*workspace)(const Call*, int backward);  // floats per thread, independent of N and M once these are large
  int64_t (*shared)(const Call*);                   // floats of what tasks of a backward leave to be added up
  void (*forward)(const Call*);
  void (*backward)(const Call*);
  void (*delta)(const Call*);                       // delta = row sums of grad_out * out; reads nothing else
};
}
