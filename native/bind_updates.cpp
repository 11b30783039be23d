// The optimizers' updates and initial rows for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <utility>

#include "bind_arrays.hpp"
#include "sparse.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

using Rows_U = std::optional<Input>;

// What the random bits of rounding to bfloat16 are made of, beside the width and the column.
struct BoundRounding {
  std::uint64_t seed, step;
  std::optional<Input> ids;  // each touched row's number

  BoundRounding(std::uint64_t seed_of_run, std::uint64_t number, std::optional<Input> ids_U)
      : seed(seed_of_run), step(number), ids(std::move(ids_U)) {
    vector_data<std::int64_t>("ids_U", ids, ids ? length(*ids) : 0);
  }
};

constexpr std::size_t kWidestHalf = 1 << 16;  // an update copies a row to the stack

// The weights of n touched rows: float32, or bfloat16 as its bits, which need a rounding.
WeightRows weight_rows(const char* name, const Output& weights, const BoundRounding* rounding,
                       std::int64_t n) {
  if (is_half(weights) != (rounding != nullptr)) {
    refuse(std::string(name) + ": got " + described(weights) +
           (rounding == nullptr ? " without a rounding; pass one for uint16"
                                : " and a rounding, expected uint16 with one"));
  }
  if (rounding == nullptr) return matrix_rows(name, weights);
  check_matrix<std::uint16_t>(name, weights);
  if (weights.shape(1) > kWidestHalf) {
    refuse(std::string(name) + ": got " + described(weights) + ", expected a width of at most " +
           std::to_string(kWidestHalf));
  }
  WeightRows rows;
  rows.half = static_cast<std::uint16_t*>(weights.data());
  rows.stride = weights.stride(0);
  rows.width = static_cast<std::int64_t>(weights.shape(1));
  rows.key = rounding_key(rounding->seed, static_cast<std::uint64_t>(rows.width), rounding->step);
  rows.ids = vector_data<std::int64_t>("ids_U", rounding->ids, n);
  return rows;
}

// State of the weights' shape; with `by_row` also of one number a row.
Rows state_rows(const char* name, const Output& state, const Output& weights, bool by_row = false) {
  const Rows rows = matrix_rows(name, state);
  const bool fits = state.shape(1) == weights.shape(1) || (by_row && state.shape(1) == 1);
  if (state.shape(0) != weights.shape(0) || !fits) {
    refuse(std::string(name) + ": got " + described(state) + ", expected the shape of weights, " +
           described(weights));
  }
  return rows;
}

// The touched rows and their gradients, checked against the weights.
RowGradients gradients_of(const Output& weights, const Rows_U& rows_U, const Input& grads_UD,
                          double grad_scale) {
  if (is_half(weights)) {
    check_matrix<std::uint16_t>("weights", weights);
  } else {
    check_matrix("weights", weights);
  }
  const std::int64_t n = rows_U ? length(*rows_U) : length(weights);
  const ConstRows grads =
      matrix_rows("grads_UD", grads_UD, n, static_cast<std::int64_t>(weights.shape(1)));
  const auto* const rows = vector_data<std::int64_t>("rows_U", rows_U, n);
  if (rows != nullptr) check_positions("rows_U", rows, n, length(weights), "rows");
  return {rows, n, grads, static_cast<float>(grad_scale)};
}

void bind_sgd(const Output& weights, const Rows_U& rows_U, const Input& grads_UD, double lr,
              double grad_scale, int threads, const BoundRounding* rounding) {
  const RowGradients gradients = gradients_of(weights, rows_U, grads_UD, grad_scale);
  const SgdRequest request = {gradients, weight_rows("weights", weights, rounding, gradients.n),
                              static_cast<float>(lr)};
  const nb::gil_scoped_release release;
  sgd_rows(request, threads);
}

void bind_momentum(const Output& weights, const Output& velocity, const Rows_U& rows_U,
                   const Input& grads_UD, double lr, double momentum, bool nesterov,
                   double grad_scale, int threads, const BoundRounding* rounding) {
  const RowGradients gradients = gradients_of(weights, rows_U, grads_UD, grad_scale);
  const MomentumRequest request = {gradients,
                                   weight_rows("weights", weights, rounding, gradients.n),
                                   state_rows("velocity", velocity, weights),
                                   static_cast<float>(lr),
                                   static_cast<float>(momentum),
                                   nesterov};
  const nb::gil_scoped_release release;
  momentum_rows(request, threads);
}

