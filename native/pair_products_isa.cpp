#include <stdint.h>
#include <string.h>

#include "pair_products.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int64_t kPiece = 64;  // numbers of a vector whose sums lie on the stack

// sum_(i<j) v_i v_j = 1/2 ((sum_i v_i)^2 - sum_i v_i^2), of `count` numbers of each vector.
void sum_pairs(const float* fields, int64_t n_fields, int64_t dim, int64_t count, float* out) {
  float sums[kPiece] = {};
  float squares[kPiece] = {};
  for (int64_t f = 0; f < n_fields; ++f) {
    const float* const v = fields + f * dim;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      sums[i] += v[i];
      squares[i] += v[i] * v[i];
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = 0.5f * (sums[i] * sums[i] - squares[i]);
}

// Its derivative by v_i is the sum of all others.
void pair_gradients(const float* fields, const float* grad, int64_t n_fields, int64_t dim,
                    int64_t count, float* fields_grad) {
  float sums[kPiece] = {};
  for (int64_t f = 0; f < n_fields; ++f) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) sums[i] += fields[f * dim + i];
  }
  for (int64_t f = 0; f < n_fields; ++f) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      fields_grad[f * dim + i] = grad[i] * (sums[i] - fields[f * dim + i]);
    }
  }
}

// kDim is the width, or 0 for any.
template <int kDim>
void aware_rows(const AwareProducts& request, int64_t begin, int64_t end) {
  const int64_t fields = request.n_fields;
  const int64_t dim = kDim > 0 ? kDim : request.dim;
  const int64_t line = fields * dim;
  for (int64_t row = begin; row < end; ++row) {
    const float* const input = request.input.data + row * request.input.stride;
    float* out = request.out.data + row * request.out.stride;
    for (int64_t i = 0; i < fields; ++i, out += dim) {
      memcpy(out, input + i * line, static_cast<size_t>(dim) * sizeof(float));
    }
    for (int64_t i = 0; i < fields; ++i) {
      for (int64_t j = i + 1; j < fields; ++j) {
        const float* const left = input + i * line + j * dim;  // for field j, which is further on
        const float* const right = input + j * line + (i + 1) * dim;
        float sum = 0.0f;
        for (int64_t d = 0; d < dim; ++d) sum += left[d] * right[d];
        *out++ = sum;
      }
    }
    memcpy(out, input + fields * line,
           static_cast<size_t>(request.input.width - fields * line) * sizeof(float));
  }
}

template <int kDim>
void aware_grad_rows(const AwareProducts& request, int64_t begin, int64_t end) {
  const int64_t fields = request.n_fields;
  const int64_t dim = kDim > 0 ? kDim : request.dim;
  const int64_t line = fields * dim;
  for (int64_t row = begin; row < end; ++row) {
    const float* const input = request.input.data + row * request.input.stride;
    const float* grad = request.grad.data + row * request.grad.stride;
    float* const to = request.input_grad.data + row * request.input_grad.stride;
    for (int64_t i = 0; i < fields; ++i, grad += dim) {
      memcpy(to + i * line, grad, static_cast<size_t>(dim) * sizeof(float));
    }
    for (int64_t i = 0; i < fields; ++i) {
      for (int64_t j = i + 1; j < fields; ++j, ++grad) {
        const int64_t left = i * line + j * dim;
        const int64_t right = j * line + (i + 1) * dim;
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) {
          to[left + d] = *grad * input[right + d];
          to[right + d] = *grad * input[left + d];
        }
      }
    }
    memcpy(to + fields * line, grad,
           static_cast<size_t>(request.input.width - fields * line) * sizeof(float));
  }
}

int64_t piece(int64_t dim, int64_t first) { return dim - first < kPiece ? dim - first : kPiece; }

}  // namespace

void pair_product_rows(const PairProducts& request, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* const fields = request.fields.data + row * request.fields.stride;
    float* const out = request.out.data + row * request.out.stride;
    for (int64_t i = 0; i < request.dim; i += kPiece) {
      sum_pairs(fields + i, request.n_fields, request.dim, piece(request.dim, i), out + i);
    }
  }
}

void pair_product_grad_rows(const PairProducts& request, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* const fields = request.fields.data + row * request.fields.stride;
    const float* const grad = request.grad.data + row * request.grad.stride;
    float* const to = request.fields_grad.data + row * request.fields_grad.stride;
    for (int64_t i = 0; i < request.dim; i += kPiece) {
      pair_gradients(fields + i, grad + i, request.n_fields, request.dim, piece(request.dim, i),
                     to + i);
    }
  }
}

void aware_product_rows(const AwareProducts& request, int64_t begin, int64_t end) {
  if (request.dim == 4) return aware_rows<4>(request, begin, end);
  aware_rows<0>(request, begin, end);
}

void aware_product_grad_rows(const AwareProducts& request, int64_t begin, int64_t end) {
  if (request.dim == 4) return aware_grad_rows<4>(request, begin, end);
  aware_grad_rows<0>(request, begin, end);
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
