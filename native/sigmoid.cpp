#include "sigmoid.hpp"

#include <cmath>

namespace widedeep {

double sigmoid(double x) {
  const double small = std::exp(-std::abs(x));
  return (x >= 0 ? 1.0 : small) / (1.0 + small);
}

void sigmoids(const double* x, std::int64_t n, double* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = sigmoid(x[i]);
}

}  // namespace widedeep
