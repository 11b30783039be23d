// The operations of a program over rows, compiled for each instruction set. See score_program.hpp.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"

namespace widedeep {

constexpr int kProgramDims = 4;

// Of one input first, then of two, then of three.
enum class MapFunction : int {
  copy,
  neg,
  abs,
  exp,
  log,
  log1p,
  sqrt,
  reciprocal,
  square,
  sign,
  relu,
  sigmoid,
  tanh,
  gelu,
  silu,
  elu,         // slope below zero: first
  leaky_relu,  // slope below zero: first
  clamp,       // between first and second
  softplus,
  erf,
  sin,
  cos,
  power,  // to the first
  add,
  sub,
  mul,
  div,
  max,
  min,
  greater,  // 1 or 0, as the others
  greater_equal,
  equal,
  not_equal,
  add_relu,
  add3,  // (a + b) + c
  add3_relu,
  mul_add,  // a * b + c
  where,    // a != 0 ? b : c
};
constexpr int kMapFunctions = static_cast<int>(MapFunction::where) + 1;

constexpr int map_inputs(MapFunction function) {
  if (function < MapFunction::add) return 1;
  return function < MapFunction::add3 ? 2 : 3;
}

enum class Reduction : int { sum, max, min };

// An input of an operation in the rows of a tile: row r starts at base + r * row_stride, or where
// positions are given at base + positions[r] * row_stride.
struct RowView {
  const float* base;
  int64_t row_stride;
  const int64_t* positions;
  int64_t strides[kProgramDims];  // of the operation's dimensions
};

// out[i] = function(inputs[i]...) over the dimensions.
struct MapTile {
  MapFunction function;
  RowView inputs[3];
  int64_t dims[kProgramDims];
  float first;
  float second;
  float* out;
  int64_t out_stride;
};

// Reduces the last dimension. One whose numbers lie side by side is summed in sixteen parts, number
// i in part i % 16, and these are added up in halves; any other in order.
struct ReduceTile {
  Reduction reduction;
  RowView input;
  int64_t dims[kProgramDims];
  float* out;
  int64_t out_stride;
};

// The `count` largest numbers of the last dimension, largest first.
struct TopTile {
  RowView input;
  int64_t dims[kProgramDims];
  int64_t count;
  float* out;
  int64_t out_stride;
};

// out[b][m][n] = sum over k, in order, of left[b][m][k] * right[b][k][n].
struct MatmulTile {
  RowView left;                // strides of b, m, k
  RowView right;               // strides of b, k, n; that of n is 1
  int64_t dims[kProgramDims];  // b, m, k, n
  float* out;
  int64_t out_stride;
};

WIDEDEEP_DECLARE_ISA(void map_rows(const MapTile& tile, int64_t rows);
                     void reduce_rows(const ReduceTile& tile, int64_t rows);
                     void top_rows(const TopTile& tile, int64_t rows);
                     void matmul_rows(const MatmulTile& tile, int64_t rows))

}  // namespace widedeep
