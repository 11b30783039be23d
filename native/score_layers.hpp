// Dense layers packed for the kernels, and activations.
#pragma once

#include <cstdint>
#include <vector>

#include "score_half.hpp"
#include "score_isa.hpp"

namespace widedeep {

enum class Activation : int { none, relu, leaky_relu, elu, gelu, silu, tanh };

// What is multiplied: float32, or inputs and weights rounded to bfloat16 (score_half.hpp).
enum class Products : int { float32, bfloat16 };

// Rows whose activations stay in the second-level cache while each layer's weights pass by once.
constexpr std::int64_t kTileRows = 60;

// Floats that start on a 64-byte boundary; zero until they are written.
class AlignedFloats {
 public:
  float* data() noexcept { return storage_.data() + shift_; }
  const float* data() const noexcept { return storage_.data() + shift_; }
  // Makes room for `size` floats; what was there is lost.
  void reserve(std::int64_t size);

 private:
  std::vector<float> storage_;
  std::int64_t shift_ = 0;
};

// Weights (outputs, inputs) in rows of `stride`, and a bias (outputs), or null for none.
struct LayerWeights {
  const float* data;
  std::int64_t stride;
  const float* bias;
  std::int64_t outputs;
  std::int64_t inputs;
};

// Copies a bias; a zero becomes a positive one, so that the sign of a zero sum, which may depend on
// the inputs left out, ends here.
void copy_bias(const float* bias, std::int64_t n, float* to);

// In place, on n values. The rectifier is done where sums are stored, so it does nothing here.
void activate(Activation activation, float* x, std::int64_t n);

class DenseLayer {
 public:
  // Copies the weights. Inputs from `split` on are summed apart, and start on the next chunk.
  // Products of bfloat16 know no split.
  DenseLayer(const LayerWeights& weights, std::int64_t split, Activation activation,
             Products products = Products::float32);

  // Blocks of `stride` floats in and out, see score_isa.hpp. The input may be rounded in place.
  void run(float* in, float* out, std::int64_t stride, std::int64_t rows) const;

  // Rows of `stride` floats in, one after the other out: for inputs that are hardly ever zero, and
  // products of float32 without a split.
  void run_rows(const float* in, std::int64_t stride, std::int64_t rows, float* out) const;

  std::int64_t outputs() const noexcept { return packed_.outputs; }
  std::int64_t inputs() const noexcept { return packed_.inputs; }
  bool is_rectified() const noexcept { return packed_.relu; }
  // Columns that a block needs to take the output.
  std::int64_t tile_width() const noexcept { return tile_width_; }

 private:
  void pack_floats(const LayerWeights& weights);
  void pack_halves(const LayerWeights& weights);
  void multiply(float* in, float* out, std::int64_t stride, std::int64_t rows) const;

  AlignedFloats panels_;  // of float32, or of pairs of bfloat16
  AlignedFloats bias_;
  PackedLayer packed_;
  Activation activation_;
  Products products_;
  std::int64_t tile_width_;
};

// Copies the first `columns` of blocks to plain rows.
void rows_of_blocks(const float* blocks, std::int64_t stride, std::int64_t rows,
                    std::int64_t columns, float* out);

}  // namespace widedeep
