// Losses of a batch and their derivatives by the logits.
#pragma once

#include <stdint.h>

namespace widedeep {

// Cross-entropy of one logit z and a label y in [0, 1]:
//   loss = max(z, 0) - z y + log(1 + exp(-|z|)),  grad = 1 / (1 + exp(-z)) - y
void logistic_loss(const float* logits, const float* labels, int64_t n, float* losses,
                   float* grads);

}  // namespace widedeep
