#include "exp_norm.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "thread_pool.hpp"
#include "tower_units.hpp"

namespace widedeep {
namespace {

std::size_t as_size(int64_t n) { return static_cast<std::size_t>(n); }

std::vector<float> inverses(const ExpNorm& request) {
  std::vector<float> inverse(as_size(request.width));
  for (int64_t i = 0; i < request.width; ++i) {
    inverse[as_size(i)] = 1.0f / std::sqrt(request.variance[i] + request.epsilon);
  }
  return inverse;
}

template <class Fn>
void over_parts(int64_t rows, int threads, Fn&& part) {
  const int64_t parts = (rows + kExpNormRows - 1) / kExpNormRows;
  parallel_for(parts, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      part(i, i * kExpNormRows, std::min(rows, (i + 1) * kExpNormRows));
    }
  });
}

void fill_moments(const ExpNorm& request, int threads) {
  const ConstRows values{request.values, request.width, request.width};
  const int64_t pieces = (request.width + kNormColumns - 1) / kNormColumns;
  parallel_for(pieces, threads, [&](int64_t begin, int64_t end, int) {
    double mean[kNormColumns];
    double variance[kNormColumns];
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece * kNormColumns;
      const int64_t last = std::min(request.width, first + kNormColumns);
      WIDEDEEP_DISPATCH(column_moments)
      (values, request.rows * request.dim, first, last, mean, variance);
      std::copy_n(mean, last - first, request.mean + first);
      std::copy_n(variance, last - first, request.variance + first);
    }
  });
}

}  // namespace

void exp_norm(const ExpNorm& request, int threads) {
  over_parts(request.rows, threads, [&](int64_t, int64_t begin, int64_t end) {
    WIDEDEEP_DISPATCH(exp_rows)(request, begin, end);
  });
  fill_moments(request, threads);
  const std::vector<float> inverse = inverses(request);
  const int64_t parts = (request.rows + kExpNormRows - 1) / kExpNormRows;
  parallel_for(parts, threads, [&](int64_t begin, int64_t end, int) {
    std::vector<float> line(as_size(request.dim * request.width));
    WIDEDEEP_DISPATCH(norm_turned_rows)
    (request, inverse.data(), begin * kExpNormRows, std::min(request.rows, end * kExpNormRows),
     line.data());
  });
}

void exp_norm_grad(const ExpNorm& request, const ExpNormGrad& grad, int threads) {
  const int64_t width = request.width;
  const std::vector<float> inverse = inverses(request);
  const int64_t parts = (request.rows + kExpNormRows - 1) / kExpNormRows;
  std::vector<float> sums(as_size(2 * parts * width), 0.0f);
  over_parts(request.rows, threads, [&](int64_t part, int64_t begin, int64_t end) {
    float* const first = sums.data() + 2 * part * width;
    WIDEDEEP_DISPATCH(turned_grad_sums)
    (request, grad, inverse.data(), begin, end, first, first + width);
  });
  const auto count = static_cast<double>(request.rows * request.dim);
  std::vector<float> mean_grad(as_size(width));
  std::vector<float> mean_product(as_size(width));
  for (int64_t i = 0; i < width; ++i) {
    double total = 0.0;
    double product = 0.0;
    for (int64_t part = 0; part < parts; ++part) {
      total += sums[as_size(2 * part * width + i)];
      product += sums[as_size((2 * part + 1) * width + i)];
    }
    grad.grad_bias[i] = static_cast<float>(total);
    grad.grad_weight[i] = static_cast<float>(product);
    mean_grad[as_size(i)] = static_cast<float>(total / count);
    mean_product[as_size(i)] = static_cast<float>(product / count);
  }
  over_parts(request.rows, threads, [&](int64_t, int64_t begin, int64_t end) {
    WIDEDEEP_DISPATCH(exp_norm_grad_rows)
    (request, grad, inverse.data(), mean_grad.data(), mean_product.data(), begin, end);
  });
}

}  // namespace widedeep
