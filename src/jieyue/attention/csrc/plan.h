// How a call is cut into tasks: residue classes, tiles of queries, chunks of keys, and the workspace of one thread.
#pragma once
#include "band.h"
#include "products.h"

namespace {

// One residue class of a band: a band problem of step 1 over its own rows.  Row i sees keys i - left ... i + right that
// exist, but not i + hole_from ... i + hole_to - 1.
struct Fold {
  int64_t first_query, first_key;
  int queries, keys, left, right, hole_from, hole_to;
  int from(int i) const { return smaller(keys, larger(0, i - left)); }
  int to(int i) const { return larger(0, smaller(keys, i + right + 1)); }
};

inline int count_from(int64_t first, int64_t end, int64_t step) {
  return first >= end ? 0 : (int)((end - first + step - 1) / step);
}

inline Fold fold_of(const Call& c, const Band& band, int64_t residue) {
  Fold f;
  f.first_key = residue;
  f.first_query = ((residue - c.q_offset) % band.step + band.step) % band.step;
  f.queries = count_from(f.first_query, c.N, band.step);
  f.keys = count_from(f.first_key, c.M, band.step);
  const int64_t shift = (f.first_query + c.q_offset - f.first_key) / band.step;
  f.left = (int)(band.hi - shift);
  f.right = (int)(shift - band.lo);
  f.hole_from = (int)(shift - band.hole_hi);
  f.hole_to = (int)(shift - band.hole_lo) + 1;
  return f;
}

// A workspace handed out in pieces of whole vectors; without memory it only counts.
struct Arena {
  float* base;
  int64_t used = 0;
  float* take(int64_t floats) {
    float* p = base ? base + used : nullptr;
    used += (floats + 15) / 16 * 16;
    return p;
  }
};

// Whether a call is computed in pairs of bfloat16: where this build has them and no row ends in half a pair.  Scores are
// scaled after the product then, so that a hidden one, minus infinity, stays so only times a positive scale.
inline bool in_pairs(const Call& c) { return PAIRS && c.q.half && c.D % 2 == 0 && c.V % 2 == 0 && c.scale > 0; }

// A leading dimension of at least `floats`, an odd number of cache lines, so that rows fall into different cache sets.
inline int64_t odd_lines(int64_t floats) { return ((floats + 15) / 16 | 1) * 16; }

const int BLOCK = 64;  // queries of one step of the backward

struct Plan {
  const Call& call;
  const Band& band;
  bool accumulate;        // an earlier band, or the caller, has written the outputs
  int64_t width;          // keys that a row sees, at most
  int queries, keys;      // of the largest class
  int D, V;               // row sizes in whole vectors
  int tile = 512;         // queries of a task
  int chunk = 0;          // keys of a chunk, where a tile is swept over several; else 0
  int span;               // keys packed at once
  int tiles;              // of the largest class

  Plan(const Call& c, int64_t which)
      : call(c), band(c.bands[which]), accumulate(c.accumulate || which), width(band.hi - band.lo + 1) {
    queries = (int)((c.N + band.step - 1) / band.step);
    keys = (int)((c.M + band.step - 1) / band.step);
    D = up((int)c.D), V = up((int)c.V);
  }
  // Keys of which `copies` packed rows fill a fair part of a second-level cache.
  int room(int copies) const { return larger(256, 128 * 1024 / copies / larger(64, larger(D, V)) & -BLOCK); }

