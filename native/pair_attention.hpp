// Attention over the products of all pairs of fields, forward and backward, row by row: the
// products, which are most of the memory that torch's operations would move, stay in registers.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"
#include "sparse.hpp"

namespace widedeep {

constexpr int64_t kPairUnits = 16;    // units whose sums are a tile
constexpr int64_t kMaxPairDim = 256;  // widest embedding, whose product lies on the stack
constexpr int64_t kPairRows = 32;     // rows whose gradients by the weights one part sums

// Fields v_i of width `dim`; p runs over the pairs i < j, in order of i, then of j.
//   a = softmax_p(score . relu(weight (v_i * v_j) + bias)),  out = sum_p a_p (v_i * v_j)
struct PairAttention {
  int64_t rows, fields, dim, units;
  ConstRows input;      // (rows, fields * dim)
  const float* weight;  // (units, dim)
  const float* bias;    // (units)
  const float* score;   // (units)
  Rows out;             // (rows, dim)
  Rows attention;       // (rows, pairs): a
  // What follows is made on the way.
  int64_t line;         // dim, filled up to whole tiles
  int64_t tiles;        // of kPairUnits units, the last filled up with zeros
  const float* packed;  // (tiles, dim + 2, kPairUnits): weight transposed, bias, score
  const float* lines;   // (units, line): weight
  float* room;          // (parts, room_size)
  int64_t room_size;
};

struct PairAttentionGrad {
  ConstRows grad_out;  // (rows, dim)
  Rows grad_input;     // (rows, fields * dim)
  float* parts;        // (parts, tiles, dim + 2, kPairUnits), zero before
  int64_t part_size;
};

WIDEDEEP_DECLARE_ISA(
    // Rows [part * kPairRows, (part + 1) * kPairRows), as far as there are.
    void attend_pairs_part(const PairAttention& request, int64_t part);
    void attend_pairs_grad_part(const PairAttention& request, const PairAttentionGrad& grad,
                                int64_t part);)

void attend_pairs(PairAttention request, int threads);

// Fills grad_input and the gradients by weight, bias and score. Sums have one order, whatever the
// number of threads.
void attend_pairs_grad(PairAttention request, ConstRows grad_out, Rows grad_input,
                       float* grad_weight, float* grad_bias, float* grad_score, int threads);

}  // namespace widedeep
