// The sum of a batch's numbers, in one fixed order.
#pragma once

#include <stdint.h>

namespace widedeep {

// As torch adds float32 numbers on one thread: four registers side by side, each a cascade of four
// levels, so that errors grow with the logarithm of n.
float float_sum(const float* x, int64_t n);

}  // namespace widedeep
