#include "bind_program.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <utility>

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

constexpr std::array<const char*, kMapFunctions> kMaps = {
    "copy",       "neg",     "abs",           "exp",   "log",       "log1p",    "sqrt",
    "reciprocal", "square",  "sign",          "relu",  "sigmoid",   "tanh",     "gelu",
    "silu",       "elu",     "leaky_relu",    "clamp", "softplus",  "erf",      "sin",
    "cos",        "power",   "add",           "sub",   "mul",       "div",      "max",
    "min",        "greater", "greater_equal", "equal", "not_equal", "add_relu", "add3",
    "add3_relu",  "mul_add", "where"};
constexpr std::array<const char*, 3> kReductions = {"sum", "max", "min"};

Side stage_of(int stage) {
  expect(stage >= 0 && stage < kStages, "expected the stage 0, 1 or 2");
  return static_cast<Side>(stage);
}

ProgramDims dims_of(const std::vector<std::int64_t>& dims) {
  expect(dims.size() == kProgramDims, "expected four dimensions");
  ProgramDims found{};
  std::copy(dims.begin(), dims.end(), found.begin());
  return found;
}

ProgramView view_of(const BoundProgram::View& view) {
  const auto& [value, offset, strides] = view;
  return {value, offset, dims_of(strides)};
}

}  // namespace

std::int64_t BoundProgram::add_constant(Array<float, 1> values) {
  const auto size = static_cast<std::int64_t>(values.shape(0));
  const std::int64_t value = program_.add_constant(values.data(), size);
  held_.push_back(std::move(values));
  return value;
}

std::int64_t BoundProgram::add_map(int stage, const std::string& function, const Dims& dims,
                                   const std::vector<View>& inputs, float first, float second) {
  std::vector<ProgramView> views;
  for (const View& input : inputs) views.push_back(view_of(input));
  return program_.add_map(stage_of(stage), static_cast<MapFunction>(named(kMaps, function)),
                          dims_of(dims), views, first, second);
}

std::int64_t BoundProgram::add_reduce(int stage, const std::string& function, const Dims& dims,
                                      const View& input) {
  return program_.add_reduce(stage_of(stage), static_cast<Reduction>(named(kReductions, function)),
                             dims_of(dims), view_of(input));
}

std::int64_t BoundProgram::add_top(int stage, std::int64_t count, const Dims& dims,
                                   const View& input) {
  return program_.add_top(stage_of(stage), count, dims_of(dims), view_of(input));
}

std::int64_t BoundProgram::add_matmul(int stage, const Dims& dims, const View& left,
                                      const View& right) {
  return program_.add_matmul(stage_of(stage), dims_of(dims), view_of(left), view_of(right));
}

std::int64_t BoundProgram::add_linear(int stage, std::int64_t input, const Array<float, 2>& weight,
                                      const std::optional<Array<float, 1>>& bias,
                                      const std::string& activation) {
  expect(!bias || bias->shape(0) == weight.shape(0), "expected one bias a unit");
  const LayerWeights weights = {weight.data(), size(weight, 1), bias ? bias->data() : nullptr,
                                size(weight, 0), size(weight, 1)};
  return program_.add_linear(stage_of(stage), input, weights, activation_named(activation));
}

std::int64_t BoundProgram::add_gather(int stage, const std::vector<Segment>& segments) {
  std::vector<ProgramSegment> found;
  for (const auto& [value, from, length] : segments) found.push_back({value, from, length});
  return program_.add_gather(stage_of(stage), found);
}

void bind_program(nb::module_& m) {
  nb::class_<BoundProgram>(m, "ScoreProgram")
      .def(nb::init<const std::array<std::int64_t, kStages>&>(), "input_sizes"_a)
      .def("add_constant", &BoundProgram::add_constant, "values"_a)
      .def("add_map", &BoundProgram::add_map, "stage"_a, "function"_a, "dims"_a, "inputs"_a,
           "first"_a = 0.0f, "second"_a = 0.0f)
      .def("add_reduce", &BoundProgram::add_reduce, "stage"_a, "function"_a, "dims"_a, "input"_a)
      .def("add_top", &BoundProgram::add_top, "stage"_a, "count"_a, "dims"_a, "input"_a)
      .def("add_matmul", &BoundProgram::add_matmul, "stage"_a, "dims"_a, "left"_a, "right"_a)
      .def("add_linear", &BoundProgram::add_linear, "stage"_a, "input"_a, "weight"_a,
           "bias"_a.none(), "activation"_a)
      .def("add_gather", &BoundProgram::add_gather, "stage"_a, "segments"_a)
      .def("finish", &BoundProgram::finish, "output"_a);
}

}  // namespace widedeep
