#include "dice.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "thread_pool.hpp"
#include "tower_units.hpp"

namespace widedeep {
namespace {

std::size_t as_size(int64_t n) { return static_cast<std::size_t>(n); }

std::vector<float> inverses(const Dice& request) {
  std::vector<float> inverse(as_size(request.width));
  for (int64_t i = 0; i < request.width; ++i) {
    inverse[as_size(i)] = 1.0f / std::sqrt(request.variance[i] + request.epsilon);
  }
  return inverse;
}

// Calls moments(begin, end, first, second) for columns, and puts its results into two arrays.
template <class Fn>
void over_columns(int64_t width, int threads, float* first, float* second, Fn&& moments) {
  const int64_t pieces = (width + kNormColumns - 1) / kNormColumns;
  parallel_for(pieces, threads, [&](int64_t begin, int64_t end, int) {
    double ones[kNormColumns];
    double others[kNormColumns];
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t start = piece * kNormColumns;
      const int64_t stop = std::min(width, start + kNormColumns);
      moments(start, stop, ones, others);
      std::copy_n(ones, stop - start, first + start);
      std::copy_n(others, stop - start, second + start);
    }
  });
}

template <class Fn>
void over_parts(int64_t rows, int threads, Fn&& part) {
  const int64_t parts = (rows + kDiceRows - 1) / kDiceRows;
  parallel_for(parts, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      part(i, i * kDiceRows, std::min(rows, (i + 1) * kDiceRows));
    }
  });
}

}  // namespace

void dice(const Dice& request, int threads) {
  const ConstRows sums{request.sums, request.width, request.width};
  over_columns(request.width, threads, request.mean, request.variance,
               [&](int64_t begin, int64_t end, double* mean, double* variance) {
                 WIDEDEEP_DISPATCH(column_moments)
                 (sums, request.rows, begin, end, mean, variance);
               });
  const std::vector<float> inverse = inverses(request);
  over_parts(request.rows, threads, [&](int64_t, int64_t begin, int64_t end) {
    WIDEDEEP_DISPATCH(dice_rows)(request, inverse.data(), begin, end);
  });
}

void dice_grad(const Dice& request, const DiceGrad& grad, int threads) {
  const int64_t width = request.width;
  const std::vector<float> inverse = inverses(request);
  std::vector<float> normed(as_size(request.rows * width));
  std::vector<float> normed_grad(as_size(request.rows * width));
  std::vector<float> mean_grad(as_size(width));
  std::vector<float> mean_product(as_size(width));
  const DicePass pass{inverse.data(), normed.data(), normed_grad.data(), mean_grad.data(),
                      mean_product.data()};
  const int64_t parts = (request.rows + kDiceRows - 1) / kDiceRows;
  std::vector<float> alphas(as_size(parts * width), 0.0f);
  over_parts(request.rows, threads, [&](int64_t part, int64_t begin, int64_t end) {
    WIDEDEEP_DISPATCH(dice_direct_grad_rows)
    (request, grad, pass, begin, end, alphas.data() + part * width);
  });
  over_columns(width, threads, mean_grad.data(), mean_product.data(),
               [&](int64_t begin, int64_t end, double* mean, double* product) {
                 WIDEDEEP_DISPATCH(column_products)
                 ({normed_grad.data(), width, width}, {normed.data(), width, width}, request.rows,
                  begin, end, mean, product);
               });
  over_parts(request.rows, threads, [&](int64_t, int64_t begin, int64_t end) {
    WIDEDEEP_DISPATCH(dice_moment_grad_rows)(request, grad, pass, begin, end);
  });
  for (int64_t i = 0; i < width; ++i) {
    double total = 0.0;
    for (int64_t part = 0; part < parts; ++part) total += alphas[as_size(part * width + i)];
    grad.grad_alpha[i] = static_cast<float>(total);
  }
}

}  // namespace widedeep
