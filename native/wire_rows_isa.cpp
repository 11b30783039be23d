// Rows packed and unpacked: see wire_rows.hpp.
#include <string.h>

#include "rows_isa.hpp"
#include "wire_rows.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int64_t kAhead = 16;  // rows, which lie anywhere

constexpr uint32_t kInfinite = 255;  // exponent of what is not finite, as float32 stores it
constexpr uint32_t kSmallest = 16;   // exponent of the smallest rows that are more than 0
constexpr uint32_t kBias = 127;
constexpr uint32_t kBits = 14;  // of a number whose exponent is the row's, without the first
constexpr int32_t kLargest = 0x7FFF;

uint32_t bits_of(float number) { return __builtin_bit_cast(uint32_t, number); }
float power_of_two(uint32_t biased) { return __builtin_bit_cast(float, biased << 23); }

// The nearest bfloat16, ties to even; what is no number stays none.
uint16_t to_half(float number) {
  const uint32_t bits = bits_of(number);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

void pack_half(const float* row, int64_t width, uint8_t* out) {
  WIDEDEEP_SIMD
  for (int64_t d = 0; d < width; ++d) {
    const uint16_t half = to_half(row[d]);
    memcpy(out + d * 2, &half, 2);
  }
}

void unpack_half(const uint8_t* in, int64_t width, float* row) {
  WIDEDEEP_SIMD
  for (int64_t d = 0; d < width; ++d) {
    uint16_t half = 0;
    memcpy(&half, in + d * 2, 2);
    row[d] = widened(half);
  }
}

void pack_scaled(const float* row, int64_t width, uint8_t* out) {
  uint32_t largest = 0;  // magnitude, as bits: their order is that of the numbers, NaN above all
  for (int64_t d = 0; d < width; ++d) {
    const uint32_t magnitude = bits_of(row[d]) & 0x7FFFFFFF;
    largest = magnitude > largest ? magnitude : largest;
  }
  const uint32_t exponent = largest >> 23;
  const bool is_zero = exponent < kSmallest;
  out[0] = static_cast<uint8_t>(is_zero ? 0 : exponent);
  if (is_zero || exponent == kInfinite) {
    memset(out + 1, 0, static_cast<size_t>(width) * 2);
    return;
  }
  const float scale = power_of_two(2 * kBias + kBits - exponent);
  WIDEDEEP_SIMD
  for (int64_t d = 0; d < width; ++d) {
    const float scaled = row[d] * scale;  // exactly
    const float half = __builtin_bit_cast(float, (bits_of(scaled) & 0x80000000) | bits_of(0.5f));
    const auto whole = static_cast<int32_t>(scaled + half);
    const int32_t upper = whole < kLargest ? whole : kLargest;
    const auto number = static_cast<int16_t>(upper > -kLargest ? upper : -kLargest);
    memcpy(out + 1 + d * 2, &number, 2);
  }
}

void unpack_scaled(const uint8_t* in, int64_t width, float* row) {
  const uint32_t exponent = in[0];
  const float scale = exponent == kInfinite ? __builtin_bit_cast(float, 0x7FC00000U)
                      : exponent == 0       ? 0.0f
                                            : power_of_two(exponent - kBits);
  WIDEDEEP_SIMD
  for (int64_t d = 0; d < width; ++d) {
    int16_t number = 0;
    memcpy(&number, in + 1 + d * 2, 2);
    row[d] = static_cast<float>(number) * scale;
  }
}

// Widths of the wide part and of many tables are known sooner than a call is made.
void copy_row(void* out, const void* row, int64_t width) {
  if (width == 1) {
    memcpy(out, row, sizeof(float));
  } else if (width == 16) {
    memcpy(out, row, 16 * sizeof(float));
  } else {
    memcpy(out, row, static_cast<size_t>(width) * sizeof(float));
  }
}

void pack(const float* row, int64_t width, WireFormat format, uint8_t* out) {
  if (format == WireFormat::scaled) return pack_scaled(row, width, out);
  if (format == WireFormat::bfloat16) return pack_half(row, width, out);
  copy_row(out, row, width);
}

void unpack(const uint8_t* in, int64_t width, WireFormat format, float* row) {
  if (format == WireFormat::scaled) return unpack_scaled(in, width, row);
  if (format == WireFormat::bfloat16) return unpack_half(in, width, row);
  copy_row(row, in, width);
}

template <int kWrite>
WIDEDEEP_PREFETCHES void prefetch(const float* row, int64_t width) {
  for (int64_t d = 0; d < width; d += 16) __builtin_prefetch(row + d, kWrite, 3);
}

int64_t place(const int64_t* rows, int64_t i) { return rows == nullptr ? i : rows[i]; }

}  // namespace

void pack_range(const WireRows& wire, const ConstRows& matrix, int64_t begin, int64_t end) {
  const int64_t width = matrix.width, size = wire_bytes(wire.format, width);
  for (int64_t i = begin; i < end; ++i) {
    if (i + kAhead < end) {
      prefetch<0>(matrix.data + place(wire.rows, i + kAhead) * matrix.stride, width);
    }
    pack(matrix.data + place(wire.rows, i) * matrix.stride, width, wire.format,
         wire.bytes + i * size);
  }
}

void unpack_range(const WireRows& wire, const Rows& matrix, int64_t begin, int64_t end) {
  const int64_t width = matrix.width, size = wire_bytes(wire.format, width);
  for (int64_t i = begin; i < end; ++i) {
    if (i + kAhead < end) {
      prefetch<1>(matrix.data + place(wire.rows, i + kAhead) * matrix.stride, width);
    }
    unpack(wire.bytes + i * size, width, wire.format,
           matrix.data + place(wire.rows, i) * matrix.stride);
  }
}

void move_range(const MovedRows& moved, int64_t begin, int64_t end, uint8_t* row_bytes) {
  const ConstRows& from = moved.from;
  const Rows& to = moved.to;
  const int64_t width = from.width;
  for (int64_t i = begin; i < end; ++i) {
    if (i + kAhead < end) {
      prefetch<0>(from.data + place(moved.from_rows, i + kAhead) * from.stride, width);
    }
    const float* const row = from.data + place(moved.from_rows, i) * from.stride;
    float* const out = to.data + place(moved.to_rows, i) * to.stride;
    if (moved.format == WireFormat::float32) {
      copy_row(out, row, width);
    } else {
      pack(row, width, moved.format, row_bytes);
      unpack(row_bytes, width, moved.format, out);
    }
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
