// Blocks of models for Python: tensors come as the vectors of their numbers, row after row.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <string>

#include "bilinear_products.hpp"
#include "bind_arrays.hpp"
#include "dice.hpp"
#include "exp_norm.hpp"
#include "field_attention.hpp"
#include "field_convolution.hpp"
#include "gru.hpp"
#include "pair_products.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

void check_least(const char* name, std::int64_t value, std::int64_t least) {
  if (value < least) {
    refuse(std::string(name) + ": got " + std::to_string(value) + ", expected at least " +
           std::to_string(least));
  }
}

// ---- gated recurrent unit ----

struct GruArrays {
  const Input& mask;
  const Input& inputs;
  const Input& state_weight;
  const std::optional<Input>& weights;
};

Gru checked(const GruArrays& arrays, std::int64_t steps) {
  check_least("steps", steps, 1);
  Gru request{};
  request.mask = vector_data<std::uint8_t>("mask", arrays.mask);
  request.steps = steps;
  request.rows = length(arrays.mask) / steps;
  vector_data<std::uint8_t>("mask", arrays.mask, request.rows * steps);
  check_matrix("state_weight", arrays.state_weight, -1, -1);
  request.width = static_cast<std::int64_t>(arrays.state_weight.shape(1));
  check_matrix("state_weight", arrays.state_weight, 3 * request.width, request.width);
  check_least("state_weight's width", request.width, 1);
  if (arrays.state_weight.stride(0) != request.width) {
    refuse("state_weight: not contiguous; pass np.ascontiguousarray(state_weight)");
  }
  request.state_weight = static_cast<const float*>(arrays.state_weight.data());
  std::int64_t events = 0;
  for (std::int64_t i = 0; i < length(arrays.mask); ++i) {
    if (request.mask[i] > 1) refuse("mask: got a number above 1, expected 0 and 1");
    events += request.mask[i];
  }
  request.inputs = vector_data<float>("inputs", arrays.inputs, events * 3 * request.width);
  request.weights = vector_data<float>("weights", arrays.weights, events);
  return request;
}

std::int64_t n_events(const Gru& request, const Input& inputs) {
  return length(inputs) / (3 * request.width);
}

void bind_gru(const Input& mask, std::int64_t steps, const Input& inputs, const Input& state_weight,
              const std::optional<Input>& weights, const Output& states, const Output& saved,
              int threads) {
  Gru request = checked({mask, inputs, state_weight, weights}, steps);
  const std::int64_t numbers = n_events(request, inputs) * request.width;
  request.states = vector_data<float>("states", states, numbers);
  request.saved = vector_data<float>("saved", saved, 4 * numbers);
  const nb::gil_scoped_release release;
  gru(request, threads);
}

void bind_gru_grad(const Input& mask, std::int64_t steps, const Input& inputs,
                   const Input& state_weight, const std::optional<Input>& weights,
                   const Output& states, const Output& saved, const Input& grad_states,
                   const Output& grad_inputs, const Output& grad_products,
                   const std::optional<Output>& grad_weights, int threads) {
  Gru request = checked({mask, inputs, state_weight, weights}, steps);
  const std::int64_t events = n_events(request, inputs);
  const std::int64_t numbers = events * request.width;
  request.states = vector_data<float>("states", states, numbers);
  request.saved = vector_data<float>("saved", saved, 4 * numbers);
  GruGrad grad{};
  grad.grad_states = vector_data<float>("grad_states", grad_states, numbers);
  grad.grad_inputs = vector_data<float>("grad_inputs", grad_inputs, 3 * numbers);
  grad.grad_products = vector_data<float>("grad_products", grad_products, 3 * numbers);
  if (grad_weights) grad.grad_weights = vector_data<float>("grad_weights", *grad_weights, events);
  const nb::gil_scoped_release release;
  gru_grad(request, grad, threads);
}

// ---- attention between fields ----

FieldAttention attention_of(const Input& projected, const Output& out, std::int64_t fields,
                            std::int64_t heads, std::int64_t units, float scale) {
  check_least("fields", fields, 1);
  check_least("heads", heads, 1);
  check_least("units", units, 1);
  const std::int64_t line = fields * heads * units;
  FieldAttention request{};
  request.rows = length(projected) / (4 * line);
  request.fields = fields;
  request.heads = heads;
  request.units = units;
  request.scale = scale;
  request.projected = vector_data<float>("projected", projected, request.rows * 4 * line);
  request.out = vector_data<float>("out", out, request.rows * line);
  return request;
}

void bind_attention(const Input& projected, std::int64_t fields, std::int64_t heads,
                    std::int64_t units, float scale, const Output& out, int threads) {
  const FieldAttention request = attention_of(projected, out, fields, heads, units, scale);
  const nb::gil_scoped_release release;
  field_attention(request, threads);
}

