#include "wire_rows.hpp"

#include <string.h>

#include <vector>

#include "bfloat16.hpp"
#include "thread_pool.hpp"

namespace widedeep {
namespace {

constexpr int64_t kAhead = 16;     // rows, which lie anywhere
constexpr int64_t kFew = 1 << 12;  // rows that are not worth waking a thread for

template <class Range>
void over_rows(int64_t n, int threads, Range range) {
  parallel_for(n, n < kFew ? 1 : threads,
               [&](int64_t begin, int64_t end, int) { range(begin, end); });
}

int64_t place(const int64_t* rows, int64_t i) { return rows == nullptr ? i : rows[i]; }

}  // namespace

void pack_rows(const WireRows& wire, const ConstRows& matrix, int64_t n, int threads) {
  const auto range = WIDEDEEP_DISPATCH(pack_range);
  over_rows(n, threads, [&](int64_t begin, int64_t end) { range(wire, matrix, begin, end); });
}

void unpack_rows(const WireRows& wire, const Rows& matrix, int64_t n, int threads) {
  const auto range = WIDEDEEP_DISPATCH(unpack_range);
  over_rows(n, threads, [&](int64_t begin, int64_t end) { range(wire, matrix, begin, end); });
}

void move_rows(const MovedRows& moved, int64_t n, int threads) {
  const auto range = WIDEDEEP_DISPATCH(move_range);
  over_rows(n, threads, [&](int64_t begin, int64_t end) {
    const int64_t size = wire_bytes(moved.format, moved.from.width);
    std::vector<uint8_t> row(static_cast<size_t>(size));
    range(moved, begin, end, row.data());
  });
}

void pack_half_rows(const HalfRows& matrix, const int64_t* rows, int64_t n, uint8_t* bytes,
                    int threads) {
  const auto size = static_cast<size_t>(matrix.width) * 2;
  over_rows(n, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end) {
        __builtin_prefetch(matrix.data + place(rows, i + kAhead) * matrix.stride);
      }
      memcpy(bytes + i * matrix.width * 2, matrix.data + place(rows, i) * matrix.stride, size);
    }
  });
}

void move_half_rows(const HalfRows& matrix, const MovedRows& moved, int64_t n, int threads) {
  over_rows(n, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint16_t* const row = matrix.data + place(moved.from_rows, i) * matrix.stride;
      float* const out = moved.to.data + place(moved.to_rows, i) * moved.to.stride;
      for (int64_t d = 0; d < matrix.width; ++d) out[d] = from_bfloat16(row[d]);
    }
  });
}

}  // namespace widedeep
