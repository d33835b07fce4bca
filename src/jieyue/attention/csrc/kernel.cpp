// One build of the kernel: the tasks of a call, shared out to threads.  Compiled once for each instruction set, with
// KERNEL naming the build; everything but that one symbol has internal linkage, so that builds never mix.
#include "backward.h"

namespace {

// A set of tasks that may run in any order and share no output.
struct Phase {
  const Call* call;
  const Plan* plan;
  void (*run)(const Phase&, int64_t task, float* workspace);
  int64_t tasks, turn, blocks, floats;  // turn: colour or diagonal; blocks: tiles per class; floats: workspace of a thread
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

int64_t floats_of(const Call* call, int backward) {
  int64_t most = 0;
  for (int64_t i = 0; i < call->num_bands; i++) {
    int64_t floats;
    if (backward && in_pairs(*call))
      BackwardSpace<Pairs>(backward_plan(*call, i), Arena{nullptr}, &floats);
    else if (backward)
      BackwardSpace<Floats>(backward_plan(*call, i), Arena{nullptr}, &floats);
    else if (in_pairs(*call))
      ForwardSpace<Pairs>(forward_plan(*call, i), Arena{nullptr}, &floats);
    else
      ForwardSpace<Floats>(forward_plan(*call, i), Arena{nullptr}, &floats);
    most = larger(most, floats);
  }
  return most;
}

// Heads vary fastest: in [B, N, H, D] memory they lie side by side.
void forward_task(const Phase& phase, int64_t x, float* workspace) {
  const Plan& plan = *phase.plan;
  const Call& c = plan.call;
  const int64_t h = x % c.H, tile = x / c.H % plan.tiles, residue = x / c.H / plan.tiles % plan.band.step;
  const int64_t b = x / c.H / plan.tiles / plan.band.step;
  const Fold fold = fold_of(c, plan.band, residue);
  const int i0 = (int)tile * plan.tile, i1 = smaller(fold.queries, i0 + plan.tile);
  if (i0 >= i1) return;
  (in_pairs(c) ? forward_tile<Pairs> : forward_tile<Floats>)(plan, fold, b, h, i0, i1, workspace);
}

void run_piece(const Plan& plan, const Fold& fold, const Piece& piece, float* workspace) {
  (in_pairs(plan.call) ? backward_piece<Pairs> : backward_piece<Floats>)(plan, fold, piece, workspace);
}

// Tiles of one colour share no key.  Colour 0 writes; colour 1 writes too, but adds where a neighbour has been.
void coloured_task(const Phase& phase, int64_t x, float* workspace) {
  const Plan& plan = *phase.plan;
  const Call& c = plan.call;
  const int64_t g = x % c.G, tile = 2 * (x / c.G % phase.blocks) + phase.turn;
  const int64_t residue = x / c.G / phase.blocks % plan.band.step, b = x / c.G / phase.blocks / plan.band.step;
  const Fold fold = fold_of(c, plan.band, residue);
  const int i0 = (int)tile * plan.tile, i1 = smaller(fold.queries, i0 + plan.tile);
  if (i0 >= i1) {
    if (tile == 0 && !plan.accumulate) zero_keys(plan, fold, b, g, 0, fold.keys);
    return;
  }
  Piece piece = {b, g, i0, i1, fold.from(i0), fold.to(i1 - 1), plan.accumulate, 0, fold.keys};
  if (plan.accumulate) {
    piece.add_from = 0;
  } else {
    if (tile == 0) zero_keys(plan, fold, b, g, 0, piece.low);
    if (i1 == fold.queries) zero_keys(plan, fold, b, g, piece.high, fold.keys);
    if (phase.turn) piece.add_below = i0 + fold.right;
    if (phase.turn && i1 < fold.queries) piece.add_from = i1 - fold.left;
  }
  run_piece(plan, fold, piece, workspace);
}

// Block t of queries meets block (t + turn) of keys: in one turn no two tasks share a query or a key of a head.
void diagonal_task(const Phase& phase, int64_t x, float* workspace) {
  const Plan& plan = *phase.plan;
  const Call& c = plan.call;
  const int64_t g = x % c.G, t = x / c.G % phase.blocks, residue = x / c.G / phase.blocks % plan.band.step;
  const int64_t b = x / c.G / phase.blocks / plan.band.step, other = (t + phase.turn) % phase.blocks;
  const Fold fold = fold_of(c, plan.band, residue);
  const int i0 = smaller(fold.queries, (int)t * plan.tile), i1 = smaller(fold.queries, i0 + plan.tile);
  const int low = smaller(fold.keys, (int)other * plan.chunk), high = smaller(fold.keys, low + plan.chunk);
  const bool seen = i0 < i1 && larger(low, fold.from(i0)) < smaller(high, fold.to(i1 - 1));
  const bool add = plan.accumulate || phase.turn > 0;
  if (seen || !add) run_piece(plan, fold, {b, g, i0, i1, low, high, add, 0, add ? 0 : fold.keys}, workspace);
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
    const Plan plan = forward_plan(*call, i);
    Phase phase = {call, &plan, forward_task, call->B * plan.band.step * plan.tiles * call->H, 0, plan.tiles, floats};
    run(phase);
  }
}

void backward(const Call* call) {
  const int64_t floats = floats_of(call, 1);
  for (int64_t i = 0; i < call->num_bands; i++) {
    const Plan plan = backward_plan(*call, i);
    const int64_t heads = call->B * plan.band.step * call->G;
    const int64_t blocks = plan.chunk ? larger(plan.tiles, (plan.keys + plan.chunk - 1) / plan.chunk) : plan.tiles;
    for (int64_t turn = 0; turn < (plan.chunk ? blocks : smaller<int64_t>(2, blocks)); turn++) {
      const int64_t mine = plan.chunk ? blocks : (blocks + 1 - turn) / 2;
      Phase phase = {call, &plan, plan.chunk ? diagonal_task : coloured_task, heads * mine, turn, mine, floats};
      run(phase);
    }
  }
}

}  // namespace

extern "C" const Kernel KERNEL;
extern "C" const Kernel KERNEL = {KERNEL_NAME, floats_of, forward, backward, delta};
