// Rows on their way between ranks: picked from a matrix into bytes, and put back into one.
#pragma once

#include <stdint.h>

#include "sparse.hpp"

namespace widedeep {

// How the numbers of a row travel. `scaled`: 16 bits each, as integers of a power of two that is
// the row's own, chosen by its largest number and sent before them in a byte. They err by at most
// 2^-15 of the largest; rows of numbers below 2^-111 become 0, those with one that is not finite
// all NaN.
enum class WireFormat : uint8_t { float32, bfloat16, scaled };

// The bytes of a row of `width` numbers.
inline int64_t wire_bytes(WireFormat format, int64_t width) {
  if (format == WireFormat::float32) return width * 4;
  return width * 2 + (format == WireFormat::scaled ? 1 : 0);
}

// Rows of a matrix, and one after the other in bytes. rows == null: every row, in order.
struct WireRows {
  const int64_t* rows;
  WireFormat format;
  uint8_t* bytes;
};

// Rows of one matrix that go to rows of another, as if they had travelled. Rows == null: in order.
struct MovedRows {
  ConstRows from;
  const int64_t* from_rows;
  Rows to;
  const int64_t* to_rows;
  WireFormat format;
};

struct HalfRows {  // of bfloat16
  const uint16_t* data;
  int64_t stride;  // numbers
  int64_t width;
};

void pack_rows(const WireRows& wire, const ConstRows& matrix, int64_t n, int threads);
void unpack_rows(const WireRows& wire, const Rows& matrix, int64_t n, int threads);
void move_rows(const MovedRows& moved, int64_t n, int threads);

// The same with rows of bfloat16, which travel as they are.
void pack_half_rows(const HalfRows& matrix, const int64_t* rows, int64_t n, uint8_t* bytes,
                    int threads);
void move_half_rows(const HalfRows& matrix, const MovedRows& moved, int64_t n, int threads);

WIDEDEEP_DECLARE_ISA(
    void pack_range(const WireRows& wire, const ConstRows& matrix, int64_t begin, int64_t end);
    void unpack_range(const WireRows& wire, const Rows& matrix, int64_t begin, int64_t end);
    void move_range(const MovedRows& moved, int64_t begin, int64_t end, uint8_t* row_bytes))

}  // namespace widedeep
