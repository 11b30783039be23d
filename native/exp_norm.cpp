#include "exp_norm.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "norm_passes.hpp"

namespace widedeep {
namespace {

std::size_t as_size(int64_t n) { return static_cast<std::size_t>(n); }

}  // namespace

void exp_norm(const ExpNorm& request, int threads) {
  over_parts(request.rows, kExpNormRows, threads, [&](int64_t, int64_t begin, int64_t end) {
    WIDEDEEP_DISPATCH(exp_rows)(request, begin, end);
  });
  const ConstRows values{request.values, request.width, request.width};
  find_column_moments(values, request.rows * request.dim, threads, request.mean, request.variance);
  const std::vector<float> inverse = inverses(request.variance, request.width, request.epsilon);
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
  const std::vector<float> inverse = inverses(request.variance, request.width, request.epsilon);
  const int64_t parts = (request.rows + kExpNormRows - 1) / kExpNormRows;
  std::vector<float> sums(as_size(2 * parts * width), 0.0f);
  over_parts(request.rows, kExpNormRows, threads, [&](int64_t part, int64_t begin, int64_t end) {
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
  over_parts(request.rows, kExpNormRows, threads, [&](int64_t, int64_t begin, int64_t end) {
    WIDEDEEP_DISPATCH(exp_norm_grad_rows)
    (request, grad, inverse.data(), mean_grad.data(), mean_product.data(), begin, end);
  });
}

}  // namespace widedeep
