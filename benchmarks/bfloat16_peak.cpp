// The most that products of bfloat16 pairs can give on this processor: multiply-adds of vdpbf16ps beside those of
// vfmadd231ps, each in a loop over registers alone, one thread, best of five.
//
//     g++ -O3 -funroll-loops -mavx512f -mavx512bf16 -o /tmp/peak benchmarks/bfloat16_peak.cpp && /tmp/peak
#include <immintrin.h>
#include <stdio.h>
#include <time.h>

static double seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

int main() {
  const int SUMS = 12, ROUNDS = 4000000;  // 12 sums hide either instruction's latency
  __m512 sum[SUMS], x = _mm512_set1_ps(1e-9f), y = _mm512_set1_ps(.5f);
  __m512bh pairs = (__m512bh)x, others = (__m512bh)y;
  double floats = 1e9, halves = 1e9;
  for (int j = 0; j < SUMS; j++) {
    sum[j] = _mm512_set1_ps(j);
    asm volatile("" : "+v"(sum[j]));  // the compiler must not see that they are alike
  }
  for (int k = 0; k < 5; k++) {
    double start = seconds();
    for (int i = 0; i < ROUNDS; i++) {
      for (int j = 0; j < SUMS; j++) sum[j] = _mm512_fmadd_ps(x, y, sum[j]);
      asm volatile("" : "+v"(x), "+v"(y));
    }
    const double a = seconds() - start;
    start = seconds();
    for (int i = 0; i < ROUNDS; i++) {
      for (int j = 0; j < SUMS; j++) sum[j] = _mm512_dpbf16_ps(sum[j], pairs, others);
      asm volatile("" : "+v"(pairs), "+v"(others));
    }
    const double b = seconds() - start;
    floats = a < floats ? a : floats, halves = b < halves ? b : halves;
  }
  float total = 0;
  for (int j = 0; j < SUMS; j++) total += _mm512_reduce_add_ps(sum[j]);
  const double count = 1e-9 * SUMS * ROUNDS;
  printf("float32 %.0f, bfloat16 pairs %.0f 10^9 multiply-adds a second: %.2f of float32's (checksum %g)\n",
         count * 16 / floats, count * 32 / halves, 2 * floats / halves, total);
}