void bind_rmsprop(const Output& weights, const Output& square, const std::optional<Output>& mean,
                  const std::optional<Output>& velocity, const Rows_U& rows_U,
                  const Input& grads_UD, double lr, double decay, double momentum, double eps,
                  bool eps_in_root, double grad_scale, int threads, const BoundRounding* rounding) {
  const auto own_eps = static_cast<float>(eps);
  const auto own_lr = static_cast<float>(lr);
  const RowGradients gradients = gradients_of(weights, rows_U, grads_UD, grad_scale);
  const RmspropRequest request = {gradients,
                                  weight_rows("weights", weights, rounding, gradients.n),
                                  state_rows("square", square, weights),
                                  mean ? state_rows("mean", *mean, weights) : Rows{},
                                  velocity ? state_rows("velocity", *velocity, weights) : Rows{},
                                  static_cast<float>(decay),
                                  static_cast<float>(1.0 - decay),
                                  static_cast<float>(momentum),
                                  eps_in_root ? own_eps : 0.0f,
                                  eps_in_root ? 0.0f : own_eps,
                                  eps_in_root ? own_lr : 1.0f,
                                  eps_in_root ? 1.0f : own_lr};
  const nb::gil_scoped_release release;
  rmsprop_rows(request, threads);
}

void bind_adagrad(const Output& weights, const Output& accumulator, const Rows_U& rows_U,
                  const Input& grads_UD, double lr, double eps, double l2, double grad_scale,
                  int threads, const BoundRounding* rounding) {
  const RowGradients gradients = gradients_of(weights, rows_U, grads_UD, grad_scale);
  const AdagradRequest request = {gradients,
                                  weight_rows("weights", weights, rounding, gradients.n),
                                  state_rows("accumulator", accumulator, weights, true),
                                  static_cast<float>(lr),
                                  static_cast<float>(eps),
                                  static_cast<float>(l2)};
  const nb::gil_scoped_release release;
  adagrad_rows(request, threads);
}

void bind_adam(const Output& weights, const Output& mean, const Output& square,
               const Rows_U& rows_U, const Input& grads_UD, double rate, double beta1, double beta2,
               double eps, double decay, double grad_scale, int threads,
               const BoundRounding* rounding) {
  const RowGradients gradients = gradients_of(weights, rows_U, grads_UD, grad_scale);
  const AdamRequest request = {gradients,
                               weight_rows("weights", weights, rounding, gradients.n),
                               state_rows("mean", mean, weights),
                               state_rows("square", square, weights),
                               static_cast<float>(rate),
                               static_cast<float>(beta1),
                               static_cast<float>(1.0 - beta1),
                               static_cast<float>(beta2),
                               static_cast<float>(1.0 - beta2),
                               static_cast<float>(eps),
                               static_cast<float>(decay)};
  const nb::gil_scoped_release release;
  adam_rows(request, threads);
}

std::int64_t bind_ftrl(const Output& weights, const Output& z, const Output& n,
                       const Rows_U& rows_U, const Input& grads_UD, double lr, double l1, double l2,
                       double beta, double lr_power, double shrinkage, double grad_scale,
                       const std::optional<Input>& rates_U, const std::optional<Output>& products_U,
                       int threads, const BoundRounding* rounding) {
  const RowGradients gradients = gradients_of(weights, rows_U, grads_UD, grad_scale);
  const FtrlRequest request = {
      gradients,
      weight_rows("weights", weights, rounding, gradients.n),
      state_rows("z", z, weights),
      state_rows("n", n, weights),
      static_cast<float>(1.0 / lr),
      static_cast<float>(l1),
      static_cast<float>(l2),
      static_cast<float>(beta),
      static_cast<float>(lr_power),
      static_cast<float>(shrinkage),
      vector_data<float>("rates_U", rates_U, gradients.n),
      products_U ? vector_data<float>("products_U", *products_U, gradients.n) : nullptr};
  const nb::gil_scoped_release release;
  return ftrl_rows(request, threads);
}

