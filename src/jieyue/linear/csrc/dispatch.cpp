// The symbols that the library exports: which builds of the kernel this processor can run, and calls to one of them.
#include "linear.h"

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

extern "C" const LinearKernel kernel_plain;
#ifdef X86_BUILDS
extern "C" const LinearKernel kernel_avx2, kernel_avx512;
#endif

// The build of rank `rank`, 0 = the fastest that this processor runs; null when there are no more.
static const LinearKernel* ranked(int64_t rank) {
#ifdef X86_BUILDS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && rank-- == 0) return &kernel_avx512;
  if (avx2 && rank-- == 0) return &kernel_avx2;
#endif
  return rank == 0 ? &kernel_plain : nullptr;
}

EXPORT int64_t jieyue_linear_call_bytes() { return sizeof(LinearCall); }  // a caller with another layout must not call
EXPORT const char* jieyue_linear_name(int64_t rank) { return ranked(rank) ? ranked(rank)->name : nullptr; }
EXPORT int64_t jieyue_linear_workspace(int64_t rank, const LinearCall* call, int backward) {
  return ranked(rank)->workspace(call, backward);
}
EXPORT void jieyue_linear_forward(int64_t rank, const LinearCall* call) { ranked(rank)->forward(call); }
EXPORT void jieyue_linear_backward(int64_t rank, const LinearCall* call) { ranked(rank)->backward(call); }
