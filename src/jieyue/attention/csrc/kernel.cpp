// One build of the kernel: the tasks of a call, shared out to threads.  Compiled once for each instruction set, with
// KERNEL naming the build; everything but that one symbol has internal linkage, so that builds never mix.
#include "gradients.h"

namespace {

// A set of tasks that may run in any order and share no output.
struct Phase {
  const Call* call;
  const Plan* plan;
  void (*run)(const Phase&, int64_t task, float* workspace);
  int64_t tasks, turn, blocks, floats;  // turn: colour or diagonal; blocks: tiles per class; floats: workspace of a thread
  float* slots = nullptr;  // of the tasks of this turn
  int64_t slot_floats = 0, slot_tasks = 0, slot_region = 0, mine[2] = {0, 0};
  int64_t next = 0, threads = 0;
};

void work(void* data) {
  Phase& phase = *(Phase*)data;
  float* workspace = phase.call->workspace + __atomic_fetch_add(&phase.threads, 1, __ATOMIC_RELAXED) * phase.floats;
  for (int64_t task; (task = __atomic_fetch_add(&phase.next, 1, __ATOMIC_RELAXED)) < phase.tasks;)
    phase.run(phase, task, workspace);
}

void run(Phase& phase) {
  const int64_t threads = smaller(phase.call->threads, phase.tasks);
  if (threads > 1 && phase.call->parallel)
    phase.call->parallel(work, &phase, (unsigned)threads, 0);
  else
    work(&phase);
}

template <class Space> int64_t space_of(const Plan& plan) {
  int64_t floats;
  Space(plan, Arena{nullptr}, &floats);
  return floats;
}

int64_t floats_of(const Plan& plan, int backward) {
  if (in_pairs(plan.call)) return backward ? space_of<BackwardSpace<Pairs>>(plan) : space_of<ForwardSpace<Pairs>>(plan);
  return backward ? space_of<BackwardSpace<Floats>>(plan) : space_of<ForwardSpace<Floats>>(plan);
}

Plan plan_of(const Call& c, int64_t which, int backward) {
  return backward ? backward_plan(c, Plan(c, which)) : forward_plan(c, Plan(c, which));
}

int64_t floats_of(const Call* call, int backward) {
  int64_t most = call->num_wholes ? floats_of(whole_plan(*call, backward), backward) : 0;
  for (int64_t i = 0; i < call->num_bands; i++) most = larger(most, floats_of(plan_of(*call, i, backward), backward));
  return most;
}

// How a backward is cut: into tiles of two colours, or into diagonals of square blocks; tasks of a turn.
struct Turns {
  int64_t turns, tiles, blocks, heads;
  explicit Turns(const Plan& plan)
      : tiles(plan.tiles), blocks(plan.chunk ? larger<int64_t>(plan.tiles, (plan.keys + plan.chunk - 1) / plan.chunk) : plan.tiles),
        heads(plan.call.B * plan.band.step * plan.call.G) {
    turns = plan.chunk ? blocks : smaller<int64_t>(2, blocks);
    chunked = plan.chunk;
  }
  int64_t mine(int64_t turn) const { return chunked ? blocks : (blocks + 1 - turn) / 2; }
  bool chunked;
};

// Floats of the slots of the first turn; those of later turns take as much again.
int64_t slots_of(const Plan& plan) {
  if (!plan.columns && !plan.band.bias_grad) return 0;
  return Turns(plan).heads * Turns(plan).mine(0) * Slot(plan, nullptr).floats(plan);
}

int64_t shared_of(const Call* call) {
  int64_t most = 0;
  for (int64_t i = 0; i < call->num_bands; i++) most = larger(most, 2 * slots_of(plan_of(*call, i, 1)));
  if (call->num_wholes && call->bands[0].bias_grad) {
    const Plan plan = whole_plan(*call, 1);
    most = larger(most, call->num_wholes * call->G * Slot(plan, nullptr).floats(plan));
  }
  return most;
}

// Heads vary fastest: in [B, N, H, D] memory they lie side by side.
void forward_task(const Phase& phase, int64_t x, float* workspace) {
  const Plan& plan = *phase.plan;
  const Call& c = plan.call;
  const int64_t h = x % c.H, tile = x / c.H % plan.tiles, residue = x / c.H / plan.tiles % plan.band.step;
  const int64_t b = x / c.H / plan.tiles / plan.band.step;
  const Fold fold = fold_of(c, plan.band, residue, b);
  const int i0 = (int)tile * plan.tile, i1 = smaller(fold.queries, i0 + plan.tile);
  if (i0 >= i1) return;
  (in_pairs(c) ? forward_tile<Pairs> : forward_tile<Floats>)(plan, fold, b, h, i0, i1, workspace);
}

// Global rows of one run and head.
void whole_forward_task(const Phase& phase, int64_t x, float* workspace) {
  const Plan& plan = *phase.plan;
  const Call& c = plan.call;
  const Whole& whole = c.wholes[x / c.H];
  const Fold fold = fold_of(whole);
  for (int i0 = 0; i0 < fold.queries; i0 += plan.tile)
    (in_pairs(c) ? forward_tile<Pairs> : forward_tile<Floats>)(plan, fold, whole.batch, x % c.H, i0,
                                                                smaller(fold.queries, i0 + plan.tile), workspace);
}

void run_piece(const Plan& plan, const Fold& fold, const Piece& piece, float* workspace) {
  (in_pairs(plan.call) ? backward_piece<Pairs> : backward_piece<Floats>)(plan, fold, piece, workspace);
}

// The slot of task x, cleared, with what it is about in its header; without memory where nothing is to be added up.
Slot begin_slot(const Phase& phase, int64_t x, const Fold& fold, const Piece& piece) {
  const Plan& plan = *phase.plan;
  const int64_t floats = phase.slot_floats;
  if (!floats) return Slot(plan, nullptr);
  Slot slot(plan, phase.slots + x * floats);
  memset(slot.data, 0, floats * sizeof(float));
  if (piece.i0 >= piece.i1) return slot;
  Slot::Header& header = slot.header();
  header.used = 1, header.b = piece.b, header.g = piece.g, header.incoming = -1;
  header.bias_at = bias_origin(plan.call, fold) - piece.bias_shift;
  if (piece.columns) {
    const int64_t start = fold.start_of(piece.i0);
    if (!fold.starts || start < fold.row_at(piece.i0)) header.incoming = start;
    header.incoming_at = plan.call.N + start - plan.tile - piece.i0, header.own_at = plan.call.N - plan.tile;
  }
  return slot;
}

// Tiles of one colour share no key.  Colour 0 writes; colour 1 writes too, but adds where a neighbour has been.
void coloured_task(const Phase& phase, int64_t x, float* workspace) {
  const Plan& plan = *phase.plan;
  const Call& c = plan.call;
  const int64_t g = x % c.G, tile = 2 * (x / c.G % phase.blocks) + phase.turn;
  const int64_t residue = x / c.G / phase.blocks % plan.band.step, b = x / c.G / phase.blocks / plan.band.step;
  const Fold fold = fold_of(c, plan.band, residue, b);
  const auto start = [&](int64_t t) { return (int)smaller<int64_t>(fold.queries, t * plan.tile); };
  const auto low = [&](int64_t t) { return start(t) < fold.queries ? fold.from(start(t)) : fold.keys; };
  const auto high = [&](int64_t t) { return start(t) ? larger(low(t - 1), fold.to(start(t) - 1)) : 0; };  // of tile t - 1
  const int i0 = start(tile), i1 = start(tile + 1);
  Piece piece = {b, g, i0, i1, low(tile), high(tile + 1), plan.accumulate, 0, fold.keys, plan.columns, Slot(plan, nullptr), fold.left};
  piece.slot = begin_slot(phase, x, fold, piece);
  if (i0 >= i1) {
    if (tile == 0 && !plan.accumulate) zero_keys(plan, fold, b, g, 0, fold.keys);
    return;
  }
  if (plan.accumulate) {
    piece.add_from = 0;
  } else {
    zero_keys(plan, fold, b, g, high(tile), piece.low);  // nobody's
    if (i1 == fold.queries) zero_keys(plan, fold, b, g, piece.high, fold.keys);
    if (phase.turn) piece.add_below = high(tile), piece.add_from = low(tile + 1);
  }
  run_piece(plan, fold, piece, workspace);
}

// Block t of queries meets block (t + turn) of keys: in one turn no two tasks share a query or a key of a head.
void diagonal_task(const Phase& phase, int64_t x, float* workspace) {
  const Plan& plan = *phase.plan;
  const Call& c = plan.call;
  const int64_t g = x % c.G, t = x / c.G % phase.blocks, residue = x / c.G / phase.blocks % plan.band.step;
  const int64_t b = x / c.G / phase.blocks / plan.band.step, other = (t + phase.turn) % phase.blocks;
  const Fold fold = fold_of(c, plan.band, residue, b);
  const int i0 = smaller(fold.queries, (int)t * plan.tile), i1 = smaller(fold.queries, i0 + plan.tile);
  const int low = smaller(fold.keys, (int)other * plan.chunk), high = smaller(fold.keys, low + plan.chunk);
  const bool seen = i0 < i1 && larger(low, fold.from(i0)) < smaller(high, fold.to(i1 - 1));
  const bool add = plan.accumulate || phase.turn > 0;
  Piece piece = {b, g, i0, i1, low, high, add, 0, add ? 0 : fold.keys, plan.columns && !phase.turn, Slot(plan, nullptr),
                 plan.tile - 1 - low + i0};
  piece.slot = begin_slot(phase, x, fold, piece);
  if (seen || !add || piece.columns) run_piece(plan, fold, piece, workspace);
}

// Global rows of one run and key head: block by block, adding.
void whole_backward_task(const Phase& phase, int64_t x, float* workspace) {
  const Plan& plan = *phase.plan;
  const Whole& whole = plan.call.wholes[x / plan.call.G];
  const Fold fold = fold_of(whole);
  Piece piece = {whole.batch, x % plan.call.G, 0, fold.queries, 0, 0, true, 0, 0, false, Slot(plan, nullptr), fold.queries - 1};
  piece.slot = begin_slot(phase, x, fold, piece);
  for (int i0 = 0; i0 < fold.queries; i0 += plan.tile)
    for (int low = 0; low < fold.keys; low += plan.chunk) {
      piece.i0 = i0, piece.i1 = smaller(fold.queries, i0 + plan.tile);
      piece.low = low, piece.high = smaller(fold.keys, low + plan.chunk);
      run_piece(plan, fold, piece, workspace);
    }
}

// Adds what the tasks of a turn found of the biases of head h, in the order of the tasks.
void add_biases(const Phase& phase, int64_t h, float*) {
  const Plan& plan = *phase.plan;
  const Call& c = plan.call;
  const int64_t end = plan.band.bias_columns - PAD, heads = c.H / c.G;
  float* to = plan.band.bias_grad + h * plan.band.bias_columns;
  const auto add = [&](const float* from, int64_t count, int64_t at) {
    for (int64_t i = larger<int64_t>(-PAD, -PAD - at); i < smaller(count - PAD, end - at); i++) to[at + i] += from[i];
  };
  for (int64_t x = 0; x < phase.slot_tasks; x++) {
    const Slot slot(plan, phase.slots + x * phase.slot_floats);
    const Slot::Header& header = slot.header();
    if (!header.used || header.g != h / heads) continue;
    add(slot.band(h % heads), slot.band_floats, header.bias_at);
    if (!slot.column_floats) continue;
    if (header.incoming >= 0) add(slot.incoming(h % heads), slot.column_floats, header.incoming_at);
    if (c.starts) add(slot.own(h % heads), slot.column_floats, header.own_at);
  }
}

// dk and dv of the columns of one key head of one example, from the tiles that came in with a run: one run after another.
void add_columns(const Phase& phase, int64_t x, float*) {
  const Plan& plan = *phase.plan;
  const Call& c = plan.call;
  const int64_t b = x / c.G, g = x % c.G;
  const Rows dk = rows_of(c.dk, b, g, 0, 1, (int)c.M, c.D), dv = rows_of(c.dv, b, g, 0, 1, (int)c.M, c.V);
  const Slot* sum = nullptr;
  Slot first(plan, nullptr);
  const auto put = [&] {
    if (!sum) return;
    const int64_t start = sum->header().incoming, stop = c.stops ? c.stops[b * c.N + start] : c.M;
    for (int64_t j = 0; j < smaller(c.num_first, stop - start); j++) {
      put_row(c, dk, (int)(start + j), sum->dk(j), 1.f, c.starts);
      put_row(c, dv, (int)(start + j), sum->dv(j), 1.f, c.starts);
    }
  };
  for (int64_t tile = 0; tile < plan.tiles; tile++) {  // in the order of rows, over both colours
    const int64_t turn = plan.chunk ? 0 : tile % 2, at = plan.chunk ? tile : tile / 2, blocks = phase.mine[turn];
    const Slot slot(plan, phase.slots + turn * phase.slot_region + ((b * blocks + at) * c.G + g) * phase.slot_floats);
    if (!slot.header().used || slot.header().incoming < 0) continue;
    if (sum && sum->header().incoming == slot.header().incoming) {
      const int64_t floats = c.num_first * (slot.D + slot.V);
      for (int64_t i = 0; i < floats; i++) sum->dk(0)[i] += slot.dk(0)[i];
      continue;
    }
    put();
    first = slot, sum = &first;
  }
  put();
}

const int64_t DELTA_ROWS = 64;

// delta of DELTA_ROWS queries of all heads of one example: in [B, N, H, D] memory, one stretch.
void delta_task(const Phase& phase, int64_t x, float*) {
  const Call& c = *phase.call;
  const int64_t b = x / phase.blocks, i0 = x % phase.blocks * DELTA_ROWS, i1 = smaller(c.N, i0 + DELTA_ROWS);
  for (int64_t i = i0; i < i1; i++)
    for (int64_t h = 0; h < c.H; h++) {
      const Rows grad = rows_of(c.grad_out, b, h, i, 1, 1, c.V), out = rows_of(c.out, b, h, i, 1, 1, c.V);
      vf sum = {};
      for (int d = 0; d < c.V; d += VL) sum += grad.get(0, d) * out.get(0, d);
      c.delta[(b * c.H + h) * c.N + i] = sum_of(sum);
    }
}

void delta(const Call* call) {
  const int64_t blocks = (call->N + DELTA_ROWS - 1) / DELTA_ROWS;
  Phase phase = {call, nullptr, delta_task, call->B * blocks, 0, blocks, 0};
  run(phase);
}

void forward(const Call* call) {
  const int64_t floats = floats_of(call, 0);
  for (int64_t i = 0; i < call->num_bands; i++) {
    const Plan plan = plan_of(*call, i, 0);
    Phase phase = {call, &plan, forward_task, call->B * plan.band.step * plan.tiles * call->H, 0, plan.tiles, floats};
    run(phase);
  }
  if (!call->num_wholes) return;
  const Plan plan = whole_plan(*call, false);
  Phase phase = {call, &plan, whole_forward_task, call->num_wholes * call->H, 0, 1, floats};
  run(phase);
}

void add_up_biases(Phase& phase) {
  if (!phase.plan->band.bias_grad) return;
  Phase sum = phase;
  sum.run = add_biases, sum.tasks = phase.call->H, sum.next = sum.threads = 0;
  run(sum);
}

void backward(const Call* call) {
  const int64_t floats = floats_of(call, 1);
  for (int64_t i = 0; i < call->num_bands; i++) {
    const Plan plan = plan_of(*call, i, 1);
    const Turns turns(plan);
    const int64_t slot_floats = slots_of(plan) ? Slot(plan, nullptr).floats(plan) : 0, region = slots_of(plan);
    for (int64_t turn = 0; turn < turns.turns; turn++) {
      const int64_t mine = turns.mine(turn), tasks = turns.heads * mine;
      Phase phase = {call, &plan, plan.chunk ? diagonal_task : coloured_task, tasks, turn, mine, floats};
      phase.slots = call->shared + (turn ? region : 0), phase.slot_floats = slot_floats, phase.slot_tasks = tasks;
      run(phase);
      add_up_biases(phase);
    }
    if (!plan.columns) continue;
    Phase sum = {call, &plan, add_columns, call->B * call->G, 0, 1, floats};
    sum.slots = call->shared, sum.slot_floats = slot_floats, sum.slot_region = region;
    sum.mine[0] = turns.mine(0), sum.mine[1] = turns.mine(1);
    run(sum);
  }
  if (!call->num_wholes) return;
  const Plan plan = whole_plan(*call, true);
  Phase phase = {call, &plan, whole_backward_task, call->num_wholes * call->G, 0, 1, floats};
  phase.slots = call->shared, phase.slot_tasks = phase.tasks;
  phase.slot_floats = plan.band.bias_grad ? Slot(plan, nullptr).floats(plan) : 0;
  run(phase);
  add_up_biases(phase);
}

}  // namespace

extern "C" const Kernel KERNEL;
extern "C" const Kernel KERNEL = {KERNEL_NAME, floats_of, shared_of, forward, backward, delta};
