#include "score_layers.hpp"

#include <algorithm>
#include <cmath>

namespace widedeep {
namespace {

template <class Fn>
void map(float* x, std::int64_t n, Fn fn) {
  for (std::int64_t i = 0; i < n; ++i) x[i] = fn(x[i]);
}

void pack(const LayerWeights& weights, std::int64_t panel_width, float* panels) {
  for (std::int64_t start = 0; start < weights.outputs; start += panel_width) {
    const std::int64_t left = weights.outputs - start;
    const std::int64_t width = left <= panel_width / 2 ? panel_width / 2 : panel_width;
    for (std::int64_t k = 0; k < weights.inputs; ++k) {
      for (std::int64_t unit = 0; unit < width; ++unit) {
        *panels++ = unit < left ? weights.data[(start + unit) * weights.stride + k] : 0.0f;
      }
    }
  }
}

}  // namespace

void AlignedFloats::reserve(std::int64_t size) {
  constexpr std::int64_t kFloats = 64 / sizeof(float);
  if (static_cast<std::int64_t>(storage_.size()) < size + kFloats) storage_.resize(size + kFloats);
  const auto address = reinterpret_cast<std::uintptr_t>(storage_.data());
  shift_ = static_cast<std::int64_t>((64 - address % 64) % 64 / sizeof(float));
}

void activate(Activation activation, float* x, std::int64_t n) {
  constexpr float kRootHalf = 0.70710678118654752f;
  switch (activation) {
    case Activation::leaky_relu:
      return map(x, n, [](float v) { return v > 0.0f ? v : 0.01f * v; });
    case Activation::elu:
      return map(x, n, [](float v) { return v > 0.0f ? v : std::expm1(v); });
    case Activation::gelu:
      return map(x, n, [](float v) { return 0.5f * v * (1.0f + std::erf(v * kRootHalf)); });
    case Activation::silu:
      return map(x, n, [](float v) { return v / (1.0f + std::exp(-v)); });
    case Activation::tanh:
      return map(x, n, [](float v) { return std::tanh(v); });
    case Activation::none:
    case Activation::relu:  // done where the sum is stored
      return;
  }
}

DenseLayer::DenseLayer(const LayerWeights& weights, std::int64_t split, Activation activation)
    : activation_(activation) {
  const std::int64_t panel = WIDEDEEP_DISPATCH(panel_width)();
  const std::int64_t padded = round_up(weights.outputs, panel);
  panels_.reserve(padded * weights.inputs);
  pack(weights, panel, panels_.data());
  bias_.reserve(padded);
  if (weights.bias != nullptr) std::copy_n(weights.bias, weights.outputs, bias_.data());
  packed_ = {panels_.data(), bias_.data(), weights.outputs,
             weights.inputs, split,        activation == Activation::relu};
  tile_width_ = round_up(padded, kChunk);
}

void DenseLayer::run(const float* in, float* out, std::int64_t stride, std::int64_t rows) const {
  WIDEDEEP_DISPATCH(dense_blocks)(in, stride, rows, packed_, out, stride);
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  const std::int64_t used = round_up(packed_.outputs, kChunk) * block_rows;
  for (std::int64_t b = 0; b * block_rows < rows; ++b)
    activate(activation_, out + b * stride, used);
}

void rows_of_blocks(const float* blocks, std::int64_t stride, std::int64_t rows,
                    std::int64_t columns, float* out) {
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  for (std::int64_t row = 0; row < rows; ++row, out += columns) {
    const float* from = blocks + row / block_rows * stride + row % block_rows * kChunk;
    for (std::int64_t c = 0; c < columns; ++c) {
      out[c] = from[c / kChunk * block_rows * kChunk + c % kChunk];
    }
  }
}

}  // namespace widedeep
