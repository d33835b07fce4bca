// The door of the library: a plain C structure, filled by linear/native.py and read by every build of the kernel.
//
// B batch, H query heads, G key heads (H % G == 0, query head h reads key head h / (H / G)), N queries, M keys (N = M unless
// direction is 0), D size of a query or key, V size of a value, F = D + constant features.  Sums lie as [B, G, F, V + 1]: for each
// feature, the constant one first, its sum of values and its sum of ones.
#pragma once
#include "../../attention/csrc/band.h"

extern "C" {

enum Map { IDENTITY = 0, ELU = 1, RELU = 2, COSINE = 3 };

struct LinearCall {
  int64_t B, H, G, N, M, D, V;
  int64_t direction;               // 1: keys up to the query, -1: from the query on, 0: all
  int64_t map, constant;           // b; whether the weights have a constant term
  int64_t segment;                 // chunks of 64 positions between two marks
  View q, k, v, out;
  View grad_out, dq, dk, dv;       // backward only
  float* mass;                     // [B, H, N] contiguous: sums of weights; forward writes them
  const float* grad_mass;          // [B, H, N] contiguous or null
  const float* floor;              // the sum of weights below which a query saw nothing; null = 0
  int64_t floor_batch, floor_row;
  const uint8_t* key_mask;         // non-zero = keep; null = keep all
  int64_t mask_batch, mask_key;    // its strides in bytes
  const float* start;              // sums before the first key; null = none
  float* total;                    // sums after the last key: forward writes; backward of direction 0 reads
  float* marks;                    // [segments, B, G, F, V + 1]: forward writes (null: does not), backward reads
  const float* grad_total;         // gradient of total; null = none
  float* grad_start;               // gradient of start: backward writes
  float scale, root;               // of the queries; of the constant term
  float* workspace;                // threads x workspace(...) floats, 64-byte aligned
  int64_t threads;
  Parallel parallel;               // null: one thread
};

struct LinearKernel {
  const char* name;
  int64_t (*workspace)(const LinearCall*, int backward);  // floats per thread, independent of N and M
  void (*forward)(const LinearCall*);
  void (*backward)(const LinearCall*);
};
}
