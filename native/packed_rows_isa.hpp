// One packed row as numbers. Included by *_isa.cpp files alone, as rows_isa.hpp.
#pragma once

#include <stdint.h>
#include <string.h>

#include "packed_rows.hpp"
#include "rows_isa.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

inline float float_of_bits(uint32_t bits) {
  float number;
  memcpy(&number, &bits, sizeof(number));
  return number;
}

// Each number is rounded once, so all instruction sets give the same bits.
inline void unpack_row(const PackedRows& table, int64_t row, float* __restrict out) {
  const uint8_t* __restrict const bytes = table.bytes + row * table.row_bytes;
  const int64_t width = table.width;
  if (table.kind == RowKind::bfloat16) {
    for (int64_t d = 0; d < width; ++d) {
      uint16_t half;
      memcpy(&half, bytes + 2 * d, sizeof(half));
      out[d] = float_of_bits(static_cast<uint32_t>(half) << 16);
    }
    return;
  }
  const float step = bytes[0] == 0 ? 0.0f : float_of_bits((kStepBase + bytes[0]) << 20);
  const uint8_t* __restrict const codes = bytes + 1;
  if (table.kind == RowKind::int8) {
    WIDEDEEP_SIMD
    for (int64_t d = 0; d < width; ++d) out[d] = step * static_cast<float>((int8_t)codes[d]);
    return;
  }
  const int64_t lower = (width + 1) / 2;
  const int64_t upper = width / 2;
  WIDEDEEP_SIMD
  for (int64_t d = 0; d < upper; ++d) {
    out[d] = step * (static_cast<float>(codes[d] & 15) - 7.5f);
    out[lower + d] = step * (static_cast<float>(codes[d] >> 4) - 7.5f);
  }
  if (lower > upper) out[upper] = step * (static_cast<float>(codes[upper] & 15) - 7.5f);
}

}  // namespace
}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