void bind_attention_grad(const Input& projected, std::int64_t fields, std::int64_t heads,
                         std::int64_t units, float scale, const Output& out, const Input& grad_out,
                         const Output& grad_projected, int threads) {
  const FieldAttention request = attention_of(projected, out, fields, heads, units, scale);
  FieldAttentionGrad grad{};
  grad.grad_out = vector_data<float>("grad_out", grad_out, length(out));
  grad.grad_projected = vector_data<float>("grad_projected", grad_projected, length(projected));
  const nb::gil_scoped_release release;
  field_attention_grad(request, grad, threads);
}

// ---- convolution over fields ----

FieldConvolution convolution_of(const Input& maps, std::int64_t rows, const Input& weight,
                                const Input& bias, std::int64_t dim, std::int64_t width,
                                std::int64_t k, const Output& out, const Output& positions) {
  check_least("rows", rows, 0);
  check_least("dim", dim, 1);
  check_least("width", width, 1);
  FieldConvolution request{};
  request.rows = rows;
  request.filters = length(bias);
  check_least("bias's length", request.filters, 1);
  request.maps = length(weight) / (request.filters * width);
  check_least("weight's maps", request.maps, 1);
  request.dim = dim;
  request.width = width;
  request.k = k;
  request.fields = rows == 0 ? k : length(maps) / (rows * request.maps * dim);
  if (k < 1 || k > request.fields || request.fields > 256) {
    refuse("k: got " + std::to_string(k) + " of " + std::to_string(request.fields) +
           " fields, expected 1 <= k <= fields <= 256");
  }
  request.input = vector_data<float>("maps", maps, rows * request.maps * request.fields * dim);
  request.weight = vector_data<float>("weight", weight, request.filters * request.maps * width);
  request.bias = vector_data<float>("bias", bias);
  const std::int64_t numbers = rows * request.filters * k * dim;
  request.out = vector_data<float>("out", out, numbers);
  request.positions = vector_data<std::uint8_t>("positions", positions, numbers);
  return request;
}

// Positions of an earlier forward pass, which a caller could have written over.
void check_positions_of(const FieldConvolution& request, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (request.positions[i] >= request.fields) {
      refuse("positions: got " + std::to_string(request.positions[i]) + ", expected below " +
             std::to_string(request.fields));
    }
  }
}

void bind_convolution(const Input& maps, std::int64_t rows, const Input& weight, const Input& bias,
                      std::int64_t dim, std::int64_t width, std::int64_t k, const Output& out,
                      const Output& positions, int threads) {
  const FieldConvolution request =
      convolution_of(maps, rows, weight, bias, dim, width, k, out, positions);
  const nb::gil_scoped_release release;
  field_convolution(request, threads);
}

void bind_convolution_grad(const Input& maps, std::int64_t rows, const Input& weight,
                           const Input& bias, std::int64_t dim, std::int64_t width, std::int64_t k,
                           const Output& out, const Output& positions, const Input& grad_out,
                           const Output& grad_maps, const Output& grad_weight,
                           const Output& grad_bias, int threads) {
  const FieldConvolution request =
      convolution_of(maps, rows, weight, bias, dim, width, k, out, positions);
  check_positions_of(request, length(positions));
  FieldConvolutionGrad grad{};
  grad.grad_out = vector_data<float>("grad_out", grad_out, length(out));
  grad.grad_input = vector_data<float>("grad_maps", grad_maps, length(maps));
  auto* const by_weight = vector_data<float>("grad_weight", grad_weight, length(weight));
  auto* const by_bias = vector_data<float>("grad_bias", grad_bias, length(bias));
  const nb::gil_scoped_release release;
  field_convolution_grad(request, grad, by_weight, by_bias, threads);
}

// ---- Dice ----

Dice dice_of(const Input& sums, const Input& alpha, const Output& mean, const Output& variance,
             float epsilon) {
  Dice request{};
  request.alpha = vector_data<float>("alpha", alpha);
  request.width = length(alpha);
  check_least("alpha's length", request.width, 1);
  request.rows = length(sums) / request.width;
  check_least("sums' rows", request.rows, 1);
  request.sums = vector_data<float>("sums", sums, request.rows * request.width);
  request.mean = vector_data<float>("mean", mean, request.width);
  request.variance = vector_data<float>("variance", variance, request.width);
  request.epsilon = epsilon;
  return request;
}

void bind_dice(const Input& sums, const Input& alpha, const Output& mean, const Output& variance,
               float epsilon, const Output& out, int threads) {
  Dice request = dice_of(sums, alpha, mean, variance, epsilon);
  request.out = vector_data<float>("out", out, length(sums));
  const nb::gil_scoped_release release;
  dice(request, threads);
}

