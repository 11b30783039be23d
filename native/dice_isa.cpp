// Dice over rows; loops are written for the compiler's vectors.
#include <stdint.h>

#include "dice.hpp"
#include "unit_math.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {

void dice_rows(const Dice& request, const float* inverse, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* const sums = request.sums + row * request.width;
    float* const out = request.out + row * request.width;
#pragma omp simd
    for (int64_t i = 0; i < request.width; ++i) {
      const float gate = logistic_of((sums[i] - request.mean[i]) * inverse[i]);
      out[i] = sums[i] * (gate + (1.0f - gate) * request.alpha[i]);
    }
  }
}

void dice_direct_grad_rows(const Dice& request, const DiceGrad& grad, const DicePass& pass,
                           int64_t begin, int64_t end, float* alpha_sums) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row * request.width;
    const float* const sums = request.sums + first;
    const float* const given = grad.grad_out + first;
    float* const out = grad.grad_sums + first;
    float* const normed = pass.normed + first;
    float* const normed_grad = pass.normed_grad + first;
#pragma omp simd
    for (int64_t i = 0; i < request.width; ++i) {
      const float centred = (sums[i] - request.mean[i]) * pass.inverse[i];
      const float gate = logistic_of(centred);
      const float by_alpha = given[i] * sums[i] * (1.0f - gate);
      const float alpha = request.alpha[i];
      alpha_sums[i] += by_alpha;
      normed[i] = centred;
      normed_grad[i] = by_alpha * (1.0f - alpha) * gate;
      out[i] = given[i] * (gate + (1.0f - gate) * alpha);
    }
  }
}

void dice_moment_grad_rows(const Dice& request, const DiceGrad& grad, const DicePass& pass,
                           int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row * request.width;
    const float* const normed = pass.normed + first;
    const float* const normed_grad = pass.normed_grad + first;
    float* const out = grad.grad_sums + first;
#pragma omp simd
    for (int64_t i = 0; i < request.width; ++i) {
      out[i] += pass.inverse[i] *
                (normed_grad[i] - pass.mean_grad[i] - normed[i] * pass.mean_normed_grad[i]);
    }
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
