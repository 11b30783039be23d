// exp and batch norm of AFN's logarithmic neurons, forward and backward.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"

namespace widedeep {

// For each of `rows` examples and `dim` dimensions, `width` sums: e = exp(s), and the batch norm of
// e over examples and dimensions, turned to (rows, width, dim).
struct ExpNorm {
  int64_t rows, dim, width;
  float* values;        // (rows, dim, width): forward: s, then e
  const float* weight;  // (width)
  const float* bias;    // (width)
  float* mean;          // (width): forward fills them
  float* variance;      // (width)
  float epsilon;        // added to the variance
  float* out;           // (rows, width, dim); forward
};

struct ExpNormGrad {
  const float* grad_out;  // (rows, width, dim)
  float* grad_sums;       // (rows, dim, width)
  float* grad_weight;     // (width)
  float* grad_bias;       // (width)
};

constexpr int64_t kExpNormRows = 16;  // examples whose gradients one part sums

WIDEDEEP_DECLARE_ISA(
    // Examples [begin, end); `line` has room for dim * width floats.
    void exp_rows(const ExpNorm& request, int64_t begin, int64_t end);
    void norm_turned_rows(const ExpNorm& request, const float* inverse, int64_t begin, int64_t end,
                          float* line);
    // Adds to one part's sums: of the gradients by normed values, and of their product with these.
    void turned_grad_sums(const ExpNorm& request, const ExpNormGrad& grad, const float* inverse,
                          int64_t begin, int64_t end, float* sums, float* products);
    void exp_norm_grad_rows(const ExpNorm& request, const ExpNormGrad& grad, const float* inverse,
                            const float* mean_grad, const float* mean_product, int64_t begin,
                            int64_t end);)

void exp_norm(const ExpNorm& request, int threads);
void exp_norm_grad(const ExpNorm& request, const ExpNormGrad& grad, int threads);

}  // namespace widedeep
