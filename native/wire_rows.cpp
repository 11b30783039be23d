#include "wire_rows.hpp"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <bit>

#include "bfloat16.hpp"
#include "thread_pool.hpp"

namespace widedeep {
namespace {

constexpr int64_t kAhead = 16;     // rows, which lie anywhere
constexpr int64_t kLine = 16;      // floats of a cache line
constexpr int64_t kFew = 1 << 12;  // rows that are not worth waking a thread for

template <int kWrite>
void prefetch(const float* row, int64_t width) {
  for (int64_t d = 0; d < width; d += kLine) __builtin_prefetch(row + d, kWrite, 3);
}

constexpr uint32_t kInfinite = 255;  // exponent of what is not finite, as float32 stores it
constexpr uint32_t kSmallest = 16;   // exponent of the smallest rows that are more than 0
constexpr uint32_t kBias = 127;
constexpr uint32_t kBits = 14;  // of a number whose exponent is the row's, without the first

float power_of_two(uint32_t biased) { return std::bit_cast<float>(biased << 23); }

void pack_scaled(const float* row, int64_t width, uint8_t* out) {
  uint32_t largest = 0;  // magnitude, as bits: their order is that of the numbers, NaN above all
  for (int64_t d = 0; d < width; ++d) {
    largest = std::max(largest, std::bit_cast<uint32_t>(row[d]) & 0x7FFFFFFF);
  }
  const uint32_t exponent = largest >> 23;
  const bool is_zero = exponent < kSmallest;
  out[0] = static_cast<uint8_t>(is_zero ? 0 : exponent);
  if (is_zero || exponent == kInfinite) {
    memset(out + 1, 0, static_cast<size_t>(width) * 2);
    return;
  }
  const float scale = power_of_two(2 * kBias + kBits - exponent);
  for (int64_t d = 0; d < width; ++d) {
    const float scaled = row[d] * scale;  // exactly
    const float rounded = scaled + copysignf(0.5f, scaled);
    const auto number = static_cast<int16_t>(
        std::clamp(static_cast<int32_t>(rounded), -INT16_MAX, static_cast<int32_t>(INT16_MAX)));
    memcpy(out + 1 + d * 2, &number, 2);
  }
}

void unpack_scaled(const uint8_t* in, int64_t width, float* row) {
  const uint32_t exponent = in[0];
  const float scale = exponent == kInfinite ? std::bit_cast<float>(0x7FC00000U)
                      : exponent == 0       ? 0.0f
                                            : power_of_two(exponent - kBits);
  for (int64_t d = 0; d < width; ++d) {
    int16_t number = 0;
    memcpy(&number, in + 1 + d * 2, 2);
    row[d] = static_cast<float>(number) * scale;
  }
}

}  // namespace

void pack_rows(const ConstRows& matrix, const int64_t* rows, int64_t n, WireFormat format,
               uint8_t* bytes, int threads) {
  const int64_t width = matrix.width, size = wire_bytes(format, width);
  parallel_for(n, n < kFew ? 1 : threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end) prefetch<0>(matrix.data + rows[i + kAhead] * matrix.stride, width);
      const float* const row = matrix.data + rows[i] * matrix.stride;
      uint8_t* const out = bytes + i * size;
      switch (format) {
        case WireFormat::float32:
          memcpy(out, row, static_cast<size_t>(size));
          break;
        case WireFormat::bfloat16:
          for (int64_t d = 0; d < width; ++d) {
            const uint16_t half = to_bfloat16(row[d]);
            memcpy(out + d * 2, &half, 2);
          }
          break;
        case WireFormat::scaled:
          pack_scaled(row, width, out);
          break;
      }
    }
  });
}

void pack_half_rows(const uint16_t* matrix, int64_t stride, int64_t width, const int64_t* rows,
                    int64_t n, uint8_t* bytes, int threads) {
  const auto size = static_cast<size_t>(width) * 2;
  parallel_for(n, n < kFew ? 1 : threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end) __builtin_prefetch(matrix + rows[i + kAhead] * stride);
      memcpy(bytes + i * width * 2, matrix + rows[i] * stride, size);
    }
  });
}

void unpack_rows(const uint8_t* bytes, const int64_t* rows, int64_t n, WireFormat format,
                 const Rows& matrix, int threads) {
  const int64_t width = matrix.width, size = wire_bytes(format, width);
  parallel_for(n, n < kFew ? 1 : threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end) prefetch<1>(matrix.data + rows[i + kAhead] * matrix.stride, width);
      float* const row = matrix.data + rows[i] * matrix.stride;
      const uint8_t* const in = bytes + i * size;
      switch (format) {
        case WireFormat::float32:
          memcpy(row, in, static_cast<size_t>(size));
          break;
        case WireFormat::bfloat16:
          for (int64_t d = 0; d < width; ++d) {
            uint16_t half = 0;
            memcpy(&half, in + d * 2, 2);
            row[d] = from_bfloat16(half);
          }
          break;
        case WireFormat::scaled:
          unpack_scaled(in, width, row);
          break;
      }
    }
  });
}

}  // namespace widedeep
