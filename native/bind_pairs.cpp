// Attention over pairs of fields for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>

#include "bind_arrays.hpp"
#include "pair_attention.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

const float* weight_data(const Input& weight_AD) {
  check_matrix("weight_AD", weight_AD, -1, -1);
  if (length(weight_AD) > 1 &&
      weight_AD.stride(0) != static_cast<std::int64_t>(weight_AD.shape(1))) {
    refuse("weight_AD: not contiguous; pass np.ascontiguousarray(weight_AD)");
  }
  return static_cast<const float*>(weight_AD.data());
}

// All but what is filled.
PairAttention checked(const Input& fields_BX, const Input& weight_AD, const Input& bias_A,
                      const Input& score_A) {
  PairAttention request{};
  request.weight = weight_data(weight_AD);
  request.units = length(weight_AD);
  request.dim = static_cast<std::int64_t>(weight_AD.shape(1));
  request.input = matrix_rows("fields_BX", fields_BX);
  request.rows = length(fields_BX);
  if (request.dim < 1 || request.dim > kMaxPairDim || request.units < 1) {
    refuse("weight_AD: got " + described(weight_AD) + ", expected one row or more, 1 to " +
           std::to_string(kMaxPairDim) + " wide");
  }
  if (request.input.width % request.dim != 0 || request.input.width / request.dim < 2) {
    refuse("fields_BX: got width " + std::to_string(request.input.width) +
           ", expected two or more fields of width " + std::to_string(request.dim));
  }
  request.fields = request.input.width / request.dim;
  request.bias = vector_data<float>("bias_A", bias_A, request.units);
  request.score = vector_data<float>("score_A", score_A, request.units);
  return request;
}

std::int64_t n_pairs(const PairAttention& request) {
  return request.fields * (request.fields - 1) / 2;
}

void bind_attend(const Input& fields_BX, const Input& weight_AD, const Input& bias_A,
                 const Input& score_A, const Output& out_BD, const Output& attention_BP,
                 int threads) {
  PairAttention request = checked(fields_BX, weight_AD, bias_A, score_A);
  request.out = matrix_rows("out_BD", out_BD, request.rows, request.dim);
  request.attention = matrix_rows("attention_BP", attention_BP, request.rows, n_pairs(request));
  const nb::gil_scoped_release release;
  attend_pairs(request, threads);
}

void bind_attend_grad(const Input& fields_BX, const Input& weight_AD, const Input& bias_A,
                      const Input& score_A, const Output& attention_BP, const Input& grad_out_BD,
                      const Output& grad_fields_BX, const Output& grad_weight_AD,
                      const Output& grad_bias_A, const Output& grad_score_A, int threads) {
  PairAttention request = checked(fields_BX, weight_AD, bias_A, score_A);
  request.attention = matrix_rows("attention_BP", attention_BP, request.rows, n_pairs(request));
  const ConstRows grad_out = matrix_rows("grad_out_BD", grad_out_BD, request.rows, request.dim);
  const Rows grad_fields =
      matrix_rows("grad_fields_BX", grad_fields_BX, request.rows, request.input.width);
  const Rows grad_weight =
      matrix_rows("grad_weight_AD", grad_weight_AD, request.units, request.dim);
  if (request.units > 1 && grad_weight.stride != request.dim) {
    refuse("grad_weight_AD: not contiguous; pass np.ascontiguousarray(grad_weight_AD)");
  }
  auto* const grad_bias = vector_data<float>("grad_bias_A", grad_bias_A, request.units);
  auto* const grad_score = vector_data<float>("grad_score_A", grad_score_A, request.units);
  const nb::gil_scoped_release release;
  attend_pairs_grad(request, grad_out, grad_fields, grad_weight.data, grad_bias, grad_score,
                    threads);
}

}  // namespace

void bind_pairs(nb::module_& m) {
  m.def("attend_pairs", &bind_attend, "fields_BX"_a, "weight_AD"_a, "bias_A"_a, "score_A"_a,
        "out_BD"_a, "attention_BP"_a, "threads"_a);
  m.def("attend_pairs_grad", &bind_attend_grad, "fields_BX"_a, "weight_AD"_a, "bias_A"_a,
        "score_A"_a, "attention_BP"_a, "grad_out_BD"_a, "grad_fields_BX"_a, "grad_weight_AD"_a,
        "grad_bias_A"_a, "grad_score_A"_a, "threads"_a);
}

}  // namespace widedeep
