// The backward pass of one key head: dq, dk, dv and the gradient of the sums given.
//
// With g' = g / m and l' = l - g'.o, the gradients of the sums of w v and of w: dw_ij = g'_i.v_j + l'_i within a chunk; chunks
// before it are read through their sums (S, z), chunks behind it through theirs (dS, dz) = sum of phi(q_i) [g'_i, l'_i].  S grows
// with the positions and dS against them: a segment's S are made again from its mark and kept, transposed.
#pragma once
#include "forward.h"

namespace {

struct BackwardSpace {
  float *keys, *key_panels, *values, *value_panels, *queries, *grads, *weights, *grad_weights, *sum_panels;
  float *dq, *dk, *dv, *history;
  int64_t kept;  // floats of one S and z in the history
  BackwardSpace(const LinearCall& c, const Sizes& s, Arena& arena)
      : keys(arena.take(CHUNK * s.ldF)), key_panels(arena.take(CHUNK * s.F)), values(arena.take(CHUNK * s.ldV)),
        value_panels(arena.take(CHUNK * s.V)), queries(arena.take(CHUNK * s.ldF)), grads(arena.take(CHUNK * s.ldV)),
        weights(arena.take(CHUNK * CHUNK)), grad_weights(arena.take(CHUNK * CHUNK)),
        sum_panels(arena.take((int64_t)s.ldF * s.V * (c.direction ? 1 : BUNCH))), dq(arena.take(VL * s.ldF)), dk(arena.take((CHUNK + KM) * s.ldF)),
        dv(arena.take((CHUNK + KM) * s.ldV)), history(nullptr),
        kept((int64_t)(up(s.V) + KM) * s.ldF + s.ldF) {
    history = arena.take(kept * BUNCH * (c.direction ? c.segment : 1));
  }
};

// S transposed [V][ldF] and z behind it, from a mark.
inline void load_transposed(const float* packed, const Sizes& s, int64_t constant, float* to) {
  clear(to, (int64_t)(up(s.V) + KM) * s.ldF + s.ldF);
  float* z = to + (int64_t)(up(s.V) + KM) * s.ldF;
  for (int f = 0; f < s.F; f++) {
    const float* row = packed_row(packed, s, f, constant);
    for (int v = 0; v < s.V; v++) to[(int64_t)v * s.ldF + f] = row[v];
    z[f] = row[s.V];
  }
}

// g' and l' of queries [first, first + count) of head h.
void pack_grads(const LinearCall& c, const Sizes& s, int64_t b, int64_t h, int first, int count, int ahead,
                float* grads, float* grad_mass) {
  const Rows g = rows_of(c.grad_out, b, h, c.N, c.V, c.direction), out = rows_of(c.out, b, h, c.N, c.V, c.direction);
  const Line<float> mass = line_of(c.mass + (b * c.H + h) * c.N, 1, c.N, c.direction);
  const Line<const float> more = line_of(c.grad_mass ? c.grad_mass + (b * c.H + h) * c.N : nullptr, 1, c.N, c.direction);
  for (int j0 = 0; j0 < CHUNK; j0 += VL) {
    vf along[VL], added = {};
    for (int j = 0; j < VL; j++, grads += s.ldV) {
      const int at = first + j0 + j;
      along[j] = vf{};
      if (j0 + j >= count || !(mass[at] > 0)) {
        clear(grads, s.ldV);
        continue;
      }
      prefetch<0>(g, at + ahead, at + ahead + 1);
      prefetch<0>(out, at + ahead, at + ahead + 1);
      const float inverse = 1 / mass[at];
      for (int d = 0; d < s.ldV; d += VL) {
        const int columns = s.V - d;
        const vf x = columns > 0 ? g.get(at, d) * inverse : vf{};
        if (columns > 0) along[j] += x * out.get(at, d);
        store(grads + d, x);
      }
      if (more.first) added[j] = more[at];
    }
    store_any(grad_mass + j0, added - sums_of(along));
  }
}

// What the queries of head h in a chunk give: dq to its place; to dk and dv of the chunk's own keys (if `own`); to dS and dz.
void backward_queries(const LinearCall& c, const Sizes& s, int64_t b, int64_t h, int first, int count, bool own,
                      const float* before, const BackwardSpace& w, const Sums& grad) {
  const Rows q = rows_of(c.q, b, h, c.N, c.D, c.direction), dq = rows_of(c.dq, b, h, c.N, c.D, c.direction);
  const Line<const uint8_t> all_seen = {nullptr, 0};
  const float* z = before + (int64_t)(up(s.V) + KM) * s.ldF;
  float inverse[CHUNK], grad_mass[CHUNK];
  const int ahead = own ? -CHUNK : CHUNK;
  pack_features(c, s, q, all_seen, first, count, ahead, c.scale, w.queries, inverse);
  pack_grads(c, s, b, h, first, count, ahead, w.grads, grad_mass);
  const int rows = up(count);
  for (int i0 = 0; i0 < rows; i0 += VL) {
    float *tile = w.weights + i0 * CHUNK, *grad_tile = w.grad_weights + i0 * CHUNK;
    for (int i = 0; i < VL; i++)
      for (int d = 0; d < s.ldF; d += VL) store(w.dq + i * s.ldF + d, load(z + d) * grad_mass[i0 + i]);
    if (own) {
      score_rows(w.queries + i0 * s.ldF, s.ldF, w.key_panels, i0, s.F, tile);
      score_rows(w.grads + i0 * s.ldV, s.ldV, w.value_panels, i0, s.V, grad_tile);
      for (int i = 0; i < VL; i++)
        for (int p = 0; p <= i0; p += VL)
          store(grad_tile + i * CHUNK + p, load(grad_tile + i * CHUNK + p) + grad_mass[i0 + i]);
      hide_later(grad_tile, i0);
      for (int p = i0 + VL; p < smaller(CHUNK, i0 + VL + SPARE); p += VL)  // what the products behind read beyond the diagonal
        for (int i = 0; i < VL; i++) store(tile + i * CHUNK + p, vf{}), store(grad_tile + i * CHUNK + p, vf{});
      weigh(VL, grad_tile, CHUNK, i0 + VL, w.keys, s.ldF, w.dq);
    }
    weigh(VL, w.grads + i0 * s.ldV, s.ldV, s.V, before, s.ldF, w.dq);
    for (int i = 0; i < VL && i0 + i < count; i++)
      write_gradient(c, s, w.queries + (i0 + i) * s.ldF, w.dq + i * s.ldF, inverse[i0 + i], c.scale, dq, first + i0 + i);
  }
  if (own) {
    gather_all(rows, w.grad_weights, CHUNK, w.queries, s.ldF, rows, true, w.dk);
    gather_all(rows, w.weights, CHUNK, w.grads, s.ldV, rows, true, w.dv);
  }
  gather_all(s.F, w.queries, s.ldF, w.grads, s.ldV, rows, false, grad.S);
  add_rows(w.queries, s.ldF, count, grad_mass, grad.z);
}

// dk and dv of the chunk's keys from the queries behind it: phi'(k) (dS v + dz) and phi(k) dS; `panels` are those of dS.
void backward_keys(const Sizes& s, int count, const BackwardSpace& w, const Sums& grad, const float* panels) {
  const int rows = up(count);
  for (int i0 = 0; i0 < rows; i0 += RM) {
    score(w.values + i0 * s.ldV, s.ldV, panels, s.ldF / VL, s.V, w.dk + i0 * s.ldF, s.ldF);
    for (int i = i0; i < i0 + RM; i++)
      for (int d = 0; d < s.ldF; d += VL) store(w.dk + i * s.ldF + d, load(w.dk + i * s.ldF + d) + load(grad.z + d));
  }
  clear(w.dv, (int64_t)rows * s.ldV);
  weigh(rows, w.keys, s.ldF, s.F, grad.S, s.ldV, w.dv);
}

inline void pack_sums(const Sizes& s, const Sums& grad, float* panels) {
  pack_panels<Floats>(floats_as_rows(grad.S, s.ldV, s.F, s.V), 0, s.ldF / VL, nullptr, 1, panels);
}

void write_keys(const LinearCall& c, const Sizes& s, int64_t b, int64_t g, int first, int count, const float* inverse,
                const BackwardSpace& w) {
  const Rows dk = rows_of(c.dk, b, g, c.M, c.D, c.direction), dv = rows_of(c.dv, b, g, c.M, c.V, c.direction);
  const Line<const uint8_t> mask =
      line_of(c.key_mask ? c.key_mask + b * c.mask_batch : nullptr, c.mask_key, c.M, c.direction);
  for (int j = 0; j < count; j++) {
    const int at = first + j;
    if (mask.first && !mask[at]) {
      memset(dk.at(at), 0, s.D * (dk.half ? 2 : 4));
      memset(dv.at(at), 0, s.V * (dv.half ? 2 : 4));
      continue;
    }
    write_gradient(c, s, w.keys + j * s.ldF, w.dk + j * s.ldF, inverse[j], 1, dk, at);
    for (int d = 0; d < s.V; d += VL) put(dv, at, d, load(w.dv + j * s.ldV + d));
  }
}

// A segment's sums S from its mark, transposed, one after each of its chunks but the last.
void make_history(const LinearCall& c, const Sizes& s, int64_t b, int64_t g, int start, int stop, const BackwardSpace& w,
                  float* history) {
  const int64_t all_sums = c.B * c.G * s.F * (s.V + 1);
  float inverse[CHUNK];
  load_transposed(packed_at(c, s, c.marks + start / c.segment * all_sums, b, g), s, c.constant, history);
  for (int i = start; i + 1 < stop; i++) {
    float* next = history + (i + 1 - start) * w.kept;
    memcpy(next, next - w.kept, w.kept * sizeof(float));
    load_keys(c, s, b, g, i * CHUNK, CHUNK, CHUNK, w.keys, w.values, inverse);
    gather_all(s.V, w.values, s.ldV, w.keys, s.ldF, CHUNK, false, next);
    add_rows(w.keys, s.ldF, CHUNK, nullptr, next + (int64_t)(up(s.V) + KM) * s.ldF);
  }
}

// Segment by segment from the last; the heads of a bunch side by side.
void backward_causal(const LinearCall& c, int64_t b, int64_t g0, int64_t g1, float* workspace) {
  const Sizes s(c);
  Arena arena{workspace};
  const BackwardSpace w(c, s, arena);
  const int64_t heads = c.H / c.G;
  float inverse[CHUNK];
  Sums grads[BUNCH];
  start_sums(c, s, c.grad_total, b, g0, g1, arena, grads);
  const int chunks = ((int)c.M + CHUNK - 1) / CHUNK, segment = (int)c.segment;
  for (int start = (chunks - 1) / segment * segment; start >= 0; start -= segment) {
    const int stop = smaller(chunks, start + segment);
    for (int64_t g = g0; g < g1; g++) make_history(c, s, b, g, start, stop, w, w.history + (g - g0) * segment * w.kept);
    for (int i = stop - 1; i >= start; i--)
      for (int64_t g = g0; g < g1; g++) {
        const int first = i * CHUNK, count = smaller(CHUNK, (int)c.M - first);
        const Sums& grad = grads[g - g0];
        const float* before = w.history + ((g - g0) * segment + i - start) * w.kept;
        load_keys(c, s, b, g, first, count, -CHUNK, w.keys, w.values, inverse);
        pack_panels<Floats>(floats_as_rows(w.keys, s.ldF, CHUNK, s.F), 0, CHUNK / VL, nullptr, 1, w.key_panels);
        pack_panels<Floats>(floats_as_rows(w.values, s.ldV, CHUNK, s.V), 0, CHUNK / VL, nullptr, 1, w.value_panels);
        pack_sums(s, grad, w.sum_panels);
        backward_keys(s, count, w, grad, w.sum_panels);
        for (int64_t h = g * heads; h < (g + 1) * heads; h++)
          backward_queries(c, s, b, h, first, count, true, before, w, grad);
        write_keys(c, s, b, g, first, count, inverse, w);
      }
  }
  for (int64_t g = g0; g < g1; g++) store_sums(grads[g - g0], s, c.constant, packed_at(c, s, c.grad_start, b, g));
}

// All queries, then all keys.
void backward_whole(const LinearCall& c, int64_t b, int64_t g0, int64_t g1, float* workspace) {
  const Sizes s(c);
  Arena arena{workspace};
  const BackwardSpace w(c, s, arena);
  const int64_t heads = c.H / c.G;
  const int64_t panels = (int64_t)s.ldF * s.V;
  float inverse[CHUNK];
  Sums grads[BUNCH];
  start_sums(c, s, c.grad_total, b, g0, g1, arena, grads);
  for (int64_t g = g0; g < g1; g++)
    load_transposed(packed_at(c, s, c.total, b, g), s, c.constant, w.history + (g - g0) * w.kept);
  for (int first = 0; first < c.N; first += CHUNK)
    for (int64_t h = g0 * heads; h < g1 * heads; h++) {
      const int64_t at = h / heads - g0;
      backward_queries(c, s, b, h, first, smaller(CHUNK, (int)c.N - first), false, w.history + at * w.kept, w, grads[at]);
    }
  for (int64_t g = g0; g < g1; g++) pack_sums(s, grads[g - g0], w.sum_panels + (g - g0) * panels);
  for (int first = 0; first < c.M; first += CHUNK)
    for (int64_t g = g0; g < g1; g++) {
      const int count = smaller(CHUNK, (int)c.M - first);
      load_keys(c, s, b, g, first, count, CHUNK, w.keys, w.values, inverse);
      backward_keys(s, count, w, grads[g - g0], w.sum_panels + (g - g0) * panels);
      write_keys(c, s, b, g, first, count, inverse, w);
    }
  for (int64_t g = g0; g < g1; g++) store_sums(grads[g - g0], s, c.constant, packed_at(c, s, c.grad_start, b, g));
}

}  // namespace
