// A gated recurrent unit over the histories of a part; loops are written for the compiler's
// vectors.
#include <stdint.h>
#include <string.h>

#include "gru.hpp"
#include "unit_math.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

int64_t n_events(const GruPart& part, int64_t i) {
  return part.firsts[part.order[i] + 1] - part.firsts[part.order[i]];
}

// The event that `event` follows in its history, or null.
const float* state_before(const Gru& request, int64_t step, int64_t event) {
  return step == 0 ? nullptr : request.states + (event - 1) * request.width;
}

void step_forward(const Gru& request, int64_t event, const float* products, float* state) {
  const int64_t width = request.width;
  const float* const inputs = request.inputs + event * 3 * width;
  float* const saved = request.saved + event * 4 * width;
  float* const out = request.states + event * width;
  const float weight = request.weights == nullptr ? 1.0f : request.weights[event];
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const float update = logistic_of(inputs[i] + products[i]);
    const float reset = logistic_of(inputs[width + i] + products[width + i]);
    const float product = products[2 * width + i];
    const float candidate = tanh_of(inputs[2 * width + i] + reset * product);
    saved[i] = update;
    saved[width + i] = reset;
    saved[2 * width + i] = candidate;
    saved[3 * width + i] = product;
    out[i] = state[i] + weight * update * (candidate - state[i]);
  }
  memcpy(state, out, static_cast<size_t>(width) * sizeof(float));
}

// From the gradient of the state after an event to that before it, but for what goes through the
// products; `products` gets the gradient by these.
void step_backward(const Gru& request, const GruGrad& grad, int64_t event, const float* before,
                   float* state_grad, float* products) {
  const int64_t width = request.width;
  const float* const saved = request.saved + event * 4 * width;
  const float* const given = grad.grad_states + event * width;
  float* const inputs = grad.grad_inputs + event * 3 * width;
  const float weight = request.weights == nullptr ? 1.0f : request.weights[event];
  float by_weight = 0.0f;
#pragma omp simd reduction(+ : by_weight)
  for (int64_t i = 0; i < width; ++i) {
    const float update = saved[i];
    const float reset = saved[width + i];
    const float candidate = saved[2 * width + i];
    const float total = state_grad[i] + given[i];
    const float change = total * (candidate - before[i]);
    by_weight += change * update;
    const float by_update = weight * change * update * (1.0f - update);
    const float by_candidate = total * weight * update * (1.0f - candidate * candidate);
    const float by_reset = by_candidate * saved[3 * width + i] * reset * (1.0f - reset);
    inputs[i] = by_update;
    inputs[width + i] = by_reset;
    inputs[2 * width + i] = by_candidate;
    products[i] = by_update;
    products[width + i] = by_reset;
    products[2 * width + i] = by_candidate * reset;
    state_grad[i] = total * (1.0f - weight * update);
  }
  if (grad.grad_weights != nullptr) grad.grad_weights[event] = by_weight;
  memcpy(grad.grad_products + event * 3 * width, products,
         static_cast<size_t>(3 * width) * sizeof(float));
}

struct Room {
  float* states;    // (kGruRows, H)
  float* products;  // (kGruRows, 3 H)
  float* results;   // (kGruRows, H)
  float* scratch;
};

Room room_of(const Gru& request, const GruPart& part) {
  const int64_t width = request.width;
  float* const products = part.room + kGruRows * width;
  float* const results = products + kGruRows * 3 * width;
  return {part.room, products, results, results + kGruRows * width};
}

}  // namespace

void gru_part(const Gru& request, const GruPart& part) {
  const int64_t width = request.width;
  const Room room = room_of(request, part);
  memset(room.states, 0, static_cast<size_t>(kGruRows * width) * sizeof(float));
  RowProduct product{};
  product.in = {room.states, width, width};
  product.panels = part.panels;
  product.outputs = 3 * width;
  product.out = {room.products, 3 * width, 3 * width};
  int64_t active = part.count;
  for (int64_t step = 0;; ++step) {
    while (active > 0 && n_events(part, active - 1) <= step) --active;
    if (active == 0) return;
    product_rows(product, 0, active, room.scratch);
    for (int64_t i = 0; i < active; ++i) {
      step_forward(request, part.firsts[part.order[i]] + step, room.products + i * 3 * width,
                   room.states + i * width);
    }
  }
}

void gru_grad_part(const Gru& request, const GruGrad& grad, const GruPart& part) {
  const int64_t width = request.width;
  const Room room = room_of(request, part);
  memset(room.states, 0, static_cast<size_t>(kGruRows * width) * sizeof(float));
  float* const zeros = room.scratch;  // until the first product
  RowProduct product{};
  product.in = {room.products, 3 * width, 3 * width};
  product.panels = part.panels;
  product.outputs = width;
  product.out = {room.results, width, width};
  int64_t active = 0;
  for (int64_t step = n_events(part, 0) - 1; step >= 0; --step) {
    while (active < part.count && n_events(part, active) > step) ++active;
    if (step == 0) memset(zeros, 0, static_cast<size_t>(width) * sizeof(float));
    for (int64_t i = 0; i < active; ++i) {
      const int64_t event = part.firsts[part.order[i]] + step;
      const float* const before = state_before(request, step, event);
      step_backward(request, grad, event, before == nullptr ? zeros : before,
                    room.states + i * width, room.products + i * 3 * width);
    }
    if (step == 0) return;
    product_rows(product, 0, active, room.scratch);
    for (int64_t i = 0; i < active * width; ++i) room.states[i] += room.results[i];
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
