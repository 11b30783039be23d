// The tower's kernels for Python: pointers out of arrays, nothing else. Types, shapes and lengths
// are checked in widedeep.kernels.tower, whose functions are the public ones.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <vector>

#include "tower.hpp"

namespace nb = nanobind;

namespace widedeep {
namespace {

using Vector = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstVector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using ConstMatrix = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using ReleaseGil = nb::call_guard<nb::gil_scoped_release>;

Rows rows_of(const Matrix& array) {
  return {array.data(), array.stride(0), static_cast<int64_t>(array.shape(1))};
}

ConstRows rows_of(const ConstMatrix& array) {
  return {array.data(), array.stride(0), static_cast<int64_t>(array.shape(1))};
}

template <class To, class From>
std::vector<To> rows_of_all(const std::vector<From>& arrays) {
  std::vector<To> found;
  for (const From& array : arrays) found.push_back(rows_of(array));
  return found;
}

std::vector<TowerLayer> layers_of(const std::vector<ConstMatrix>& weights,
                                  const std::vector<ConstVector>& biases) {
  std::vector<TowerLayer> layers;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    layers.push_back({rows_of(weights[i]), static_cast<int64_t>(weights[i].shape(0)),
                      i < biases.size() ? biases[i].data() : nullptr});
  }
  return layers;
}

void bind_forward(bool bf16, const ConstMatrix& in, const std::vector<ConstMatrix>& weights,
                  const std::vector<ConstVector>& biases, const std::vector<Matrix>& outs,
                  int threads) {
  const std::vector<TowerLayer> layers = layers_of(weights, biases);
  const std::vector<Rows> out_rows = rows_of_all<Rows>(outs);
  tower_forward({bf16, rows_of(in), static_cast<int64_t>(in.shape(0)), layers.data(),
                 static_cast<int64_t>(layers.size()), out_rows.data()},
                threads);
}

// Writes into its arguments until wait() has returned; who calls it keeps them.
std::unique_ptr<TowerGradients> bind_backward(
    bool bf16, const ConstMatrix& in, const std::vector<ConstMatrix>& weights,
    const std::vector<ConstMatrix>& outs, const ConstMatrix& grad_logits,
    const std::vector<Matrix>& grads, const Matrix& grad_in,
    const std::vector<Matrix>& weight_grads, const std::vector<Vector>& bias_grads, int threads) {
  const std::vector<TowerLayer> layers = layers_of(weights, {});
  const std::vector<ConstRows> out_rows = rows_of_all<ConstRows>(outs);
  const std::vector<Rows> grad_rows = rows_of_all<Rows>(grads);
  const std::vector<Rows> weight_rows = rows_of_all<Rows>(weight_grads);
  std::vector<float*> bias_rows(layers.size(), nullptr);
  for (std::size_t i = 0; i < bias_grads.size(); ++i) bias_rows[i] = bias_grads[i].data();
  const TowerBackward request{bf16,
                              rows_of(in),
                              static_cast<int64_t>(in.shape(0)),
                              layers.data(),
                              static_cast<int64_t>(layers.size()),
                              out_rows.data(),
                              rows_of(grad_logits),
                              grad_rows.data(),
                              rows_of(grad_in),
                              weight_rows.data(),
                              bias_rows.data()};
  return std::make_unique<TowerGradients>(request, threads);
}

}  // namespace

void bind_tower(nb::module_& m) {
  m.def("tower_forward", &bind_forward, ReleaseGil());
  m.def("has_bf16_products", &has_bf16_products);
  nb::class_<TowerGradients>(m, "TowerGradients").def("wait", &TowerGradients::wait, ReleaseGil());
  m.def("tower_backward", &bind_backward, ReleaseGil());
}

}  // namespace widedeep
