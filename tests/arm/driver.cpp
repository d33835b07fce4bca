// Runs one recorded call of the attention kernel in every build that the processor has, and compares with recorded results.
//
// A file: Head; then `pointers` offsets of 8-byte slots that hold offsets into the file (0 = null) and become pointers; then
// `checks` Checks; then everything they speak of.  Made by check.py; usage: driver FILE...
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "../../src/jieyue/attention/csrc/band.h"

extern "C" {
int64_t jieyue_band_call_bytes();
const char* jieyue_band_name(int64_t);
int64_t jieyue_band_workspace(int64_t, const Call*, int);
int64_t jieyue_band_shared(int64_t, const Call*);
void jieyue_band_forward(int64_t, const Call*);
void jieyue_band_backward(int64_t, const Call*);
}

struct Head {
  int64_t call_bytes, call, backward, pointers, checks;
};
struct Check {  // result: where the kernel writes, float or bfloat16; expected: floats
  int64_t result, expected, count, half;
  double allowed;
};

static char* read_all(const char* path) {
  FILE* file = fopen(path, "rb");
  if (!file) return nullptr;
  fseek(file, 0, SEEK_END);
  const size_t bytes = (size_t)ftell(file);
  char* data = (char*)aligned_alloc(64, (bytes + 63) / 64 * 64);
  rewind(file);
  const bool whole = data && fread(data, 1, bytes, file) == bytes;
  fclose(file);
  return whole ? data : nullptr;
}

static float* room(int64_t floats) { return (float*)aligned_alloc(64, ((size_t)floats * 4 + 127) / 64 * 64); }

static double value(const char* data, int64_t i, bool half) {
  if (!half) return ((const float*)data)[i];
  union {
    uint32_t bits;
    float x;
  } both = {(uint32_t)((const uint16_t*)data)[i] << 16};
  return both.x;
}

static int run(const char* path, int64_t rank) {
  char* data = read_all(path);
  if (!data) return printf("%s: cannot be read\n", path), 1;
  const Head& head = *(Head*)data;
  if (head.call_bytes != jieyue_band_call_bytes()) return printf("%s: made for another version\n", path), 1;
  const int64_t* slots = (int64_t*)(&head + 1);
  const Check* checks = (Check*)(slots + head.pointers);
  for (int64_t i = 0; i < head.pointers; i++) {
    int64_t& slot = *(int64_t*)(data + slots[i]);
    slot = slot ? (int64_t)(intptr_t)(data + slot) : 0;
  }
  Call& call = *(Call*)(data + head.call);
  call.threads = 1, call.parallel = nullptr;
  call.workspace = room(jieyue_band_workspace(rank, &call, (int)head.backward));
  call.shared = head.backward ? room(jieyue_band_shared(rank, &call)) : nullptr;
  (head.backward ? jieyue_band_backward : jieyue_band_forward)(rank, &call);
  int failed = 0;
  double worst = 0;
  for (int64_t i = 0; i < head.checks; i++) {
    const Check& check = checks[i];
    for (int64_t j = 0; j < check.count; j++) {
      const double x = value(data + check.result, j, check.half), e = ((const float*)(data + check.expected))[j];
      const double error = x == e ? 0 : fabs(x - e) / check.allowed;
      if (!(error <= 1)) failed = 1;
      if (!(error <= worst)) worst = error;
    }
  }
  printf("%-10s %s: %s, largest error %.3f of what is allowed\n", jieyue_band_name(rank), path, failed ? "WRONG" : "right", worst);
  free(call.workspace), free(call.shared), free(data);
  return failed;
}

int main(int count, char** paths) {
  int failed = 0;
  for (int64_t rank = 0; jieyue_band_name(rank); rank++)
    for (int i = 1; i < count; i++) failed += run(paths[i], rank);
  return failed ? 1 : 0;
}
