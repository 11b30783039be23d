#include "score_layers.hpp"

#include <algorithm>
#include <cmath>

namespace widedeep {
namespace {

template <class Fn>
void map(float* x, std::int64_t n, Fn fn) {
  for (std::int64_t i = 0; i < n; ++i) x[i] = fn(x[i]);
}

// Which inputs of a thread's blocks count; grows to the largest layer and stays.
thread_local std::vector<std::uint32_t> t_live;

void pack(const LayerWeights& weights, std::int64_t panel_width, std::int64_t step, float* panels) {
  for (std::int64_t start = 0; start < weights.outputs; start += panel_width) {
    const std::int64_t left = weights.outputs - start;
    const std::int64_t width = std::min(panel_width, round_up(left, step));
    for (std::int64_t k = 0; k < weights.inputs; ++k) {
      for (std::int64_t unit = 0; unit < width; ++unit) {
        *panels++ = unit < left ? weights.data[(start + unit) * weights.stride + k] : 0.0f;
      }
    }
  }
}

}  // namespace

void copy_bias(const float* bias, std::int64_t n, float* to) {
  for (std::int64_t unit = 0; unit < n; ++unit) to[unit] = bias[unit] + 0.0f;
}

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
  const std::int64_t step = WIDEDEEP_DISPATCH(panel_step)();
  const std::int64_t padded = round_up(weights.outputs, step);
  const std::int64_t size = padded * weights.inputs;
  panels_.reserve(size);
  pack(weights, WIDEDEEP_DISPATCH(panel_width)(), step, panels_.data());
  const bool finite = std::all_of(panels_.data(), panels_.data() + size,
                                  [](float weight) { return std::isfinite(weight); });
  bias_.reserve(padded);
  if (weights.bias != nullptr) copy_bias(weights.bias, weights.outputs, bias_.data());
  packed_ = {panels_.data(), bias_.data(), weights.outputs,
             weights.inputs, split,        activation == Activation::relu,
             finite};
  tile_width_ = round_up(padded, kChunk);
}

void DenseLayer::run(const float* in, float* out, std::int64_t stride, std::int64_t rows) const {
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  const std::int64_t blocks = round_up(rows, block_rows) / block_rows;
  const auto room = static_cast<std::size_t>(blocks * WIDEDEEP_DISPATCH(live_room)(inputs()));
  t_live.resize(std::max(t_live.size(), room));
  WIDEDEEP_DISPATCH(dense_blocks)(in, stride, rows, packed_, t_live.data(), out, stride);
  const std::int64_t used = round_up(packed_.outputs, kChunk) * block_rows;
  for (std::int64_t b = 0; b < blocks; ++b) activate(activation_, out + b * stride, used);
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
