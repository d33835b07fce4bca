// One build of the kernel: the heads of a call, shared out to threads.  Compiled once for each instruction set, with KERNEL
// naming the build; everything but that one symbol has internal linkage, so that builds never mix.
#include "backward.h"

namespace {

struct Work {
  const LinearCall* call;
  int backward;
  int64_t bunch, bunches, floats, next = 0, threads = 0;  // heads of a task, tasks of an example
};

void work_on(void* data) {
  Work& work = *(Work*)data;
  const LinearCall& c = *work.call;
  float* workspace = c.workspace + __atomic_fetch_add(&work.threads, 1, __ATOMIC_RELAXED) * work.floats;
  for (int64_t x; (x = __atomic_fetch_add(&work.next, 1, __ATOMIC_RELAXED)) < c.B * work.bunches;) {
    const int64_t b = x / work.bunches, g0 = x % work.bunches * work.bunch, g1 = smaller(c.G, g0 + work.bunch);
    if (c.direction)
      (work.backward ? backward_causal : forward_causal)(c, b, g0, g1, workspace);
    else
      (work.backward ? backward_whole : forward_whole)(c, b, g0, g1, workspace);
    all_put();
  }
}

int64_t floats_of(const LinearCall* call, int backward);

void run(const LinearCall& c, int backward) {
  // as many heads to a task as leave every thread one
  const int64_t share = larger<int64_t>(1, c.B * c.G / larger<int64_t>(1, c.threads));
  const int64_t bunch = smaller<int64_t>(smaller<int64_t>(BUNCH, c.G), share);
  Work work = {&c, backward, bunch, (c.G + bunch - 1) / bunch, floats_of(&c, backward)};
  const int64_t threads = smaller(c.threads, c.B * work.bunches);
  if (threads > 1 && c.parallel)
    c.parallel(work_on, &work, (unsigned)threads, 0);
  else
    work_on(&work);
}

int64_t floats_of(const LinearCall* call, int backward) {
  Arena arena{nullptr};
  if (backward)
    BackwardSpace(*call, Sizes(*call), arena);
  else
    ForwardSpace(Sizes(*call), arena);
  for (int i = 0; i < BUNCH; i++) Sums(Sizes(*call), arena);
  return arena.used;
}

void forward(const LinearCall* call) { run(*call, 0); }
void backward(const LinearCall* call) { run(*call, 1); }

}  // namespace

extern "C" const LinearKernel KERNEL;
extern "C" const LinearKernel KERNEL = {KERNEL_NAME, floats_of, forward, backward};
