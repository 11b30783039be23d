// What follows the sums of a dense layer in training: activation, dropout, batch norm.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"
#include "sparse.hpp"

namespace widedeep {

enum class UnitActivation { linear, relu, gelu, tanh, elu, leaky_relu, silu };

struct UnitRows {
  UnitActivation activation;
  float dropout;
  uint64_t key;
  int64_t width;
  Rows out;    // the sums, then the outputs
  Rows slope;  // derivative of each output by its sum
};

struct NormRows {
  const float* mean;
  const float* inverse;  // of the standard deviation
  const float* weight;
  const float* bias;
  const float* mean_grad;         // backward: mean over the rows of the outputs' gradient,
  const float* mean_normed_grad;  // and of its product with `normed`
  Rows normed;
  Rows values;  // forward: inputs, then outputs; backward: the gradient of these, then of those
};

// Columns whose moments one thread sums.
constexpr int64_t kNormColumns = 64;

WIDEDEEP_DECLARE_ISA(
    // Rows [begin, end) of each.
    void unit_rows(const UnitRows& request, int64_t begin, int64_t end);
    void norm_rows(const NormRows& request, int64_t begin, int64_t end);
    void norm_grad_rows(const NormRows& request, int64_t begin, int64_t end);
    void scale_rows(const Rows& grad, const Rows& slope, int64_t begin, int64_t end);
    void mask_rows(const Rows& grad, const ConstRows& out, int64_t begin, int64_t end);
    // Means and variances of columns [begin, end) over the rows; kNormColumns at most.
    void column_moments(const ConstRows& values, int64_t rows, int64_t begin, int64_t end,
                        double* mean, double* variance);
    // Means of `grad` and of its product with `normed`.
    void column_products(const ConstRows& grad, const ConstRows& normed, int64_t rows,
                         int64_t begin, int64_t end, double* mean, double* mean_product);)

}  // namespace widedeep
