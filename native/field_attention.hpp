// Attention of every field to every field, forward and backward, row by row: no score leaves the
// first cache.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"

namespace widedeep {

// A row's F fields have queries, keys, values and residuals of `heads * units` numbers, side by
// side.
//   a_ij = softmax_j(scale q_i . k_j) by head,  out_i = relu(sum_j a_ij v_j + residual_i)
struct FieldAttention {
  int64_t rows, fields, heads, units;
  float scale;
  const float* projected;  // (rows, fields, 4, heads, units)
  float* out;              // (rows, fields, heads, units)
};

struct FieldAttentionGrad {
  const float* grad_out;  // (rows, fields, heads, units)
  float* grad_projected;  // (rows, fields, 4, heads, units)
};

int64_t field_attention_room(const FieldAttention& request);  // floats

WIDEDEEP_DECLARE_ISA(void field_attention_rows(const FieldAttention& request, int64_t begin,
                                               int64_t end, float* room);
                     void field_attention_grad_rows(const FieldAttention& request,
                                                    const FieldAttentionGrad& grad, int64_t begin,
                                                    int64_t end, float* room);)

void field_attention(const FieldAttention& request, int threads);
void field_attention_grad(const FieldAttention& request, const FieldAttentionGrad& grad,
                          int threads);

}  // namespace widedeep
