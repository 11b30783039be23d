#include "packed_rows.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "thread_pool.hpp"

namespace widedeep {
namespace {

constexpr float kSmallest = std::numeric_limits<float>::min();
constexpr uint32_t kInfinity = 0x7F80;  // as a bfloat16

// The nearest finite bfloat16, ties to even, denormals to zero.
uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 31 << 15;
  if (std::fabs(value) < kSmallest) return static_cast<uint16_t>(sign);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 & 0x7FFF;
  return static_cast<uint16_t>(sign | std::min(rounded, kInfinity - 1));
}

// The byte of the least step >= exact, or of the nearest one; above 255 where there is none.
uint32_t step_byte(float exact, bool nearest) {
  const uint32_t rounding = nearest ? 1U << 19 : (1U << 20) - 1;
  const uint32_t upper = (std::bit_cast<uint32_t>(exact) + rounding) >> 20;
  return upper > kStepBase ? upper - kStepBase : 1;
}

// False for a row that is too large.
bool pack_row(const float* row, int64_t width, RowKind kind, uint8_t* bytes) {
  if (kind == RowKind::bfloat16) {
    for (int64_t d = 0; d < width; ++d) {
      const uint16_t half = to_bfloat16(row[d]);
      std::memcpy(bytes + 2 * d, &half, sizeof(half));
    }
    return true;
  }
  float largest = 0.0f;
  for (int64_t d = 0; d < width; ++d) largest = std::max(largest, std::fabs(row[d]));
  const bool is_int8 = kind == RowKind::int8;
  const float most = is_int8 ? 127.0f : 7.5f;
  const uint32_t byte = step_byte(largest / most, !is_int8);
  if (byte > 255) return false;
  const float step = std::bit_cast<float>((kStepBase + byte) << 20);
  uint8_t* const codes = bytes + 1;
  const int64_t lower = is_int8 ? width : (width + 1) / 2;
  std::fill_n(codes, lower, uint8_t{0});
  bytes[0] = largest < 0.5f * step ? 0 : static_cast<uint8_t>(byte);
  if (bytes[0] == 0) return true;
  for (int64_t d = 0; d < width; ++d) {
    const float steps = row[d] / step;
    if (is_int8) {
      codes[d] = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(steps)));
      continue;
    }
    const float half = std::clamp(std::nearbyint(steps + 7.5f), 0.0f, 15.0f);
    const auto code = static_cast<uint8_t>(half);
    codes[d % lower] |= static_cast<uint8_t>(d < lower ? code : code << 4);
  }
  return true;
}

}  // namespace

int64_t pack_table(const ConstRows& rows, int64_t n, RowKind kind, uint8_t* bytes, int threads) {
  const int64_t row_bytes = packed_row_bytes(kind, rows.width);
  std::atomic<int64_t> fault = n;
  parallel_for(n, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      if (pack_row(rows.data + i * rows.stride, rows.width, kind, bytes + i * row_bytes)) continue;
      int64_t first = fault.load();
      while (i < first && !fault.compare_exchange_weak(first, i)) {
      }
      return;
    }
  });
  return fault < n ? fault.load() : kNoFault;
}

void unpack_table(const PackedRows& table, const int64_t* rows, int64_t n, const Rows& out,
                  int threads) {
  parallel_for(n, threads, [&](int64_t begin, int64_t end, int) {
    WIDEDEEP_DISPATCH(unpack_range)(table, rows, begin, end, out);
  });
}

}  // namespace widedeep