void bind_round(const Input& rows_nD, const Output& half_nD, const BoundRounding& rounding,
                int threads) {
  const std::int64_t n = length(half_nD);
  const WeightRows out = weight_rows("half_nD", half_nD, &rounding, n);
  const ConstRows rows = matrix_rows("rows_nD", rows_nD, n, out.width);
  const nb::gil_scoped_release release;
  round_rows(rows, out, n, threads);
}

void bind_init(const Output& out_nD, std::uint64_t key, std::int64_t first_row, double scale,
               int threads, const std::string& distribution, const std::optional<Input>& ids_n) {
  constexpr std::array<const char*, 3> kNames = {"normal", "uniform", "truncated_normal"};
  const std::int64_t n = length(out_nD);
  const InitRequest request = {matrix_rows("out_nD", out_nD),
                               key,
                               first_row,
                               static_cast<float>(scale),
                               static_cast<RowInit>(named("distribution", kNames, distribution)),
                               vector_data<std::int64_t>("ids_n", ids_n, n)};
  const nb::gil_scoped_release release;
  init_rows(request, n, threads);
}

}  // namespace

void bind_updates(nb::module_& m) {
  nb::class_<BoundRounding>(m, "Rounding")
      .def(nb::init<std::uint64_t, std::uint64_t, std::optional<Input>>(), "seed"_a, "step"_a,
           "ids_U"_a = nb::none());
  m.def("round_rows", &bind_round, "rows_nD"_a, "half_nD"_a, "rounding"_a, "threads"_a = 1);
  m.def("sgd_rows", &bind_sgd, "weights"_a, "rows_U"_a.none(), "grads_UD"_a, nb::kw_only(), "lr"_a,
        "grad_scale"_a = 1.0, "threads"_a = 1, "rounding"_a.none() = nb::none());
  m.def("momentum_rows", &bind_momentum, "weights"_a, "velocity"_a, "rows_U"_a.none(), "grads_UD"_a,
        nb::kw_only(), "lr"_a, "momentum"_a, "nesterov"_a = false, "grad_scale"_a = 1.0,
        "threads"_a = 1, "rounding"_a.none() = nb::none());
  m.def("rmsprop_rows", &bind_rmsprop, "weights"_a, "square"_a, "mean"_a.none(),
        "velocity"_a.none(), "rows_U"_a.none(), "grads_UD"_a, nb::kw_only(), "lr"_a, "decay"_a,
        "momentum"_a, "eps"_a, "eps_in_root"_a, "grad_scale"_a = 1.0, "threads"_a = 1,
        "rounding"_a.none() = nb::none());
  m.def("adagrad_rows", &bind_adagrad, "weights"_a, "accumulator"_a, "rows_U"_a.none(),
        "grads_UD"_a, nb::kw_only(), "lr"_a, "eps"_a, "l2"_a = 0.0, "grad_scale"_a = 1.0,
        "threads"_a = 1, "rounding"_a.none() = nb::none());
  m.def("adam_rows", &bind_adam, "weights"_a, "mean"_a, "square"_a, "rows_U"_a.none(), "grads_UD"_a,
        nb::kw_only(), "rate"_a, "beta1"_a, "beta2"_a, "eps"_a, "decay"_a = 1.0,
        "grad_scale"_a = 1.0, "threads"_a = 1, "rounding"_a.none() = nb::none());
  m.def("ftrl_rows", &bind_ftrl, "weights"_a, "z"_a, "n"_a, "rows_U"_a.none(), "grads_UD"_a,
        nb::kw_only(), "lr"_a, "l1"_a = 0.0, "l2"_a = 0.0, "beta"_a = 0.0, "lr_power"_a = -0.5,
        "shrinkage"_a = 0.0, "grad_scale"_a = 1.0, "rates_U"_a = nb::none(),
        "products_U"_a = nb::none(), "threads"_a = 1, "rounding"_a.none() = nb::none());
  m.def("fill_rows", &bind_init, "out_nD"_a, "key"_a, "first_row"_a, "scale"_a, "threads"_a,
        "distribution"_a, "ids_n"_a = nb::none());
}

}  // namespace widedeep
