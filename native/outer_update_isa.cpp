#include "outer_update.hpp"
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

// The weights of one output in V registers from column on, of which `lanes` are in the last one.
template <int V>
inline void move_columns(const OuterUpdate& request, int64_t output, int64_t column,
                         int64_t lanes) {
  const auto load = [&](const float* p, int v) {
    return V > 1 ? vec_load(p + v * kLanes) : vec_load_first(p, lanes);
  };
  const auto store = [&](float* p, int v, Vec numbers) {
    return V > 1 ? vec_store(p + v * kLanes, numbers) : vec_store_first(p, numbers, lanes);
  };
  float* const weights = request.weights.data + output * request.weights.stride + column;
  float* const accumulators =
      request.accumulator.data + output * request.accumulator.stride + column;
  Vec w[V];
  Vec sums[V];
  for (int v = 0; v < V; ++v) w[v] = load(weights, v);
  for (int v = 0; v < V; ++v) sums[v] = vec_zero();
  for (int64_t r = 0; r < request.rows; ++r) {
    const Vec grad = vec_all(request.grad.data[r * request.grad.stride + output]);
    const float* in = request.in.data + r * request.in.stride + column;
    for (int v = 0; v < V; ++v) sums[v] = vec_multiply_add(grad, load(in, v), sums[v]);
    if (request.grad_in.data == nullptr) continue;
    float* below = request.grad_in.data + r * request.grad_in.stride + column;
    for (int v = 0; v < V; ++v) store(below, v, vec_multiply_add(grad, w[v], load(below, v)));
  }
  const Vec scale = vec_all(request.grad_scale);
  const Vec lr = vec_all(request.lr);
  const Vec eps = vec_all(request.eps);
  const Vec l2 = vec_all(request.l2);
  for (int v = 0; v < V; ++v) {
    const Vec g = sums[v] * scale + l2 * w[v];
    const Vec n = load(accumulators, v) + g * g;
    store(accumulators, v, n);
    store(weights, v, w[v] - lr * g / (vec_sqrt(n) + eps));
  }
}

}  // namespace

void adagrad_outer_range(const OuterUpdate& request, int64_t begin, int64_t end) {
  for (int64_t r = 0; request.grad_in.data != nullptr && r < request.rows; ++r) {
    float* const below = request.grad_in.data + r * request.grad_in.stride;
    for (int64_t column = begin; column < end; ++column) below[column] = 0.0f;
  }
  for (int64_t output = 0; output < request.grad.width; ++output) {
    if (request.l2 == 0.0f && !any_gradient(request, output)) continue;
    int64_t column = begin;
    for (; end - column >= kColumns; column += kColumns) {
      move_columns<kVectors>(request, output, column, kLanes);
    }
    for (; column < end; column += kLanes) {
      move_columns<1>(request, output, column, end - column < kLanes ? end - column : kLanes);
    }
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
