// The tower's kernels and the losses for Python.
#include "bind_tower.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "losses.hpp"
#include "pair_products.hpp"
#include "tower.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

// As the enumeration.
constexpr std::array<const char*, 7> kActivations = {"linear", "relu",       "gelu", "tanh",
                                                     "elu",    "leaky_relu", "silu"};

UnitActivation activation_of(const std::string& name) {
  return static_cast<UnitActivation>(named("activation", kActivations, name));
}

// The fields' matrix, checked: rows of n_fields vectors as wide as `out` is.
PairProducts pairs_of(const Input& fields, const char* out_name, std::int64_t dim) {
  const ConstRows rows = matrix_rows("fields", fields);
  if (dim < 1 || rows.width % dim != 0) {
    refuse(std::string("fields: got width ") + std::to_string(rows.width) +
           ", expected a multiple of the width of " + out_name + ", " + std::to_string(dim));
  }
  PairProducts request{};
  request.fields = rows;
  request.n_fields = rows.width / dim;
  request.dim = dim;
  return request;
}

void bind_pair_products(const Input& fields, const Output& out_BD, int threads) {
  const Rows out = matrix_rows("out_BD", out_BD, length(fields));
  PairProducts request = pairs_of(fields, "out_BD", out.width);
  request.out = out;
  const nb::gil_scoped_release release;
  pair_products(request, length(out_BD), threads);
}

void bind_pair_products_grad(const Input& fields, const Input& grad_BD, const Output& fields_grad,
                             int threads) {
  const ConstRows grad = matrix_rows("grad_BD", grad_BD, length(fields));
  PairProducts request = pairs_of(fields, "grad_BD", grad.width);
  request.grad = grad;
  request.fields_grad =
      matrix_rows("fields_grad", fields_grad, length(fields), request.fields.width);
  const nb::gil_scoped_release release;
  pair_products_grad(request, length(grad_BD), threads);
}

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
  m.def("pair_products", &bind_pair_products, "fields"_a, "out_BD"_a, "threads"_a = 1);
  m.def("pair_products_grad", &bind_pair_products_grad, "fields"_a, "grad_BD"_a, "fields_grad"_a,
        "threads"_a = 1);
  nb::class_<TowerGradients>(m, "TowerGradients").def("wait", &TowerGradients::wait, ReleaseGil());
  nb::class_<BoundNorm>(m, "TowerNorm")
      .def(
          "__init__",
          [](BoundNorm* self, const Output& weight, const Output& bias, const Output& weight_grad,
             const Output& bias_grad, const Output& running_mean, const Output& running_var,
             const Output& inverse, const Output& normed, float momentum, float eps, bool biased) {
            new (self) BoundNorm{weight,  bias,   weight_grad, bias_grad, running_mean, running_var,
                                 inverse, normed, momentum,    eps,       biased};
          },
          nb::kw_only(), "weight"_a, "bias"_a, "weight_grad"_a, "bias_grad"_a, "running_mean"_a,
          "running_var"_a, "inverse"_a, "normed"_a, "momentum"_a = 0.1f, "eps"_a = 1e-5f,
          "biased"_a = false);
  nb::class_<BoundLayer>(m, "TowerLayer")
      .def(
          "__init__",
          [](BoundLayer* self, const Output& weight, const Output& output, const Output& grad,
             const Output& weight_grad, const MaybeOutput& bias, const MaybeOutput& bias_grad,
             const MaybeOutput& slope, const std::string& activation, float dropout,
             const std::optional<BoundNorm>& norm) {
            new (self) BoundLayer{weight,  output,    grad,  weight_grad,
                                  bias,    bias_grad, slope, activation_of(activation),
                                  dropout, norm};
          },
          nb::kw_only(), "weight"_a, "output"_a, "grad"_a, "weight_grad"_a, "bias"_a = nb::none(),
          "bias_grad"_a = nb::none(), "slope"_a = nb::none(), "activation"_a = "linear",
          "dropout"_a = 0.0f, "norm"_a = nb::none());
  nb::class_<BoundTower>(m, "Tower")
      .def(nb::init<const Output&, const std::vector<BoundLayer>&, const Output&, bool>(),
           nb::kw_only(), "input_BX"_a, "layers"_a, "grad_input_BX"_a, "bf16"_a = false)
      .def("forward", &BoundTower::forward, "threads"_a = 1, "key"_a = 0, ReleaseGil())
      .def("backward", &BoundTower::backward, "threads"_a = 1, nb::keep_alive<0, 1>(), ReleaseGil())
      .def("backward_rows", &BoundTower::backward_rows, "threads"_a = 1, ReleaseGil())
      .def("gradients", &BoundTower::gradients, "first"_a, "last"_a, "threads"_a = 1,
           nb::keep_alive<0, 1>(), ReleaseGil());
}

}  // namespace widedeep
