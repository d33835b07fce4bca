// How a call is cut into tasks: residue classes, tiles of queries, chunks of keys, and the workspace of one thread.
#pragma once
#include "band.h"
#include "products.h"

namespace {

// Towards minus infinity, and towards infinity; most bands have step 1, and rows ask often.
inline int64_t divided(int64_t a, int64_t b) { return b == 1 ? a : a >= 0 ? a / b : -((b - 1 - a) / b); }
inline int64_t divided_up(int64_t a, int64_t b) { return b == 1 ? a : a > 0 ? (a + b - 1) / b : -(-a / b); }

inline int count_from(int64_t first, int64_t end, int64_t step) {
  return first >= end ? 0 : (int)((end - first + step - 1) / step);
}

// One residue class of a band: a band problem of step 1 over its own rows.  Row i sees keys i - left ... i + right that
// exist, but not i + hole_from ... i + hole_to - 1, not columns, and no key of another run.  from and to never fall;
// where from is not below to, the row sees nothing.
struct Fold {
  int64_t first_query, first_key, step, q_offset, num_first, num_global, M;
  int queries, keys, left, right, hole_from, hole_to;
  const int32_t *starts, *stops;
  bool past, plain;  // plain: all keys are one run, without columns and global rows

  int64_t row_at(int i) const { return first_query + step * i; }
  int64_t start_of(int i) const { return starts ? starts[row_at(i)] : 0; }
  int64_t stop_of(int i) const { return stops ? stops[row_at(i)] : M; }
  bool is_absent(int i) const { return starts && starts[row_at(i)] == stops[row_at(i)]; }
  bool is_global(int i) const { return num_global && row_at(i) + q_offset - start_of(i) < num_global; }
  int key_at(int64_t j) const { return (int)larger<int64_t>(0, divided_up(j - first_key, step)); }  // the first key from j on
  int from(int i) const {
    int low = larger(0, i - left);
    if (!plain) low = larger(low, key_at(start_of(i) + num_first));
    return smaller(keys, low);
  }
  int to(int i) const {
    int high = i + right + 1;
    if (!plain) high = is_global(i) ? key_at(start_of(i)) : smaller(high, key_at(stop_of(i)));
    return larger(0, smaller(keys, high));
  }
  // The rows that may see keys [j, end): of their runs, and within the band.
  int rows_from(int j) const {
    const int band = j - right;
    return starts ? larger(band, (int)divided_up(starts[first_key + step * j] - first_query, step)) : band;
  }
  int rows_to(int end) const {
    const int band = end + left;
    return stops ? smaller(band, (int)divided_up(stops[first_key + step * (end - 1)] - first_query, step)) : band;
  }
  // How many columns row i sees.
  int columns_of(int i) const {
    const int64_t start = start_of(i), most = smaller(num_first, stop_of(i) - start);
    if (is_global(i)) return 0;
    return (int)larger<int64_t>(0, past ? smaller(most, row_at(i) + q_offset - start + 1) : most);
  }
  bool is_column(int j) const {
    const int64_t at = first_key + step * j;
    return num_first && (starts ? at - starts[at] < smaller<int64_t>(num_first, stops[at] - starts[at]) : at < num_first);
  }
};

inline Fold fold_of(const Call& c, const Band& band, int64_t residue, int64_t b) {
  Fold f;
  f.step = band.step, f.q_offset = c.q_offset, f.num_first = c.num_first, f.num_global = c.num_global, f.M = c.M;
  f.starts = c.starts ? c.starts + b * c.N : nullptr, f.stops = c.stops ? c.stops + b * c.N : nullptr;
  f.past = c.first_is_past, f.plain = !c.starts && !c.num_first && !c.num_global;
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

inline Fold fold_of(const Whole& whole) {
  Fold f = {};
  f.first_query = whole.first_row, f.first_key = whole.first_key, f.step = 1;
  f.queries = (int)whole.rows, f.keys = (int)whole.keys;
  f.left = f.right = (1 << 30) - 1, f.hole_from = f.hole_to = 0;
  f.plain = true;
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

const int PAD = 16;    // numbers before and behind a row of offset biases
const int BLOCK = 64;  // queries of one step of the backward

struct Plan {
  const Call& call;
  const Band band;
  bool accumulate;        // an earlier band has written the outputs
  bool last;              // no band comes after it: sinks enter
  bool whole = false;     // global rows, which see all keys of their run
  bool columns = false;   // the first keys of each run are taken along
  int64_t width;          // keys that a row sees, at most
  int queries, keys;      // of the largest class
  int D, V;               // row sizes in whole vectors
  int tile = 512;         // queries of a task
  int chunk = 0;          // keys of a chunk, where a tile is swept over several; else 0
  int span;               // keys packed at once
  int tiles;              // of the largest class

  Plan(const Call& c, const Band& b, bool add, bool end)
      : call(c), band(b), accumulate(add), last(end), width(larger<int64_t>(0, b.hi - b.lo + 1)) {
    queries = (int)((c.N + band.step - 1) / band.step);
    keys = (int)((c.M + band.step - 1) / band.step);
    D = up((int)c.D), V = up((int)c.V);
  }
  Plan(const Call& c, int64_t which) : Plan(c, c.bands[which], which > 0, which + 1 == c.num_bands) {
    columns = c.num_first && which == 0;
  }
  bool bent() const { return call.softcap || band.bias; }  // scores are changed before the softmax
  int num_columns() const { return columns ? up((int)call.num_first) : 0; }  // in whole vectors
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

// The band of what global rows see: everything.
inline Band everything(const Call& c) {
  Band band = c.bands[0];
  band.step = 1, band.lo = -(c.M - 1), band.hi = c.N - 1, band.hole_lo = 1, band.hole_hi = 0;
  return band;
}

inline Plan forward_plan(const Call& c, Plan p) {
  const int room = p.room(2);
  const int64_t beyond = p.width + 2 * VL, fitting = p.keys <= room ? 512 : (room - beyond) & -BLOCK;
  if (fitting < 192) p.chunk = room;
  p.settle(c.B * c.H, 128, p.chunk ? 512 : fitting);
  return p;
}

// Tiles of a backward share no key with the next but one, so that even tiles may write and odd ones then add.  Where
// that would need too wide a tile, square blocks of queries and keys take turns.
inline Plan backward_plan(const Call& c, Plan p) {
  const int64_t least = (p.width + 2 * VL + BLOCK - 1) & -BLOCK, most = larger<int64_t>(512, least);
  if (smaller<int64_t>(p.keys, most + least) > p.room(1)) p.chunk = 512;
  p.settle(c.B * c.G, p.chunk ? 128 : larger<int64_t>(128, least), p.chunk ? 512 : most);
  return p;
}

inline Plan whole_plan(const Call& c, bool backward) {
  Plan p(c, everything(c), true, true);
  p.whole = true, p.queries = 0;
  for (int64_t i = 0; i < c.num_wholes; i++) p.queries = larger(p.queries, (int)c.wholes[i].rows);
  if (!backward) return forward_plan(c, p);
  p.chunk = 512;
  p.settle(c.B * c.G, 128, 512);
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
  // lanes of queries: all ones where the pair with key j is kept
  vi kept(vu row_hashes, int j) const { return (vi)(mix((first_key + (uint32_t)j * key_step) ^ row_hashes) >= threshold); }
  // lanes of keys j, j + 1, ...
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
