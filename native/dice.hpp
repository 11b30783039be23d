// Dice, an activation that a batch's moments move (Zhou et al. 2018), forward and backward.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"

namespace widedeep {

// g = sigmoid((s - mean) * inverse),  out = s * (g + (1 - g) * alpha), by column.
struct Dice {
  int64_t rows, width;
  const float* sums;   // (rows, width)
  const float* alpha;  // (width)
  float* mean;         // (width): forward fills them
  float* variance;     // (width)
  float epsilon;       // added to the variance
  float* out;          // (rows, width)
};

struct DiceGrad {
  const float* grad_out;  // (rows, width)
  float* grad_sums;       // (rows, width)
  float* grad_alpha;      // (width)
};

// Arrays that the passes over rows share.
struct DicePass {
  const float* inverse;           // of the standard deviation, (width)
  float* normed;                  // (rows, width)
  float* normed_grad;             // (rows, width)
  const float* mean_grad;         // (width): of normed_grad,
  const float* mean_normed_grad;  // and of its product with normed
};

constexpr int64_t kDiceRows = 256;  // rows whose gradients by alpha one part sums

WIDEDEEP_DECLARE_ISA(
    // Rows [begin, end).
    void dice_rows(const Dice& request, const float* inverse, int64_t begin, int64_t end);
    // What does not go through the moments, and the gradients of the normed sums; alpha_sums gets
    // those by alpha.
    void dice_direct_grad_rows(const Dice& request, const DiceGrad& grad, const DicePass& pass,
                               int64_t begin, int64_t end, float* alpha_sums);
    void dice_moment_grad_rows(const Dice& request, const DiceGrad& grad, const DicePass& pass,
                               int64_t begin, int64_t end);)

void dice(const Dice& request, int threads);
void dice_grad(const Dice& request, const DiceGrad& grad, int threads);

}  // namespace widedeep
