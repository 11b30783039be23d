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

// Writes rows of `matrix`, one after the other.
void pack_rows(const ConstRows& matrix, const int64_t* rows, int64_t n, WireFormat format,
               uint8_t* bytes, int threads);

// Writes rows of a matrix of bfloat16, `stride` numbers apart, as they are.
void pack_half_rows(const uint16_t* matrix, int64_t stride, int64_t width, const int64_t* rows,
                    int64_t n, uint8_t* bytes, int threads);

// Writes what pack_rows wrote into rows of `matrix`.
void unpack_rows(const uint8_t* bytes, const int64_t* rows, int64_t n, WireFormat format,
                 const Rows& matrix, int threads);

}  // namespace widedeep
