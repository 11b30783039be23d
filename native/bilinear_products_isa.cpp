// Products of pairs; loops are written for the compiler's vectors.
#include <stdint.h>
#include <string.h>

#include "bilinear_products.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {

void bilinear_product_rows(const BilinearProducts& request, int64_t begin, int64_t end) {
  const int64_t dim = request.dim;
  const int64_t plain = request.fields * (request.fields - 1) / 2 * dim;
  for (int64_t row = begin; row < end; ++row) {
    const float* left = request.left.data + row * request.left.stride;
    const float* const fields = request.right.data + row * request.right.stride;
    const float* const gates = request.gates.data + row * request.gates.stride;
    float* out = request.out.data + row * request.out.stride;
    for (int64_t i = 0; i + 1 < request.fields; ++i) {
      for (int64_t j = i + 1; j < request.fields; ++j, left += dim, out += dim) {
        const float weight = gates[i] * gates[j];
        const float* const right = fields + j * dim;
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) {
          const float product = left[d] * right[d];
          out[d] = weight * product;
          out[plain + d] = product;
        }
      }
    }
    if (request.numbers.width == 0) continue;  // whose address may be null
    memcpy(out + plain, request.numbers.data + row * request.numbers.stride,
           static_cast<size_t>(request.numbers.width) * sizeof(float));
  }
}

void bilinear_product_grad_rows(const BilinearProducts& request, const BilinearGrad& grad,
                                int64_t begin, int64_t end) {
  const int64_t dim = request.dim;
  const int64_t plain = request.fields * (request.fields - 1) / 2 * dim;
  for (int64_t row = begin; row < end; ++row) {
    const float* left = request.left.data + row * request.left.stride;
    const float* const fields = request.right.data + row * request.right.stride;
    const float* const gates = request.gates.data + row * request.gates.stride;
    const float* given = grad.grad_out.data + row * grad.grad_out.stride;
    float* by_left = grad.grad_left.data + row * grad.grad_left.stride;
    float* const by_fields = grad.grad_right.data + row * grad.grad_right.stride;
    float* const by_gates = grad.grad_gates.data + row * grad.grad_gates.stride;
    memset(by_fields, 0, static_cast<size_t>(request.fields * dim) * sizeof(float));
    memset(by_gates, 0, static_cast<size_t>(request.fields) * sizeof(float));
    for (int64_t i = 0; i + 1 < request.fields; ++i) {
      for (int64_t j = i + 1; j < request.fields; ++j) {
        const float weight = gates[i] * gates[j];
        const float* const right = fields + j * dim;
        float* const by_right = by_fields + j * dim;
        float by_weight = 0.0f;
#pragma omp simd reduction(+ : by_weight)
        for (int64_t d = 0; d < dim; ++d) {
          const float by_product = weight * given[d] + given[plain + d];
          by_weight += given[d] * left[d] * right[d];
          by_left[d] = by_product * right[d];
          by_right[d] += by_product * left[d];
        }
        by_gates[i] += by_weight * gates[j];
        by_gates[j] += by_weight * gates[i];
        left += dim;
        given += dim;
        by_left += dim;
      }
    }
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
