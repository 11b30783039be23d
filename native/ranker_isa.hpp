// What ranking needs besides the forward pass, compiled for each instruction set.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"

namespace widedeep {

// The first layer of candidates, from sums that were kept: (query + item) + bias, rectified or not.
// A unit's item sum goes on over the pair's inputs, one fused multiply-add an input (a multiply and
// an add in the baseline build), before the query's is added.
struct FirstLayer {
  const float* query;  // padded with zeros to whole chunks, like the bias
  const float* bias;
  const float* items;              // a row of `units` an item, or:
  const uint16_t* items_bfloat16;  // the upper halves of float32
  const int64_t* positions;        // the item of each candidate
  int64_t units;
  const float* pair_weight;  // n_pair rows of whole chunks of units
  const float* pair_inputs;  // n_pair a candidate
  int64_t n_pair;
  bool relu;
  float* room;  // whole chunks of units
};

// Writes candidates [0, rows) into blocks, see score_isa.hpp.
WIDEDEEP_DECLARE_ISA(void first_layer_blocks(const FirstLayer& layer, int64_t rows, float* out,
                                             int64_t out_stride))

}  // namespace widedeep
