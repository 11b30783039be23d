// The tower's kernels and the losses for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind_arrays.hpp"
#include "losses.hpp"
#include "tower.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

using Outputs = std::vector<Output>;

std::string numbered(const char* name, std::size_t i) {
  return std::string(name) + "[" + std::to_string(i) + "]";
}

// A tower's arrays over one batch, checked once: a training step uses them again.
class BoundTower {
 public:
  BoundTower(const Output& input_BX, const Outputs& weights, const Outputs& biases,
             const Outputs& outputs, const Output& grad_logits_BC, const Outputs& grads,
             const Output& grad_input_BX, const Outputs& weight_grads, const Outputs& bias_grads,
             bool bf16)
      : arrays_{weights,
                biases,
                outputs,
                grads,
                weight_grads,
                bias_grads,
                {input_BX, grad_logits_BC, grad_input_BX}},
        bf16_(bf16) {
    if (bf16 && !has_bf16_products()) {
      refuse("bf16: got True, but this processor lacks AVX512_BF16; leave it out");
    }
    check_counts();
    in_ = matrix_rows("input_BX", input_BX);
    rows_ = length(input_BX);
    grad_in_ = matrix_rows("grad_input_BX", grad_input_BX, rows_, in_.width);
    std::int64_t width = in_.width;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const Rows weight = matrix_rows(numbered("weights", i).c_str(), weights[i], -1, width);
      width = length(weights[i]);
      const bool is_last = i + 1 == weights.size();
      layers_.push_back({constant(weight), width, is_last ? nullptr : vector("biases", biases, i)});
      outs_.push_back(matrix_rows(numbered("outputs", i).c_str(), outputs[i], rows_, width));
      const_outs_.push_back(constant(outs_.back()));
      weight_grads_.push_back(
          matrix_rows(numbered("weight_grads", i).c_str(), weight_grads[i], width, weight.width));
      bias_grads_.push_back(is_last ? nullptr : vector("bias_grads", bias_grads, i));
      if (!is_last) {
        grads_.push_back(matrix_rows(numbered("grads", i).c_str(), grads[i], rows_, width));
      }
    }
    grad_logits_ = matrix_rows("grad_logits_BC", grad_logits_BC, rows_, width);
  }

  void forward(int threads) const {
    tower_forward({bf16_, constant(in_), rows_, layers_.data(), n_layers(), outs_.data()}, threads);
  }

  std::unique_ptr<TowerGradients> backward(int threads) const {
    const TowerBackward request{bf16_,
                                constant(in_),
                                rows_,
                                layers_.data(),
                                n_layers(),
                                const_outs_.data(),
                                constant(grad_logits_),
                                grads_.data(),
                                grad_in_,
                                weight_grads_.data(),
                                bias_grads_.data()};
    return std::make_unique<TowerGradients>(request, threads);
  }

 private:
  static ConstRows constant(const Rows& rows) { return {rows.data, rows.stride, rows.width}; }

  float* vector(const char* name, const Outputs& arrays, std::size_t i) const {
    const auto width = static_cast<std::int64_t>(arrays_[0][i].shape(0));
    return vector_data<float>(numbered(name, i).c_str(), arrays[i], width);
  }

  void check_counts() const {
    const std::size_t layers = arrays_[0].size();
    if (layers == 0) refuse("weights: got 0 layers, expected at least 1");
    const char* const names[] = {"weights", "biases",       "outputs",
                                 "grads",   "weight_grads", "bias_grads"};
    for (std::size_t i = 0; i < 6; ++i) {
      const std::size_t expected = i % 2 == 0 ? layers : layers - 1;
      if (arrays_[i].size() != expected) {
        refuse(std::string(names[i]) + ": got " + std::to_string(arrays_[i].size()) + " for " +
               std::to_string(layers) + " layers, expected " + std::to_string(expected));
      }
    }
  }

  std::int64_t n_layers() const { return static_cast<std::int64_t>(layers_.size()); }

  std::vector<Outputs> arrays_;  // kept alive; the first is the weights
  bool bf16_;
  std::int64_t rows_ = 0;
  Rows in_{}, grad_in_{}, grad_logits_{};
  std::vector<TowerLayer> layers_;
  std::vector<Rows> outs_, grads_, weight_grads_;
  std::vector<ConstRows> const_outs_;
  std::vector<float*> bias_grads_;
};

void bind_logistic(const Input& logits_B, const Input& labels_B, const Output& losses_B,
                   const Output& grads_B) {
  const auto* const logits = vector_data<float>("logits_B", logits_B);
  const std::int64_t n = length(logits_B);
  const auto* const labels = vector_data<float>("labels_B", labels_B, n);
  auto* const losses = vector_data<float>("losses_B", losses_B, n);
  auto* const grads = vector_data<float>("grads_B", grads_B, n);
  const nb::gil_scoped_release release;
  logistic_loss(logits, labels, n, losses, grads);
}

}  // namespace

void bind_tower(nb::module_& m) {
  using ReleaseGil = nb::call_guard<nb::gil_scoped_release>;
  m.def("has_bf16_products", &has_bf16_products);
  m.def("logistic_loss", &bind_logistic, "logits_B"_a, "labels_B"_a, "losses_B"_a, "grads_B"_a);
  nb::class_<TowerGradients>(m, "TowerGradients").def("wait", &TowerGradients::wait, ReleaseGil());
  nb::class_<BoundTower>(m, "Tower")
      .def(nb::init<const Output&, const Outputs&, const Outputs&, const Outputs&, const Output&,
                    const Outputs&, const Output&, const Outputs&, const Outputs&, bool>(),
           nb::kw_only(), "input_BX"_a, "weights"_a, "biases"_a, "outputs"_a, "grad_logits_BC"_a,
           "grads"_a, "grad_input_BX"_a, "weight_grads"_a, "bias_grads"_a, "bf16"_a = false)
      .def("forward", &BoundTower::forward, "threads"_a = 1, ReleaseGil())
      .def("backward", &BoundTower::backward, "threads"_a = 1, nb::keep_alive<0, 1>(),
           ReleaseGil());
}

}  // namespace widedeep
