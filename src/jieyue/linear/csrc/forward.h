// The forward pass of one key head: out_i = sum of w_ij v_j / m_i, and the sums after all keys.
#pragma once
#include "head.h"

namespace {

struct ForwardSpace {
  float *keys, *panels, *values, *queries, *weights, *out;
  ForwardSpace(const Sizes& s, Arena& arena)
      : keys(arena.take(CHUNK * s.ldF)), panels(arena.take(CHUNK * s.F)), values(arena.take(CHUNK * s.ldV)),
        queries(arena.take(CHUNK * s.ldF)), weights(arena.take(VL * CHUNK)), out(arena.take(VL * s.ldV)) {}
};

// Zeros where key j of the chunk comes after the query, in VL rows from `row` on: only their last panel holds such keys.
inline void hide_later(float* tile, int row) {
  for (int i = 0; i < VL; i++) {
    float* last = tile + i * CHUNK + row;
    store(last, lanes() <= i ? load(last) : vf{});
  }
}

// The scores of VL rows from row `i0` on with the panels up to their own.
inline void score_rows(const float* rows, int64_t ld, const float* panels, int i0, int depth, float* tile) {
  for (int i = 0; i < VL; i += RM) score(rows + i * ld, ld, panels, i0 / VL + 1, depth, tile + i * CHUNK, CHUNK);
  hide_later(tile, i0);
}

// Queries [first, first + count) of head h, of which those of the chunk's keys up to the query are read if `own`.
void read_queries(const LinearCall& c, const Sizes& s, int64_t b, int64_t h, int first, int count, bool own,
                  const ForwardSpace& w, const Sums& sums) {
  const Rows q = rows_of(c.q, b, h, c.N, c.D, c.direction), out = rows_of(c.out, b, h, c.N, c.V, c.direction);
  const Line<float> mass = line_of(c.mass + (b * c.H + h) * c.N, 1, c.N, c.direction);
  const Line<const float> floor =
      line_of(c.floor ? c.floor + b * c.floor_batch : nullptr, c.floor_row, c.N, c.direction);
  const Line<const uint8_t> all_seen = {nullptr, 0};
  float inverse[CHUNK];
  pack_features(c, s, q, all_seen, first, count, CHUNK, c.scale, w.queries, inverse);
  for (int i0 = 0; i0 < count; i0 += VL) {
    const float* rows = w.queries + i0 * s.ldF;
    vf parts[VL];
    clear(w.out, VL * s.ldV);
    if (own) {
      score_rows(rows, s.ldF, w.panels, i0, s.F, w.weights);
      weigh(VL, w.weights, CHUNK, i0 + VL, w.values, s.ldV, w.out);
    }
    weigh(VL, rows, s.ldF, s.F, sums.S, s.ldV, w.out);
    for (int i = 0; i < VL; i++) {
      vf part = {};
      for (int d = 0; d < s.ldF; d += VL) part += load(rows + i * s.ldF + d) * load(sums.z + d);
      for (int p = 0; own && p <= i0; p += VL) part += load(w.weights + i * CHUNK + p);
      parts[i] = part;
    }
    const vf m = sums_of(parts);
    for (int i = 0; i < VL && i0 + i < count; i++) {
      const int at = first + i0 + i;
      const bool nothing = m[i] <= (floor.first ? floor[at] : 0.f);
      mass[at] = nothing ? 0 : m[i];
      const float factor = nothing ? 0 : 1 / m[i];
      for (int d = 0; d < s.V; d += VL) put(out, at, d, load(w.out + i * s.ldV + d) * factor);
    }
  }
}

inline void load_keys(const LinearCall& c, const Sizes& s, int64_t b, int64_t g, int first, int count, int ahead,
                      float* keys, float* values, float* inverse) {
  const Line<const uint8_t> mask =
      line_of(c.key_mask ? c.key_mask + b * c.mask_batch : nullptr, c.mask_key, c.M, c.direction);
  pack_features(c, s, rows_of(c.k, b, g, c.M, c.D, c.direction), mask, first, count, ahead, 1, keys, inverse);
  pack_values(s, rows_of(c.v, b, g, c.M, c.V, c.direction), mask, first, count, ahead, values);
}

inline void add_keys(const Sizes& s, int count, const float* keys, const float* values, const Sums& sums) {
  gather_all(s.F, keys, s.ldF, values, s.ldV, count, false, sums.S);
  add_rows(keys, s.ldF, count, nullptr, sums.z);
}

inline float* packed_at(const LinearCall& c, const Sizes& s, float* packed, int64_t b, int64_t g) {
  return packed ? packed + (b * c.G + g) * s.F * (s.V + 1) : nullptr;
}

// Sums of the heads of a bunch, from those before the first key.
inline void start_sums(const LinearCall& c, const Sizes& s, const float* packed, int64_t b, int64_t g0, int64_t g1,
                       Arena& arena, Sums* sums) {
  for (int64_t g = g0; g < g1; g++) {
    sums[g - g0] = Sums(s, arena);
    load_sums(packed_at(c, s, (float*)packed, b, g), s, c.constant, sums[g - g0]);
  }
}

// Chunk by chunk; the heads of a bunch side by side, as they lie in [B, N, H, D] memory.
void forward_causal(const LinearCall& c, int64_t b, int64_t g0, int64_t g1, float* workspace) {
  const Sizes s(c);
  Arena arena{workspace};
  const ForwardSpace w(s, arena);
  const int64_t all_sums = c.B * c.G * s.F * (s.V + 1), heads = c.H / c.G;
  float inverse[CHUNK];
  Sums sums[BUNCH];
  start_sums(c, s, c.start, b, g0, g1, arena, sums);
  for (int first = 0, number = 0; first < c.M; first += CHUNK, number++) {
    const int count = smaller(CHUNK, (int)c.M - first);
    for (int64_t g = g0; g < g1; g++) {
      const Sums& before = sums[g - g0];
      if (c.marks && number % c.segment == 0)
        store_sums(before, s, c.constant, packed_at(c, s, c.marks + number / c.segment * all_sums, b, g));
      load_keys(c, s, b, g, first, count, CHUNK, w.keys, w.values, inverse);
      pack_panels<Floats>(floats_as_rows(w.keys, s.ldF, CHUNK, s.F), 0, CHUNK / VL, nullptr, 1, w.panels);
      for (int64_t h = g * heads; h < (g + 1) * heads; h++) read_queries(c, s, b, h, first, count, true, w, before);
      add_keys(s, count, w.keys, w.values, before);
    }
  }
  for (int64_t g = g0; g < g1; g++) store_sums(sums[g - g0], s, c.constant, packed_at(c, s, c.total, b, g));
}

// All keys, then all queries.
void forward_whole(const LinearCall& c, int64_t b, int64_t g0, int64_t g1, float* workspace) {
  const Sizes s(c);
  Arena arena{workspace};
  const ForwardSpace w(s, arena);
  const int64_t heads = c.H / c.G;
  float inverse[CHUNK];
  Sums sums[BUNCH];
  start_sums(c, s, c.start, b, g0, g1, arena, sums);
  for (int first = 0; first < c.M; first += CHUNK)
    for (int64_t g = g0; g < g1; g++) {
      const int count = smaller(CHUNK, (int)c.M - first);
      load_keys(c, s, b, g, first, count, CHUNK, w.keys, w.values, inverse);
      add_keys(s, count, w.keys, w.values, sums[g - g0]);
    }
  for (int first = 0; first < c.N; first += CHUNK)
    for (int64_t h = g0 * heads; h < g1 * heads; h++)
      read_queries(c, s, b, h, first, smaller(CHUNK, (int)c.N - first), false, w, sums[h / heads - g0]);
  for (int64_t g = g0; g < g1; g++) store_sums(sums[g - g0], s, c.constant, packed_at(c, s, c.total, b, g));
}

}  // namespace
