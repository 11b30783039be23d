// From logits to probabilities. Whoever tells a probability takes this function, so that a server
// and a bundle tell the same bits.
#pragma once

#include <cstdint>

namespace widedeep {

// 1 / (1 + exp(-x)), without overflow.
double sigmoid(double x);
void sigmoids(const double* x, std::int64_t n, double* out);

}  // namespace widedeep
