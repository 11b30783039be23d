// Rows of a table in fewer bytes than float32: how a bundle may keep embeddings, and scoring reads.
//
// A row is one stretch of bytes, so that reading it costs one miss of the cache:
//   bfloat16  its numbers, rounded to the nearest, ties to even, denormals to zero
//   int8      a byte for its step; then a byte a number, -127 to 127: number = step * byte
//   int4      a byte for its step; then half a byte a number, 0 to 15:
//             number = step * (half - 7.5). Of n bytes, byte i holds number i in its lower half
//             and number n + i in its upper.
// Byte k > 0 is the step (8 + k % 8) / 8 * 2^(k / 8 - 25), from 3e-8 to 120; 0 makes zeros.
//
// A number moves by half a step at most: int8 takes the first step that reaches the row's largest
// magnitude, int4 the nearest. A step and an offset of two bytes each would take 16 to 20 % off the
// error of trained tables (benchmarks/bench_tables.py), and add 18 % (int4: 33 %) to the bytes of
// rows of 16.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"
#include "sparse.hpp"

namespace widedeep {

enum class RowKind : int8_t { bfloat16, int8, int4 };

struct PackedRows {
  const uint8_t* bytes = nullptr;
  int64_t row_bytes = 0;
  int64_t width = 0;
  RowKind kind = RowKind::int8;
};

constexpr int64_t packed_row_bytes(RowKind kind, int64_t width) {
  if (kind == RowKind::bfloat16) return 2 * width;
  return 1 + (kind == RowKind::int8 ? width : (width + 1) / 2);
}

constexpr uint32_t kStepBase = (127 - 25) << 3;  // the upper 12 bits of a step, less its byte

// Packs rows of finite numbers, one after the other. Returns the first row that is too large for
// its kind, or kNoFault.
int64_t pack_table(const ConstRows& rows, int64_t n, RowKind kind, uint8_t* bytes, int threads);

// Writes the numbers of rows[0], ..., rows[n - 1].
void unpack_table(const PackedRows& table, const int64_t* rows, int64_t n, const Rows& out,
                  int threads);

WIDEDEEP_DECLARE_ISA(void unpack_range(const PackedRows& table, const int64_t* rows, int64_t begin,
                                       int64_t end, const Rows& out))

}  // namespace widedeep