  // Settles on tiles of at most `most` queries; halves them, not below `least`, while there are few tasks.  The shape
  // alone decides, never the number of threads: results do not depend on it.
  void settle(int64_t heads, int64_t least, int64_t most) {
    tile = (int)most;
    while (tile / 2 >= least && heads * band.step * ((queries + tile - 1) / tile) < 48) tile = tile / 2 & -BLOCK;
    tiles = larger(1, (queries + tile - 1) / tile);
    span = up(chunk ? smaller(chunk, keys) : (int)smaller<int64_t>(keys, tile + width + 2 * VL));
  }
};

inline Plan forward_plan(const Call& c, int64_t which) {
  Plan p(c, which);
  const int room = p.room(2);
  const int64_t beyond = p.width + 2 * VL, fitting = p.keys <= room ? 512 : (room - beyond) & -BLOCK;
  if (fitting < 192) p.chunk = room;
  p.settle(c.B * c.H, 128, p.chunk ? 512 : fitting);
  return p;
}

// Tiles of a backward share no key with the next but one, so that even tiles may write and odd ones then add.  Where
// that would need too wide a tile, square blocks of queries and keys take turns.
inline Plan backward_plan(const Call& c, int64_t which) {
  Plan p(c, which);
  const int64_t least = (p.width + 2 * VL + BLOCK - 1) & -BLOCK, most = larger<int64_t>(512, least);
  if (smaller<int64_t>(p.keys, most + least) > p.room(1)) p.chunk = 512;
  p.settle(c.B * c.G, p.chunk ? 128 : larger<int64_t>(128, least), p.chunk ? 512 : most);
  return p;
}

inline const uint8_t* mask_of(const Plan& plan, const Fold& fold, int64_t b) {
  const Call& c = plan.call;
  return c.key_mask ? c.key_mask + b * c.mask_batch + fold.first_key * c.mask_key : nullptr;
}

inline Rows rows_of(const View& x, int64_t b, int64_t h, int64_t first, int64_t step, int count, int64_t columns) {
  const int64_t bytes = x.half ? 2 : 4;
  return {(char*)x.data + (b * x.batch + h * x.head + first * x.row) * bytes, step * x.row * bytes, count, (int)columns,
          x.half != 0};
}

// bias[j] = 0 for a key that takes part, minus infinity for one that does not exist or is masked.
inline void fill_bias(const Plan& plan, const uint8_t* mask, int count, int from, int to, float* bias) {
  const int64_t stride = plan.band.step * plan.call.mask_key;
  for (int j = from; j < to; j++) bias[j - from] = j < count && mask[j * stride] ? 0.f : -INF;
}

// What dropout needs to know of a row: its hash and how the hash of the key moves from lane to lane.
struct Dice {
  uint32_t row, threshold, key_step, first_key;
  Dice(const Plan& plan, const Fold& fold, int64_t b, int64_t h) {
    const Call& c = plan.call;
    row = mix(c.seed_low ^ mix(c.seed_high + (uint32_t)(b * c.H + h)));
    threshold = c.threshold;
    key_step = (uint32_t)plan.band.step * 0x9E3779B9u;
    first_key = (uint32_t)fold.first_key * 0x9E3779B9u;
  }
  uint32_t of_row(int64_t i_abs) const { return mix(row + (uint32_t)i_abs); }
  // lanes of keys j, j + 1, ...: all ones where the pair is kept
  vi kept(uint32_t row_hash, int j) const {
    const vu key = (vu)lanes() * key_step + (first_key + (uint32_t)j * key_step);
    return (vi)(mix(key ^ row_hash) >= threshold);
  }
};

// The keys that rows [r, end) see within [low, high), per score tile, rounded to panels.  False when there are none.
inline bool visit_of(const Fold& fold, int r, int end, int low, int high, Visit& visit) {
  visit.first = 1 << 30, visit.last = 0;
  for (int i = 0; i < SUBS; i++) {
    const int a = r + i * QM, z = smaller(end, a + QM) - 1;
    const int from = a > z ? 0 : larger(low, fold.from(a)), to = a > z ? 0 : smaller(high, fold.to(z));
    visit.from[i] = visit.to[i] = low;
    if (from >= to) continue;
    visit.from[i] = down(from), visit.to[i] = up(to);
    visit.first = smaller(visit.first, visit.from[i]), visit.last = larger(visit.last, visit.to[i]);
  }
  if (visit.first >= visit.last) return false;
  for (int i = 0; i < SUBS; i++)
    if (visit.from[i] == visit.to[i]) visit.from[i] = visit.to[i] = visit.first;
  return true;
}

}  // namespace
