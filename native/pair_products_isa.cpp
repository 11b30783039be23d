#include <stdint.h>

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

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
