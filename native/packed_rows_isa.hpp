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

template <int kCount>
struct Count {
  static constexpr int n = kCount;
};

// Calls put(count, d) for numbers [d, d + count) up to `width`; the counts are known to the
// compiler, so that each call is a few vectors.
template <class Put>
inline void in_chunks(int64_t width, const Put& put) {
  int64_t d = 0;
  for (; d + 16 <= width; d += 16) put(Count<16>{}, d);
  if (d + 8 <= width) {
    put(Count<8>{}, d);
    d += 8;
  }
  for (; d < width; ++d) put(Count<1>{}, d);
}

// Each number is rounded once, so all instruction sets give the same bits.
inline void unpack_row(const PackedRows& table, int64_t row, float* __restrict out) {
  const uint8_t* __restrict const bytes = table.bytes + row * table.row_bytes;
  const int64_t width = table.width;
  if (table.kind == RowKind::bfloat16) {
    in_chunks(width, [&](auto count, int64_t d) {
      uint16_t halves[count.n];
      uint32_t words[count.n];
      memcpy(halves, bytes + 2 * d, sizeof(halves));
      WIDEDEEP_SIMD
      for (int j = 0; j < count.n; ++j) words[j] = static_cast<uint32_t>(halves[j]) << 16;
      memcpy(out + d, words, sizeof(words));
    });
    return;
  }
  const float step = bytes[0] == 0 ? 0.0f : float_of_bits((kStepBase + bytes[0]) << 20);
  const uint8_t* __restrict const codes = bytes + 1;
  if (table.kind == RowKind::int8) {
    in_chunks(width, [&](auto count, int64_t d) {
      WIDEDEEP_SIMD
      for (int j = 0; j < count.n; ++j) {
        out[d + j] = step * static_cast<float>((int8_t)codes[d + j]);
      }
    });
    return;
  }
  const int64_t lower = (width + 1) / 2;
  in_chunks(lower, [&](auto count, int64_t d) {
    WIDEDEEP_SIMD
    for (int j = 0; j < count.n; ++j) {
      out[d + j] = step * (static_cast<float>(codes[d + j] & 15) - 7.5f);
    }
  });
  in_chunks(width / 2, [&](auto count, int64_t d) {
    WIDEDEEP_SIMD
    for (int j = 0; j < count.n; ++j) {
      out[lower + d + j] = step * (static_cast<float>(codes[d + j] >> 4) - 7.5f);
    }
  });
}

}  // namespace
}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
