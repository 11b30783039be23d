// The dense layers of the forward pass: blocks of rows times panels of units, in registers.
#include <stdint.h>

#include "score_isa.hpp"
#include "score_vector.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int kPanelVecs = 2;
constexpr int kPanel = kPanelVecs * kLanes;
constexpr int64_t kChunkFloats = kBlockRows * kChunk;

// sums[r][v] += in[r][k] * panel[k][v] for `count` inputs, one after the other.
template <int R, int V>
inline void add_inputs(const float* in, int64_t count, const float* panel, Vec (&sums)[R][V]) {
  for (int64_t k = 0; k < count; ++k) {
    Vec weights[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) weights[v] = vec_load(panel + k * (V * kLanes) + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec input = vec_all(in[r * kChunk + k]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[r][v] = vec_multiply_add(input, weights[v], sums[r][v]);
    }
  }
}

template <int R, int V>
inline void partial_sum(const float* in, int64_t count, const float* panel, Vec (&sums)[R][V]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sums[r][v] = vec_zero();
  }
  for (; count >= kChunk; count -= kChunk) {
    add_inputs<R, V>(in, kChunk, panel, sums);
    in += kChunkFloats;
    panel += kChunk * V * kLanes;
  }
  add_inputs<R, V>(in, count, panel, sums);
}

inline float* output_at(float* out, int64_t row, int64_t column) {
  return out + column / kChunk * kChunkFloats + row * kChunk + column % kChunk;
}

// The units [column, column + V * kLanes) of R rows: both partial sums, bias, rectifier.
template <int R, int V>
void dense_panel(const float* in, const PackedLayer& layer, const float* panel, int64_t column,
                 float* out) {
  Vec sums[R][V];
  const bool two_sums = layer.split > 0 && layer.split < layer.inputs;
  const int64_t first = two_sums ? layer.split : layer.inputs;
  partial_sum<R, V>(in, first, panel, sums);
  if (two_sums) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) vec_store(output_at(out, r, column + v * kLanes), sums[r][v]);
    }
    partial_sum<R, V>(in + round_up(first, kChunk) / kChunk * kChunkFloats, layer.inputs - first,
                      panel + first * V * kLanes, sums);
  }
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const Vec bias = vec_load(layer.bias + column + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* at = output_at(out, r, column + v * kLanes);
      Vec sum = two_sums ? vec_add(vec_load(at), sums[r][v]) : sums[r][v];
      sum = vec_add(sum, bias);
      vec_store(at, layer.relu ? vec_max(vec_zero(), sum) : sum);
    }
  }
}

using PanelFunction = void (*)(const float*, const PackedLayer&, const float*, int64_t, float*);

template <int V, int R>
PanelFunction panel_function(int64_t rows) {
  if constexpr (R == 1) {
    return &dense_panel<1, V>;
  } else {
    return rows == R ? &dense_panel<R, V> : panel_function<V, R - 1>(rows);
  }
}

}  // namespace

int64_t block_rows() { return kBlockRows; }

int64_t panel_width() { return kPanel; }

void dense_blocks(const float* in, int64_t in_stride, int64_t rows, const PackedLayer& layer,
                  float* out, int64_t out_stride) {
  const float* panel = layer.panels;
  for (int64_t column = 0; column < layer.outputs; column += kPanel) {
    const bool narrow = layer.outputs - column <= kLanes;
    for (int64_t block = 0; block * kBlockRows < rows; ++block) {
      const int64_t left = rows - block * kBlockRows;
      const int64_t block_rows = left < kBlockRows ? left : kBlockRows;
      const PanelFunction function = narrow ? panel_function<1, kBlockRows>(block_rows)
                                            : panel_function<kPanelVecs, kBlockRows>(block_rows);
      function(in + block * in_stride, layer, panel, column, out + block * out_stride);
    }
    panel += layer.inputs * kPanel;
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