void bind_dice_grad(const Input& sums, const Input& alpha, const Output& mean,
                    const Output& variance, float epsilon, const Input& grad_out,
                    const Output& grad_sums, const Output& grad_alpha, int threads) {
  const Dice request = dice_of(sums, alpha, mean, variance, epsilon);
  DiceGrad grad{};
  grad.grad_out = vector_data<float>("grad_out", grad_out, length(sums));
  grad.grad_sums = vector_data<float>("grad_sums", grad_sums, length(sums));
  grad.grad_alpha = vector_data<float>("grad_alpha", grad_alpha, request.width);
  const nb::gil_scoped_release release;
  dice_grad(request, grad, threads);
}

// ---- products of field-aware embeddings ----

AwareProducts products_of(const Input& input, std::int64_t fields, std::int64_t dim) {
  check_least("fields", fields, 1);
  check_least("dim", dim, 1);
  AwareProducts request{};
  request.input = matrix_rows("input", input);
  request.n_fields = fields;
  request.dim = dim;
  if (request.input.width < fields * fields * dim) {
    refuse("input: got width " + std::to_string(request.input.width) + ", expected at least " +
           std::to_string(fields * fields * dim));
  }
  return request;
}

std::int64_t products_width(const AwareProducts& request) {
  const std::int64_t fields = request.n_fields;
  const std::int64_t numbers = request.input.width - fields * fields * request.dim;
  return fields * request.dim + fields * (fields - 1) / 2 + numbers;
}

void bind_products(const Input& input, std::int64_t fields, std::int64_t dim, const Output& out,
                   int threads) {
  AwareProducts request = products_of(input, fields, dim);
  request.out = matrix_rows("out", out, length(input), products_width(request));
  const nb::gil_scoped_release release;
  aware_products(request, length(input), threads);
}

void bind_products_grad(const Input& input, std::int64_t fields, std::int64_t dim,
                        const Input& grad_out, const Output& grad_input, int threads) {
  AwareProducts request = products_of(input, fields, dim);
  request.grad = matrix_rows("grad_out", grad_out, length(input), products_width(request));
  request.input_grad = matrix_rows("grad_input", grad_input, length(input), request.input.width);
  const nb::gil_scoped_release release;
  aware_products_grad(request, length(input), threads);
}

// ---- exp and batch norm ----

ExpNorm exp_norm_of(const Output& values, const Input& weight, const Input& bias, std::int64_t dim,
                    const Output& mean, const Output& variance, float epsilon) {
  check_least("dim", dim, 1);
  ExpNorm request{};
  request.dim = dim;
  request.weight = vector_data<float>("weight", weight);
  request.width = length(weight);
  check_least("weight's length", request.width, 1);
  request.rows = length(values) / (dim * request.width);
  check_least("values' rows", request.rows, 1);
  request.values = vector_data<float>("values", values, request.rows * dim * request.width);
  request.bias = vector_data<float>("bias", bias, request.width);
  request.mean = vector_data<float>("mean", mean, request.width);
  request.variance = vector_data<float>("variance", variance, request.width);
  request.epsilon = epsilon;
  return request;
}

void bind_exp_norm(const Output& values, const Input& weight, const Input& bias, std::int64_t dim,
                   const Output& mean, const Output& variance, float epsilon, const Output& out,
                   int threads) {
  ExpNorm request = exp_norm_of(values, weight, bias, dim, mean, variance, epsilon);
  request.out = vector_data<float>("out", out, length(values));
  const nb::gil_scoped_release release;
  exp_norm(request, threads);
}

void bind_exp_norm_grad(const Output& values, const Input& weight, const Input& bias,
                        std::int64_t dim, const Output& mean, const Output& variance, float epsilon,
                        const Input& grad_out, const Output& grad_sums, const Output& grad_weight,
                        const Output& grad_bias, int threads) {
  const ExpNorm request = exp_norm_of(values, weight, bias, dim, mean, variance, epsilon);
  const ExpNormGrad grad{vector_data<float>("grad_out", grad_out, length(values)),
                         vector_data<float>("grad_sums", grad_sums, length(values)),
                         vector_data<float>("grad_weight", grad_weight, request.width),
                         vector_data<float>("grad_bias", grad_bias, request.width)};
  const nb::gil_scoped_release release;
  exp_norm_grad(request, grad, threads);
}

// ---- bilinear products ----

BilinearProducts bilinear_of(const Input& left, const Input& fields, const Input& gates,
                             const Input& numbers) {
  BilinearProducts request{};
  const std::int64_t rows = length(fields);
  request.gates = matrix_rows("gates", gates, rows);
  request.fields = request.gates.width;
  check_least("gates' width", request.fields, 2);
  request.right = matrix_rows("fields", fields);
  request.dim = request.right.width / request.fields;
  check_matrix("fields", fields, rows, request.dim * request.fields);
  const std::int64_t pairs = request.fields * (request.fields - 1) / 2;
  request.left = matrix_rows("left", left, rows, pairs * request.dim);
  request.numbers = matrix_rows("numbers", numbers, rows);
  return request;
}

