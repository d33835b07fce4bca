// The symbols that the library exports: which builds of the kernel this processor can run, and calls to one of them.
#include "band.h"
#ifdef ARM_BUILDS
#include <sys/auxv.h>
#endif

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

extern "C" const Kernel kernel_plain;
#ifdef X86_BUILDS
extern "C" const Kernel kernel_avx2, kernel_avx512, kernel_avx512bf16;
#endif
#ifdef ARM_BUILDS
extern "C" const Kernel kernel_neonbf16;
#endif

// The build of rank `rank`, 0 = the fastest that this processor runs; null when there are no more.  AMD's processors take
// a dot product of bfloat16 pairs in the time of a multiply-add; Intel's take twice as long, so that converting to float
// on the way is as fast and rounds less.
static const Kernel* ranked(int64_t rank) {
#ifdef X86_BUILDS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool pairs = avx512 && __builtin_cpu_supports("avx512bf16"), first = pairs && __builtin_cpu_is("amd");
  if (first && rank-- == 0) return &kernel_avx512bf16;
  if (avx512 && rank-- == 0) return &kernel_avx512;
  if (pairs && !first && rank-- == 0) return &kernel_avx512bf16;
  if (avx2 && rank-- == 0) return &kernel_avx2;
#endif
#ifdef ARM_BUILDS
  if (getauxval(AT_HWCAP2) & (1 << 14) && rank-- == 0) return &kernel_neonbf16;  // HWCAP2_BF16
#endif
  return rank == 0 ? &kernel_plain : nullptr;
}

EXPORT int64_t jieyue_band_call_bytes() { return sizeof(Call); }  // a caller with another layout must not call
EXPORT const char* jieyue_band_name(int64_t rank) { return ranked(rank) ? ranked(rank)->name : nullptr; }
EXPORT int64_t jieyue_band_workspace(int64_t rank, const Call* call, int backward) {
  return ranked(rank)->workspace(call, backward);
}
EXPORT int64_t jieyue_band_shared(int64_t rank, const Call* call) { return ranked(rank)->shared(call); }
EXPORT void jieyue_band_forward(int64_t rank, const Call* call) { ranked(rank)->forward(call); }
EXPORT void jieyue_band_backward(int64_t rank, const Call* call) { ranked(rank)->backward(call); }
EXPORT void jieyue_band_delta(int64_t rank, const Call* call) { ranked(rank)->delta(call); }
