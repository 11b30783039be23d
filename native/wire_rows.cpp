#include "wire_rows.hpp"

#include <string.h>

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

}  // namespace

void pack_rows(const ConstRows& matrix, const int64_t* rows, int64_t n, bool bfloat16,
               uint8_t* bytes, int threads) {
  const int64_t width = matrix.width;
  parallel_for(n, n < kFew ? 1 : threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end) prefetch<0>(matrix.data + rows[i + kAhead] * matrix.stride, width);
      const float* const row = matrix.data + rows[i] * matrix.stride;
      if (!bfloat16) {
        memcpy(bytes + i * width * 4, row, static_cast<size_t>(width) * 4);
        continue;
      }
      uint8_t* const out = bytes + i * width * 2;
      for (int64_t d = 0; d < width; ++d) {
        const uint16_t half = to_bfloat16(row[d]);
        memcpy(out + d * 2, &half, 2);
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

void unpack_rows(const uint8_t* bytes, const int64_t* rows, int64_t n, bool bfloat16,
                 const Rows& matrix, int threads) {
  const int64_t width = matrix.width;
  parallel_for(n, n < kFew ? 1 : threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end) prefetch<1>(matrix.data + rows[i + kAhead] * matrix.stride, width);
      float* const row = matrix.data + rows[i] * matrix.stride;
      if (!bfloat16) {
        memcpy(row, bytes + i * width * 4, static_cast<size_t>(width) * 4);
        continue;
      }
      const uint8_t* const in = bytes + i * width * 2;
      for (int64_t d = 0; d < width; ++d) {
        uint16_t half = 0;
        memcpy(&half, in + d * 2, 2);
        row[d] = from_bfloat16(half);
      }
    }
  });
}

}  // namespace widedeep