std::int64_t bilinear_width(const BilinearProducts& request) {
  return 2 * request.left.width + request.numbers.width;
}

void bind_bilinear(const Input& left, const Input& fields, const Input& gates, const Input& numbers,
                   const Output& out, int threads) {
  BilinearProducts request = bilinear_of(left, fields, gates, numbers);
  request.out = matrix_rows("out", out, length(fields), bilinear_width(request));
  const nb::gil_scoped_release release;
  bilinear_products(request, length(fields), threads);
}

void bind_bilinear_grad(const Input& left, const Input& fields, const Input& gates,
                        const Input& numbers, const Input& grad_out, const Output& grad_left,
                        const Output& grad_fields, const Output& grad_gates, int threads) {
  const BilinearProducts request = bilinear_of(left, fields, gates, numbers);
  const std::int64_t rows = length(fields);
  const BilinearGrad grad{matrix_rows("grad_out", grad_out, rows, bilinear_width(request)),
                          matrix_rows("grad_left", grad_left, rows, request.left.width),
                          matrix_rows("grad_fields", grad_fields, rows, request.right.width),
                          matrix_rows("grad_gates", grad_gates, rows, request.fields)};
  const nb::gil_scoped_release release;
  bilinear_products_grad(request, grad, rows, threads);
}

}  // namespace

void bind_blocks(nb::module_& m) {
  m.def("gru", &bind_gru, "mask"_a, "steps"_a, "inputs"_a, "state_weight"_a, "weights"_a.none(),
        "states"_a, "saved"_a, "threads"_a);
  m.def("gru_grad", &bind_gru_grad, "mask"_a, "steps"_a, "inputs"_a, "state_weight"_a,
        "weights"_a.none(), "states"_a, "saved"_a, "grad_states"_a, "grad_inputs"_a,
        "grad_products"_a, "grad_weights"_a.none(), "threads"_a);
  m.def("field_attention", &bind_attention, "projected"_a, "fields"_a, "heads"_a, "units"_a,
        "scale"_a, "out"_a, "threads"_a);
  m.def("field_attention_grad", &bind_attention_grad, "projected"_a, "fields"_a, "heads"_a,
        "units"_a, "scale"_a, "out"_a, "grad_out"_a, "grad_projected"_a, "threads"_a);
  m.def("field_convolution", &bind_convolution, "maps"_a, "rows"_a, "weight"_a, "bias"_a, "dim"_a,
        "width"_a, "k"_a, "out"_a, "positions"_a, "threads"_a);
  m.def("field_convolution_grad", &bind_convolution_grad, "maps"_a, "rows"_a, "weight"_a, "bias"_a,
        "dim"_a, "width"_a, "k"_a, "out"_a, "positions"_a, "grad_out"_a, "grad_maps"_a,
        "grad_weight"_a, "grad_bias"_a, "threads"_a);
  m.def("exp_norm", &bind_exp_norm, "values"_a, "weight"_a, "bias"_a, "dim"_a, "mean"_a,
        "variance"_a, "epsilon"_a, "out"_a, "threads"_a);
  m.def("exp_norm_grad", &bind_exp_norm_grad, "values"_a, "weight"_a, "bias"_a, "dim"_a, "mean"_a,
        "variance"_a, "epsilon"_a, "grad_out"_a, "grad_sums"_a, "grad_weight"_a, "grad_bias"_a,
        "threads"_a);
  m.def("bilinear_products", &bind_bilinear, "left"_a, "fields"_a, "gates"_a, "numbers"_a, "out"_a,
        "threads"_a);
  m.def("bilinear_products_grad", &bind_bilinear_grad, "left"_a, "fields"_a, "gates"_a, "numbers"_a,
        "grad_out"_a, "grad_left"_a, "grad_fields"_a, "grad_gates"_a, "threads"_a);
  m.def("dice", &bind_dice, "sums"_a, "alpha"_a, "mean"_a, "variance"_a, "epsilon"_a, "out"_a,
        "threads"_a);
  m.def("dice_grad", &bind_dice_grad, "sums"_a, "alpha"_a, "mean"_a, "variance"_a, "epsilon"_a,
        "grad_out"_a, "grad_sums"_a, "grad_alpha"_a, "threads"_a);
  m.def("aware_products", &bind_products, "input"_a, "fields"_a, "dim"_a, "out"_a, "threads"_a);
  m.def("aware_products_grad", &bind_products_grad, "input"_a, "fields"_a, "dim"_a, "grad_out"_a,
        "grad_input"_a, "threads"_a);
}

}  // namespace widedeep
