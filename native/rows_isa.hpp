// What the row kernels share. Included by *_isa.cpp files alone: everything is in their own
// namespace, so each instruction set has its own copy.
#pragma once

#include <stdint.h>
#include <string.h>

#include "sparse.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

// Asks for the lines of a row; the address may be wrong (the caller has not checked the id yet).
inline void prefetch_row(const ConstRows& rows, int64_t row) {
  const uintptr_t address =
      reinterpret_cast<uintptr_t>(rows.data) +
      static_cast<uintptr_t>(row) * static_cast<uintptr_t>(rows.stride) * sizeof(float);
  const uintptr_t last = address + static_cast<uintptr_t>(rows.width) * sizeof(float) - 1;
  for (uintptr_t line = address & ~uintptr_t{63}; line <= last; line += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(line), 0, 3);
  }
}

inline ConstRows read_only(const Rows& rows) { return {rows.data, rows.stride, rows.width}; }

inline bool bad_span(const CsrBatch& batch, int64_t begin, int64_t end) {
  return (begin < 0) | (begin > end) | (end > batch.n_ids);
}

inline bool bad_cell(const CsrBatch& batch, int64_t begin, int64_t end, int64_t size) {
  if (bad_span(batch, begin, end)) return true;
  bool bad = false;
  for (int64_t n = begin; n < end; ++n) {
    bad |= static_cast<uint64_t>(batch.ids[n]) >= static_cast<uint64_t>(size);
  }
  return bad;
}

// What the sum over a bag is multiplied by: 1, 1 / sum w or 1 / sqrt(sum w^2); 0 for an empty bag.
inline float bag_scale(const CsrBatch& batch, int64_t begin, int64_t end, int8_t combiner) {
  if (combiner == kSum) return 1.0f;
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

// The combined rows of a bag; kWidth 0 is any width.
template <int kWidth>
inline void pool_bag(const CsrBatch& batch, int64_t begin, int64_t end, const ConstRows& weights,
                     int64_t base, int8_t combiner, float* out) {
  const int64_t width = kWidth > 0 ? kWidth : weights.width;
  float local[kWidth > 0 ? kWidth : 1];
  float* sum = kWidth > 0 ? local : out;
  for (int64_t d = 0; d < width; ++d) sum[d] = 0.0f;
  for (int64_t n = begin; n < end; ++n) {
    const float* row = weights.data + (base + batch.ids[n]) * weights.stride;
    if (batch.values == nullptr) {
      for (int64_t d = 0; d < width; ++d) sum[d] += row[d];
    } else {
      const float value = batch.values[n];
      for (int64_t d = 0; d < width; ++d) sum[d] += value * row[d];
    }
  }
  const float scale = bag_scale(batch, begin, end, combiner);
  for (int64_t d = 0; d < width; ++d) out[d] = sum[d] * scale;
}

}  // namespace
}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
