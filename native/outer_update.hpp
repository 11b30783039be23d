// Adagrad of a layer's weights along gradients that are never stored: for batches of few rows,
// where reading and writing them takes longer than summing them. The backward product can be taken
// on the way, while the weights are in registers.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"
#include "sparse.hpp"

namespace widedeep {

// As many rows as weight_gradient_tiles() sums in one go, in the same order, at most.
constexpr int64_t kMostOuterRows = 32;
constexpr int64_t kMostBackwardRows = 2;  // beyond, a product of its own is faster

struct OuterUpdate {
  ConstRows grad;  // of the layer's outputs, one row an example
  ConstRows in;    // the layer's inputs
  int64_t rows;    // examples, at most kMostOuterRows
  Rows weights;    // outputs x inputs
  Rows accumulator;
  float grad_scale;
  float lr;
  float eps;
  float l2;
  Rows grad_in{};  // grad · weights as they were, summed over the outputs in their order; or null
};

// Moves the weights by gradᵀ · in, as weight_gradient_tiles() and then adagrad_rows() would.
// Outputs without any gradient are passed over.
void adagrad_outer(const OuterUpdate& request, int threads);

// Columns [begin, end) of the weights.
WIDEDEEP_DECLARE_ISA(void adagrad_outer_range(const OuterUpdate& request, int64_t begin,
                                              int64_t end))

}  // namespace widedeep
