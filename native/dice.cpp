#include "dice.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "norm_passes.hpp"

namespace widedeep {
namespace {

std::size_t as_size(int64_t n) { return static_cast<std::size_t>(n); }

}  // namespace

void dice(const Dice& request, int threads) {
  const ConstRows sums{request.sums, request.width, request.width};
  find_column_moments(sums, request.rows, threads, request.mean, request.variance);
  const std::vector<float> inverse = inverses(request.variance, request.width, request.epsilon);
  over_parts(request.rows, kDiceRows, threads, [&](int64_t, int64_t begin, int64_t end) {
    WIDEDEEP_DISPATCH(dice_rows)(request, inverse.data(), begin, end);
  });
}

void dice_grad(const Dice& request, const DiceGrad& grad, int threads) {
  const int64_t width = request.width;
  const std::vector<float> inverse = inverses(request.variance, request.width, request.epsilon);
  std::vector<float> normed(as_size(request.rows * width));
  std::vector<float> normed_grad(as_size(request.rows * width));
  std::vector<float> mean_grad(as_size(width));
  std::vector<float> mean_product(as_size(width));
  const DicePass pass{inverse.data(), normed.data(), normed_grad.data(), mean_grad.data(),
                      mean_product.data()};
  const int64_t parts = (request.rows + kDiceRows - 1) / kDiceRows;
  std::vector<float> alphas(as_size(parts * width), 0.0f);
  over_parts(request.rows, kDiceRows, threads, [&](int64_t part, int64_t begin, int64_t end) {
    WIDEDEEP_DISPATCH(dice_direct_grad_rows)
    (request, grad, pass, begin, end, alphas.data() + part * width);
  });
  over_columns(width, threads, [&](int64_t begin, int64_t end, double* mean, double* product) {
    WIDEDEEP_DISPATCH(column_products)
    ({normed_grad.data(), width, width}, {normed.data(), width, width}, request.rows, begin, end,
     mean, product);
    std::copy_n(mean, end - begin, mean_grad.data() + begin);
    std::copy_n(product, end - begin, mean_product.data() + begin);
  });
  over_parts(request.rows, kDiceRows, threads, [&](int64_t, int64_t begin, int64_t end) {
    WIDEDEEP_DISPATCH(dice_moment_grad_rows)(request, grad, pass, begin, end);
  });
  for (int64_t i = 0; i < width; ++i) {
    double total = 0.0;
    for (int64_t part = 0; part < parts; ++part) total += alphas[as_size(part * width + i)];
    grad.grad_alpha[i] = static_cast<float>(total);
  }
}

}  // namespace widedeep
