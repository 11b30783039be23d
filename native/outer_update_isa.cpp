#include "outer_update.hpp"
#include "rows_isa.hpp"
#include "tower_vector.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int kVectors = 4;
constexpr int64_t kColumns = kVectors * kLanes;  // of gradients that lie in registers

bool any_gradient(const OuterUpdate& request, int64_t output) {
  for (int64_t r = 0; r < request.rows; ++r) {
    if (request.grad.data[r * request.grad.stride + output] != 0.0f) return true;
  }
  return false;
}

// The gradients of `count` weights of one output, from column on.
void sum_rows(const OuterUpdate& request, int64_t output, int64_t column, int64_t count,
              float* sums) {
  const float* grad = request.grad.data + output;
  const float* in = request.in.data + column;
  if (count == kColumns) {
    Vec sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = vec_zero();
    for (int64_t r = 0; r < request.rows; ++r) {
      const Vec all = vec_all(grad[r * request.grad.stride]);
      const float* row = in + r * request.in.stride;
      for (int v = 0; v < kVectors; ++v) {
        sum[v] = vec_multiply_add(all, vec_load(row + v * kLanes), sum[v]);
      }
    }
    for (int v = 0; v < kVectors; ++v) vec_store(sums + v * kLanes, sum[v]);
    return;
  }
  for (int64_t at = 0; at < count; at += kLanes) {
    const int64_t lanes = count - at < kLanes ? count - at : kLanes;
    Vec sum = vec_zero();
    for (int64_t r = 0; r < request.rows; ++r) {
      const Vec row = vec_load_first(in + r * request.in.stride + at, lanes);
      sum = vec_multiply_add(vec_all(grad[r * request.grad.stride]), row, sum);
    }
    vec_store(sums + at, sum);
  }
}

}  // namespace

void adagrad_outer_range(const OuterUpdate& request, int64_t begin, int64_t end) {
  alignas(64) float sums[kColumns];
  const float scale = request.grad_scale;
  const float lr = request.lr;
  const float eps = request.eps;
  const float l2 = request.l2;
  for (int64_t output = begin; output < end; ++output) {
    if (l2 == 0.0f && !any_gradient(request, output)) continue;
    for (int64_t column = 0; column < request.weights.width; column += kColumns) {
      const int64_t rest = request.weights.width - column;
      const int64_t count = rest < kColumns ? rest : kColumns;
      sum_rows(request, output, column, count, sums);
      float* __restrict w = request.weights.data + output * request.weights.stride + column;
      float* __restrict acc =
          request.accumulator.data + output * request.accumulator.stride + column;
      WIDEDEEP_SIMD
      for (int64_t i = 0; i < count; ++i) {
        const float g = sums[i] * scale + l2 * w[i];
        const float n = acc[i] + g * g;
        acc[i] = n;
        w[i] -= lr * g / (__builtin_sqrtf(n) + eps);
      }
    }
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
