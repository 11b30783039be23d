// A dense layer whose inputs and weights are rounded to bfloat16, and whose sums are float32.
//
// The product of two bfloat16 numbers is exact in float32, so a unit's sum is the one that
// score_isa.hpp tells, of rounded numbers: inputs one after the other, rounded after each. The
// instruction for pairs of products (vdpbf16ps) adds the pair's upper one first, then the lower
// one, each rounded; so it gives the same bits, and a processor without it computes them in
// float32.
#pragma once

#include <stdint.h>

#include "score_isa.hpp"

namespace widedeep {

constexpr int64_t kHalfStep = 32;  // units of one register of weights

// Panels of panel_width() units, input by input; the last one as wide as its units need, in steps
// of kHalfStep. Within a step, half_place() says where a unit lies.
struct PackedHalfLayer {
  const uint16_t* panels;
  const float* bias;  // padded with zeros to round_up(outputs, kHalfStep)
  int64_t outputs;
  int64_t inputs;
  bool relu;
  bool skips_zeros;  // all weights are finite
};

// So that interleaving two inputs' weights, within each 128 bits, leaves the units in order.
constexpr int64_t half_place(int64_t unit) { return unit % 16 / 4 * 8 + unit / 16 * 4 + unit % 4; }

// Room for each block, in 4-byte words: how many inputs count, which, and their rounded values.
constexpr int64_t half_list_words(int64_t inputs) { return 1 + inputs + kHalfStep; }
constexpr int64_t half_row_words(int64_t inputs) { return (inputs + 2 * kHalfStep) / 2; }
constexpr int64_t half_room(int64_t inputs, int64_t block_rows) {
  return half_list_words(inputs) + block_rows * half_row_words(inputs);
}

#if defined(__x86_64__)
namespace avx512bf16 {
// As dense_blocks; where has_avx512bf16().
void half_blocks(const float* in, int64_t in_stride, int64_t rows, const PackedHalfLayer& layer,
                 uint32_t* room, float* out, int64_t out_stride);
}  // namespace avx512bf16
#endif

}  // namespace widedeep
