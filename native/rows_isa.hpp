// What the row kernels share. Included by *_isa.cpp files alone: everything is in their own
// namespace, so each instruction set has its own copy.
#pragma once

#include <stdint.h>
#include <string.h>

#include "sparse.hpp"

// Before a loop over a row's columns: rows never overlap, so it may be vectorised as it stands.
// (A pragma of the language extension; no OpenMP runtime comes with it.)
#define WIDEDEEP_SIMD _Pragma("omp simd")

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

// A function that only prefetches looks to GCC as if it did nothing: unless it is inlined first,
// the call is dropped.
#define WIDEDEEP_PREFETCHES __attribute__((always_inline)) inline

// How many lines hold a row of `bytes`, `stride` bytes from the next: one more than its width
// needs, unless rows never straddle lines.
inline int64_t lines_of_bytes(const void* rows, uintptr_t bytes, uintptr_t stride) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(rows) & 63;
  const bool whole_lines = offset == 0 && stride % 64 == 0;
  const bool power_of_two = stride <= 64 && (stride & (stride - 1)) == 0;
  const bool within_one = power_of_two && (offset & (stride - 1)) + bytes <= stride;
  const bool same_place = stride % 64 == 0 && offset + bytes <= 64;
  const uintptr_t needed = (bytes + 63) / 64;
  return static_cast<int64_t>(whole_lines || within_one || same_place ? needed : needed + 1);
}

template <class T>
inline int64_t lines_of_row(const T* rows, int64_t stride, int64_t width) {
  return lines_of_bytes(rows, static_cast<uintptr_t>(width) * sizeof(T),
                        static_cast<uintptr_t>(stride) * sizeof(T));
}

inline int64_t lines_of_row(const ConstRows& rows) {
  return lines_of_row(rows.data, rows.stride, rows.width);
}

// Asks for the lines of a row; the address may be wrong (the caller has not checked the id yet).
WIDEDEEP_PREFETCHES void prefetch_bytes(const void* rows, int64_t stride, int64_t row,
                                        int64_t lines) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(rows) +
                            static_cast<uintptr_t>(row) * static_cast<uintptr_t>(stride);
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2);
  for (int64_t i = 1; i < lines; ++i) {
    __builtin_prefetch(reinterpret_cast<const void*>(address + static_cast<uintptr_t>(i) * 64), 0,
                       2);
  }
}

template <class T>
WIDEDEEP_PREFETCHES void prefetch_row(const T* data, int64_t stride, int64_t row, int64_t lines) {
  prefetch_bytes(data, stride * static_cast<int64_t>(sizeof(T)), row, lines);
}

// Asks for the lines of rows that are about to change.
class RowPrefetch {
 public:
  explicit RowPrefetch(const Rows& rows)
      : data_(rows.data),
        stride_(rows.stride * static_cast<int64_t>(sizeof(float))),
        lines_(lines_of_row(rows.data, rows.stride, rows.width)) {}
  explicit RowPrefetch(const WeightRows& rows)
      : RowPrefetch(Rows{rows.data, rows.stride, rows.width}) {
    if (rows.half == nullptr) return;
    data_ = rows.half;
    stride_ = rows.stride * static_cast<int64_t>(sizeof(uint16_t));
    lines_ = lines_of_row(rows.half, rows.stride, rows.width);
  }
  WIDEDEEP_PREFETCHES void operator()(int64_t row) const {
    prefetch_bytes(data_, stride_, row, lines_);
  }

 private:
  const void* data_;
  int64_t stride_;  // bytes
  int64_t lines_;
};

// A number of a table as float32; uint16 holds the bits of a bfloat16.
inline float widened(float number) { return number; }
inline float widened(uint16_t half) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(half) << 16);
}

inline bool bad_span(const CsrBatch& batch, int64_t begin, int64_t end) {
  return (begin < 0) | (begin > end) | (end > batch.n_ids);
}

inline bool bad_cell(const CsrBatch& batch, int64_t begin, int64_t end, uint64_t size) {
  if (bad_span(batch, begin, end)) return true;
  bool bad = false;
  for (int64_t n = begin; n < end; ++n) {
    bad |= static_cast<uint64_t>(batch.ids[n]) >= size;
  }
  return bad;
}

// What the sum over a bag is multiplied by: 1, 1 / sum w or 1 / sqrt(sum w^2); 0 for an empty bag.
// A maximum is no sum: 1.
inline float bag_scale(const CsrBatch& batch, int64_t begin, int64_t end, int8_t combiner) {
  if (combiner == kSum || combiner == kMax) return 1.0f;
  float total = 0.0f;
  if (batch.values == nullptr) {
    total = static_cast<float>(end - begin);
  } else if (combiner == kMean) {
    for (int64_t n = begin; n < end; ++n) total += batch.values[n];
  } else {
    for (int64_t n = begin; n < end; ++n) total += batch.values[n] * batch.values[n];
  }
  if (total == 0.0f) return 0.0f;
  return 1.0f / (combiner == kMean ? total : __builtin_sqrtf(total));
}

// The largest value of each column in a bag that is not empty.
template <int kWidth, class RowOf>
inline void max_rows(int64_t begin, int64_t end, int64_t any_width, const RowOf& row_of,
                     float* __restrict out) {
  const int64_t width = kWidth > 0 ? kWidth : any_width;
  const auto* __restrict first = row_of(begin);
  WIDEDEEP_SIMD
  for (int64_t d = 0; d < width; ++d) out[d] = widened(first[d]) + 0.0f;  // as a sum from 0: no -0
  for (int64_t n = begin + 1; n < end; ++n) {
    const auto* __restrict row = row_of(n);
    WIDEDEEP_SIMD
    for (int64_t d = 0; d < width; ++d) {
      const float number = widened(row[d]);
      out[d] = number > out[d] ? number : out[d];
    }
  }
}

// The combined rows of a bag, of which row_of(n) is the one of its n-th id; kWidth 0 is any width.
template <int kWidth, class RowOf>
inline void pool_rows(const CsrBatch& batch, int64_t begin, int64_t end, int64_t any_width,
                      const RowOf& row_of, int8_t combiner, float* __restrict out) {
  if (combiner == kMax && begin < end) {
    return max_rows<kWidth>(begin, end, any_width, row_of, out);
  }
  const int64_t width = kWidth > 0 ? kWidth : any_width;
  float local[kWidth > 0 ? kWidth : 1];
  float* sum = kWidth > 0 ? local : out;
  WIDEDEEP_SIMD
  for (int64_t d = 0; d < width; ++d) sum[d] = 0.0f;
  for (int64_t n = begin; n < end; ++n) {
    const auto* __restrict row = row_of(n);
    if (batch.values == nullptr) {
      WIDEDEEP_SIMD
      for (int64_t d = 0; d < width; ++d) sum[d] += widened(row[d]);
    } else {
      const float value = batch.values[n];
      WIDEDEEP_SIMD
      for (int64_t d = 0; d < width; ++d) sum[d] += value * widened(row[d]);
    }
  }
  const float scale = bag_scale(batch, begin, end, combiner);
  WIDEDEEP_SIMD
  for (int64_t d = 0; d < width; ++d) out[d] = sum[d] * scale;
}

// The same of a matrix, whose rows the ids are.
template <int kWidth>
inline void pool_bag(const CsrBatch& batch, int64_t begin, int64_t end, const ConstRows& weights,
                     int8_t combiner, float* __restrict out) {
  const auto row_of = [&](int64_t n) { return weights.data + batch.ids[n] * weights.stride; };
  pool_rows<kWidth>(batch, begin, end, weights.width, row_of, combiner, out);
}

}  // namespace
}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
