// Runs recorded calls of a kernel in every build that the processor has, and compares with recorded results.
//
// A file: Head; `pointers` offsets of 8-byte slots that hold offsets into the file (0 = null) and become pointers; `sums` Sums;
// `checks` Checks; then everything they speak of.  Made by record.py.  Compiled with LINEAR for linear attention's kernel.
// Usage: driver BUILDS FILE..., BUILDS being the builds that this processor must have, in order, commas between.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef LINEAR
#include "../../src/jieyue/linear/csrc/linear.h"
typedef LinearCall Asked;
#define DOOR(what) jieyue_linear_##what
#else
#include "../../src/jieyue/attention/csrc/band.h"
typedef Call Asked;
#define DOOR(what) jieyue_band_##what
#endif

extern "C" {
int64_t DOOR(call_bytes)();
const char* DOOR(name)(int64_t);
int64_t DOOR(workspace)(int64_t, const Asked*, int);
void DOOR(forward)(int64_t, const Asked*);
void DOOR(backward)(int64_t, const Asked*);
#ifndef LINEAR
int64_t DOOR(shared)(int64_t, const Asked*);
void DOOR(delta)(int64_t, const Asked*);
#endif
}

enum Pass { FORWARD, BACKWARD, DELTA };

struct Head {
  int64_t call_bytes, call, pass, pointers, sums, checks;
};
struct Sum {  // to[i * step] += from[i]: floats
  int64_t from, to, count, step;
};
struct Check {  // result: where the kernel writes, float or bfloat16; expected: doubles, in the same order
  char name[16];
  int64_t result, expected, count, half, columns;
  double most, mean_square, lean;  // allowed: of an error, of their mean square, of the mean of rows in its deviations
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

// What is there before the kernel writes is not zero, as in a process that has run for a while.
static float* room(int64_t floats) {
  const size_t bytes = ((size_t)floats * 4 + 127) / 64 * 64;
  return (float*)memset(aligned_alloc(64, bytes), 0xff, bytes);
}

static double value(const char* data, int64_t i, bool half) {
  if (!half) return ((const float*)data)[i];
  union {
    uint32_t bits;
    float x;
  } both = {(uint32_t)((const uint16_t*)data)[i] << 16};
  return both.x;
}

// The largest share of what is allowed that a check has used; more than 1 = wrong.
static double share_of(const Check& check, const char* data) {
  double worst = 0, square = 0, sum = 0, row_square = 0, row = 0;
  for (int64_t i = 0; i < check.count; i++) {
    const double x = value(data + check.result, i, check.half), e = ((const double*)(data + check.expected))[i];
    const double error = x == e || (x != x && e != e) ? 0 : x - e;
    if (error != error) return INFINITY;
    worst = fmax(worst, fabs(error) / check.most);
    square += error * error, row += error / check.columns;
    if ((i + 1) % check.columns == 0) sum += row, row_square += row * row, row = 0;
  }
  const double rows = (double)(check.count / check.columns), mean = sum / rows;
  const double deviation = sqrt(fmax(0, row_square / rows - mean * mean) / rows);
  worst = fmax(worst, sqrt(square / check.count) / sqrt(check.mean_square));
  if (check.lean > 0) printf("rows lean by %.2f deviations, ", fabs(mean) / deviation);
  return check.lean > 0 ? fmax(worst, fabs(mean) / deviation / check.lean) : worst;
}

static void run(int64_t rank, Asked& call, int64_t pass) {
  call.threads = 1, call.parallel = nullptr;
  call.workspace = pass == DELTA ? nullptr : room(DOOR(workspace)(rank, &call, pass == BACKWARD));
#ifndef LINEAR
  call.shared = pass == BACKWARD ? room(DOOR(shared)(rank, &call)) : nullptr;
  if (pass == DELTA) DOOR(delta)(rank, &call);
#endif
  if (pass == FORWARD) DOOR(forward)(rank, &call);
  if (pass == BACKWARD) DOOR(backward)(rank, &call);
  free(call.workspace);
#ifndef LINEAR
  free(call.shared);
#endif
}

static int check_file(const char* path, int64_t rank) {
  char* data = read_all(path);
  if (!data) return printf("%s: cannot be read\n", path), 1;
  const Head& head = *(Head*)data;
  if (head.call_bytes != DOOR(call_bytes)()) return printf("%s: made for another version\n", path), 1;
  const int64_t* slots = (int64_t*)(&head + 1);
  const Sum* sums = (Sum*)(slots + head.pointers);
  const Check* checks = (Check*)(sums + head.sums);
  for (int64_t i = 0; i < head.pointers; i++) {
    int64_t& slot = *(int64_t*)(data + slots[i]);
    slot = slot ? (int64_t)(intptr_t)(data + slot) : 0;
  }
  run(rank, *(Asked*)(data + head.call), head.pass);
  for (const Sum* sum = sums; sum < sums + head.sums; sum++)
    for (int64_t i = 0; i < sum->count; i++) ((float*)(data + sum->to))[i * sum->step] += ((float*)(data + sum->from))[i];
  const char* slash = strrchr(path, '/');
  printf("%-9s %s: ", DOOR(name)(rank), slash ? slash + 1 : path);
  int wrong = 0;
  for (const Check* check = checks; check < checks + head.checks; check++) {
    const double share = share_of(*check, data);
    if (share > 1) wrong = 1;
    printf("%s %.2f%s", check->name, share, check + 1 < checks + head.checks ? ", " : "");
  }
  printf(" of what is allowed%s\n", wrong ? ": WRONG" : "");
  free(data);
  return wrong;
}

static int check_builds(const char* expected) {
  char found[256] = "";
  for (int64_t rank = 0; DOOR(name)(rank); rank++) {
    if (rank) strcat(found, ",");
    strcat(found, DOOR(name)(rank));
  }
  printf("builds: %s\n", found);
  return strcmp(found, expected) ? printf("WRONG: expected %s\n", expected), 1 : 0;
}

int main(int count, char** words) {
  int failed = check_builds(words[1]);
  for (int64_t rank = 0; DOOR(name)(rank); rank++)
    for (int i = 2; i < count; i++) failed += check_file(words[i], rank);
  printf("%d wrong\n", failed);
  return failed ? 1 : 0;
}
