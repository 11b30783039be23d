// Convolutions over fields whose largest values go on, forward and backward, row by row.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"

namespace widedeep {

constexpr int64_t kConvolutionLanes = 16;  // dimensions that are computed together

// values[n][f] = tanh(bias_n + sum_(m, w) weight_nmw maps[m][f + w - (width - 1) / 2]), zeros
// beyond the ends; of each n the k largest, the largest first. All by dimension.
struct FieldConvolution {
  int64_t rows, maps, fields, dim, filters, width, k;
  const float* input;   // (rows, maps, fields, dim)
  const float* weight;  // (filters, maps, width)
  const float* bias;    // (filters)
  float* out;           // (rows, filters, k, dim)
  uint8_t* positions;   // (rows, filters, k, dim): field of each value
};

struct FieldConvolutionGrad {
  const float* grad_out;  // (rows, filters, k, dim)
  float* grad_input;      // (rows, maps, fields, dim), or null
  float* sums;            // (parts, filters, maps * width + 1): by weight, then by bias
};

constexpr int64_t kConvolutionRows = 64;  // rows whose gradients by the weight one part sums

int64_t field_convolution_room(const FieldConvolution& request);  // floats

WIDEDEEP_DECLARE_ISA(void field_convolution_rows(const FieldConvolution& request, int64_t begin,
                                                 int64_t end, float* room);
                     // Adds to one part's sums.
                     void field_convolution_grad_rows(const FieldConvolution& request,
                                                      const FieldConvolutionGrad& grad,
                                                      int64_t begin, int64_t end, float* sums,
                                                      float* room);)

void field_convolution(const FieldConvolution& request, int threads);

// Fills grad_input, and the gradients by weight and bias. Sums have one order, whatever the number
// of threads.
void field_convolution_grad(const FieldConvolution& request, FieldConvolutionGrad grad,
                            float* grad_weight, float* grad_bias, int threads);

}  // namespace widedeep
