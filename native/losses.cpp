#include "losses.hpp"

#include <algorithm>
#include <cmath>

namespace widedeep {

void logistic_loss(const float* logits, const float* labels, int64_t n, float* losses,
                   float* grads) {
  for (int64_t i = 0; i < n; ++i) {
    const float z = logits[i];
    const float small = std::exp(-std::fabs(z));  // never overflows
    const float probability = (z >= 0.0f ? 1.0f : small) / (1.0f + small);
    losses[i] = std::max(z, 0.0f) - z * labels[i] + std::log1p(small);
    grads[i] = probability - labels[i];
  }
}

}  // namespace widedeep
