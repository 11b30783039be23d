// The passes of a norm: over its columns, whose moments are found, and over parts of the rows.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "thread_pool.hpp"
#include "tower_units.hpp"

namespace widedeep {

// The inverses of the standard deviations.
inline std::vector<float> inverses(const float* variance, int64_t width, float epsilon) {
  std::vector<float> inverse(static_cast<size_t>(width));
  for (int64_t i = 0; i < width; ++i) {
    inverse[static_cast<size_t>(i)] = 1.0f / std::sqrt(variance[i] + epsilon);
  }
  return inverse;
}

// Calls columns(begin, end, first, second), which has room for two figures a column.
template <class Fn>
void over_columns(int64_t width, int threads, Fn&& columns) {
  const int64_t pieces = (width + kNormColumns - 1) / kNormColumns;
  parallel_for(pieces, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t piece = begin; piece < end; ++piece) {
      double first[kNormColumns];
      double second[kNormColumns];
      const int64_t start = piece * kNormColumns;
      columns(start, std::min(width, start + kNormColumns), first, second);
    }
  });
}

// The means and variances of columns.
inline void find_column_moments(const ConstRows& values, int64_t rows, int threads, float* means,
                                float* variances) {
  over_columns(values.width, threads,
               [&](int64_t begin, int64_t end, double* mean, double* variance) {
                 WIDEDEEP_DISPATCH(column_moments)(values, rows, begin, end, mean, variance);
                 std::copy_n(mean, end - begin, means + begin);
                 std::copy_n(variance, end - begin, variances + begin);
               });
}

// Calls part(index, begin, end) for each `size` rows.
template <class Fn>
void over_parts(int64_t rows, int64_t size, int threads, Fn&& part) {
  parallel_for((rows + size - 1) / size, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) part(i, i * size, std::min(rows, (i + 1) * size));
  });
}

}  // namespace widedeep
