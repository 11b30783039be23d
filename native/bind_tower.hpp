// A tower as Python makes it: its arrays over one batch, checked once.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind_arrays.hpp"
#include "tower.hpp"

namespace widedeep {

inline std::string numbered(const char* name, std::size_t i) {
  return std::string(name) + "[" + std::to_string(i) + "]";
}

using MaybeOutput = std::optional<Output>;

struct BoundNorm {
  Output weight, bias, weight_grad, bias_grad, running_mean, running_var, inverse, normed;
  float momentum, eps;
  bool biased;

  TowerNorm checked(const std::string& name, std::int64_t rows, std::int64_t width) const {
    const auto vector = [&](const char* field, const Output& array) {
      return vector_data<float>((name + field).c_str(), array, width);
    };
    return {vector("weight", weight),
            vector("bias", bias),
            vector("weight_grad", weight_grad),
            vector("bias_grad", bias_grad),
            vector("running_mean", running_mean),
            vector("running_var", running_var),
            vector("inverse", inverse),
            matrix_rows((name + "normed").c_str(), normed, rows, width),
            momentum,
            eps,
            biased};
  }
};

struct BoundLayer {
  Output weight, output, grad, weight_grad;
  MaybeOutput bias, bias_grad, slope;
  UnitActivation activation;
  float dropout;
  std::optional<BoundNorm> norm;

  // `norm` is where the layer's norm lies, if it has one.
  TowerLayer checked(std::size_t i, std::int64_t rows, std::int64_t inputs,
                     const TowerNorm* checked_norm) const {
    const std::string name = numbered("layers", i) + ".";
    const std::int64_t width = length(weight);
    const auto matrix = [&](const char* field, const Output& array, std::int64_t n,
                            std::int64_t columns) {
      return matrix_rows((name + field).c_str(), array, n, columns);
    };
    const auto vector = [&](const char* field, const MaybeOutput& array) {
      return array ? vector_data<float>((name + field).c_str(), *array, width) : nullptr;
    };
    if (bias.has_value() != bias_grad.has_value()) {
      refuse(name + "bias_grad: expected it with bias, and neither without");
    }
    if (!(dropout >= 0.0f && dropout < 1.0f)) refuse(name + "dropout: expected 0 <= dropout < 1");
    const Rows weights = matrix("weight", weight, -1, inputs);
    TowerLayer layer{{weights.data, weights.stride, weights.width},
                     width,
                     vector("bias", bias),
                     activation,
                     dropout,
                     checked_norm,
                     matrix("output", output, rows, width),
                     matrix("grad", grad, rows, width),
                     {},
                     matrix("weight_grad", weight_grad, width, inputs),
                     vector("bias_grad", bias_grad)};
    if (slope) layer.slope = matrix("slope", *slope, rows, width);
    if (!slope && !layer.is_simple()) {
      refuse(name +
             "slope: expected room for the derivatives; with dropout, norm or an activation "
             "other than relu the outputs do not tell them");
    }
    return layer;
  }
};

// A tower's arrays over one batch, checked once: a training step uses them again.
class BoundTower {
 public:
  BoundTower(const Output& input_BX, const std::vector<BoundLayer>& layers,
             const Output& grad_input_BX, bool bf16)
      : arrays_(layers), input_(input_BX), grad_input_(grad_input_BX), norms_(layers.size()) {
    if (bf16 && !has_bf16_products()) {
      refuse("bf16: got True, but this processor lacks AVX512_BF16; leave it out");
    }
    if (layers.empty()) refuse("layers: got none, expected at least 1");
    const Rows in = matrix_rows("input_BX", input_BX);
    const std::int64_t rows = length(input_BX);
    std::int64_t width = in.width;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const auto outputs = length(layers[i].weight);
      if (layers[i].norm) {
        norms_[i] = layers[i].norm->checked(numbered("layers", i) + ".norm.", rows, outputs);
      }
      layers_.push_back(layers[i].checked(i, rows, width, layers[i].norm ? &norms_[i] : nullptr));
      width = outputs;
    }
    batch_ = {bf16,
              {in.data, in.stride, in.width},
              rows,
              layers_.data(),
              static_cast<std::int64_t>(layers_.size()),
              matrix_rows("grad_input_BX", grad_input_BX, rows, in.width)};
  }
  BoundTower(const BoundTower&) = delete;
  BoundTower& operator=(const BoundTower&) = delete;

  const TowerBatch& batch() const { return batch_; }

  void forward(int threads, std::uint64_t key) const { tower_forward(batch_, key, threads); }

  void backward_rows(int threads) const { tower_backward(batch_, threads); }

  std::unique_ptr<TowerGradients> gradients(std::int64_t first, std::int64_t last,
                                            int threads) const {
    if (first < 0 || first > last || last > batch_.rows) {
      refuse("rows: got " + std::to_string(first) + " to " + std::to_string(last) + ", of " +
             std::to_string(batch_.rows));
    }
    return std::make_unique<TowerGradients>(TowerRows(batch_, first, last), threads);
  }

  std::unique_ptr<TowerGradients> backward(int threads) const {
    return std::make_unique<TowerGradients>(batch_, threads);
  }

 private:
  std::vector<BoundLayer> arrays_;  // kept alive
  Output input_, grad_input_;
  std::vector<TowerNorm> norms_;
  std::vector<TowerLayer> layers_;
  TowerBatch batch_{};
};

}  // namespace widedeep
