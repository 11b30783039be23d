// exp and batch norm over rows; loops are written for the compiler's vectors.
#include <stdint.h>

#include "exp_norm.hpp"
#include "tower_vector.hpp"
#include "unit_math.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

// to[k][r] = from[r][k] for `rows` and `columns` of `from`.
void turn(const float* from, int64_t rows, int64_t columns, float* to) {
  const int64_t inner_rows = rows / 4 * 4;
  const int64_t inner_columns = columns / 4 * 4;
  for (int64_t k = 0; k < inner_columns; k += 4) {
    for (int64_t r = 0; r < inner_rows; r += 4) {
      transpose_4x4(from + r * columns + k, columns, to + k * rows + r, rows);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = r < inner_rows ? inner_columns : 0; k < columns; ++k) {
      to[k * rows + r] = from[r * columns + k];
    }
  }
}

}  // namespace

void exp_rows(const ExpNorm& request, int64_t begin, int64_t end) {
  const int64_t line = request.dim * request.width;
  float* const values = request.values + begin * line;
#pragma omp simd
  for (int64_t i = 0; i < (end - begin) * line; ++i) values[i] = exp_of(values[i]);
}

void norm_turned_rows(const ExpNorm& request, const float* inverse, int64_t begin, int64_t end,
                      float* line) {
  const int64_t width = request.width;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t d = 0; d < request.dim; ++d) {
      const float* const values = request.values + (row * request.dim + d) * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        line[d * width + i] =
            (values[i] - request.mean[i]) * inverse[i] * request.weight[i] + request.bias[i];
      }
    }
    turn(line, request.dim, width, request.out + row * request.dim * width);
  }
}

void turned_grad_sums(const ExpNorm& request, const ExpNormGrad& grad, const float* inverse,
                      int64_t begin, int64_t end, float* sums, float* products) {
  const int64_t width = request.width;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row * request.dim * width;
    turn(grad.grad_out + first, width, request.dim, grad.grad_sums + first);
    for (int64_t d = 0; d < request.dim; ++d) {
      const float* const values = request.values + first + d * width;
      const float* const given = grad.grad_sums + first + d * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        sums[i] += given[i];
        products[i] += given[i] * ((values[i] - request.mean[i]) * inverse[i]);
      }
    }
  }
}

void exp_norm_grad_rows(const ExpNorm& request, const ExpNormGrad& grad, const float* inverse,
                        const float* mean_grad, const float* mean_product, int64_t begin,
                        int64_t end) {
  const int64_t width = request.width;
  for (int64_t line = begin * request.dim; line < end * request.dim; ++line) {
    const float* const values = request.values + line * width;
    float* const out = grad.grad_sums + line * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const float normed = (values[i] - request.mean[i]) * inverse[i];
      const float by_value = out[i] - mean_grad[i] - normed * mean_product[i];
      out[i] = values[i] * request.weight[i] * inverse[i] * by_value;
    }
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
