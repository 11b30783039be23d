#include "score_layers.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace widedeep {
namespace {

template <class Fn>
void map(float* x, std::int64_t n, Fn fn) {
  for (std::int64_t i = 0; i < n; ++i) x[i] = fn(x[i]);
}

// Room for which inputs of a thread's blocks count; grows to the largest layer and stays.
std::uint32_t* live_room(std::int64_t words) {
  thread_local std::vector<std::uint32_t> room;
  room.resize(std::max(room.size(), static_cast<std::size_t>(words)));
  return room.data();
}

bool all_finite(const float* x, std::int64_t n) {
  return std::all_of(x, x + n, [](float v) { return std::isfinite(v); });
}

std::uint32_t bits_of(float x) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The nearest bfloat16, ties to the even one, denormals to zero: as the processors' instruction.
float as_bfloat16(float x) {
  std::uint32_t bits = bits_of(x);
  if (std::isnan(x)) return x;
  const bool denormal = (bits & 0x7f800000) == 0;
  bits = denormal ? bits & 0x80000000 : (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}

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

DenseLayer::DenseLayer(const LayerWeights& weights, std::int64_t split, Activation activation,
                       Products products)
    : activation_(activation), products_(products) {
  packed_ = {
      nullptr, nullptr, weights.outputs, weights.inputs, split, activation == Activation::relu,
      true};
  const bool in_pairs = products == Products::bfloat16 && has_avx512bf16();
  const std::int64_t step = in_pairs ? kHalfStep : WIDEDEEP_DISPATCH(panel_step)();
  const std::int64_t padded = round_up(weights.outputs, step);
  in_pairs ? pack_halves(weights) : pack_floats(weights);
  bias_.reserve(padded);
  if (weights.bias != nullptr) copy_bias(weights.bias, weights.outputs, bias_.data());
  packed_.panels = panels_.data();
  packed_.bias = bias_.data();
  tile_width_ = round_up(padded, kChunk);
}

void DenseLayer::pack_floats(const LayerWeights& weights) {
  const std::int64_t step = WIDEDEEP_DISPATCH(panel_step)();
  const std::int64_t size = round_up(weights.outputs, step) * weights.inputs;
  panels_.reserve(size);
  float* const panels = panels_.data();
  pack(weights, WIDEDEEP_DISPATCH(panel_width)(), step, panels);
  if (products_ == Products::bfloat16) map(panels, size, as_bfloat16);
  packed_.skips_zeros = all_finite(panels, size);
}

void DenseLayer::pack_halves(const LayerWeights& weights) {
  const std::int64_t size = round_up(weights.outputs, kHalfStep) * weights.inputs;
  AlignedFloats plain;
  plain.reserve(size);
  pack(weights, WIDEDEEP_DISPATCH(panel_width)(), kHalfStep, plain.data());
  map(plain.data(), size, as_bfloat16);
  packed_.skips_zeros = all_finite(plain.data(), size);
  panels_.reserve(size / 2);
  auto* const halves = reinterpret_cast<std::uint16_t*>(panels_.data());
  for (std::int64_t i = 0; i < size; ++i) {
    halves[i / kHalfStep * kHalfStep + half_place(i % kHalfStep)] =
        static_cast<std::uint16_t>(bits_of(plain.data()[i]) >> 16);
  }
}

void DenseLayer::multiply(float* in, float* out, std::int64_t stride, std::int64_t rows) const {
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  const std::int64_t blocks = round_up(rows, block_rows) / block_rows;
#if defined(__x86_64__)
  if (products_ == Products::bfloat16 && has_avx512bf16()) {
    const PackedHalfLayer half = {reinterpret_cast<const std::uint16_t*>(packed_.panels),
                                  packed_.bias,
                                  packed_.outputs,
                                  packed_.inputs,
                                  packed_.relu,
                                  packed_.skips_zeros};
    std::uint32_t* const room = live_room(blocks * half_room(inputs(), block_rows));
    return avx512bf16::half_blocks(in, stride, rows, half, room, out, stride);
  }
#endif
  if (products_ == Products::bfloat16) {
    const std::int64_t used = round_up(inputs(), kChunk) * block_rows;
    for (std::int64_t b = 0; b < blocks; ++b) map(in + b * stride, used, as_bfloat16);
  }
  std::uint32_t* const room = live_room(blocks * WIDEDEEP_DISPATCH(live_words)(inputs()));
  WIDEDEEP_DISPATCH(dense_blocks)(in, stride, rows, packed_, room, out, stride);
}

void DenseLayer::run(float* in, float* out, std::int64_t stride, std::int64_t rows) const {
  multiply(in, out, stride, rows);
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  const std::int64_t used = round_up(packed_.outputs, kChunk) * block_rows;
  for (std::int64_t b = 0; b * block_rows < rows; ++b) {
    activate(activation_, out + b * stride, used);
  }
}

void DenseLayer::run_rows(const float* in, std::int64_t stride, std::int64_t rows,
                          float* out) const {
  WIDEDEEP_DISPATCH(dense_rows)(in, stride, rows, packed_, out);
  activate(activation_, out, rows * packed_.outputs);
}

void rows_of_blocks(const float* blocks, std::int64_t stride, std::int64_t rows,
                    std::int64_t columns, float* out) {
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  for (std::int64_t row = 0; row < rows; ++row, out += columns) {
    const float* from = blocks + row / block_rows * stride + row % block_rows * kChunk;
    std::int64_t c = 0;
    for (; c + kChunk <= columns; c += kChunk, from += block_rows * kChunk) {
      std::memcpy(out + c, from, kChunk * sizeof(float));
    }
    for (; c < columns; ++c) out[c] = from[c % kChunk];
  }
}

}  // namespace widedeep
