// Packed examples for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind_arrays.hpp"
#include "packed_examples.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

using OptionalInput = std::optional<Input>;

ExampleLayout make_layout(std::vector<int> widths, std::int64_t n_dense, std::int64_t n_labels,
                          bool has_values, bool has_weight, bool has_group) {
  ExampleLayout layout;
  for (const int width : widths) {
    if (width < 1 || (width > 4 && width != 8)) {
      refuse("widths: got " + std::to_string(width) + ", expected 1, 2, 3, 4 or 8");
    }
    layout.widths.push_back(static_cast<std::uint8_t>(width));
  }
  if (n_dense < 0 || n_labels < 0) refuse("n_dense, n_labels: expected at least 0");
  layout.n_dense = n_dense;
  layout.n_labels = n_labels;
  layout.has_values = has_values;
  layout.has_weight = has_weight;
  layout.has_group = has_group;
  return layout;
}

void check_present(const char* name, bool is_given, bool expected) {
  if (is_given != expected) {
    refuse(std::string(name) + (expected ? ": got none, but the layout has them"
                                         : ": got some, but the layout has none"));
  }
}

nb::tuple bind_pack(const ExampleLayout& layout, const Input& ids, const Input& offsets,
                    const OptionalInput& values, const Input& dense, const OptionalInput& labels,
                    const OptionalInput& weight, const OptionalInput& group) {
  const std::int64_t n = length(dense);
  check_present("values", values.has_value(), layout.has_values);
  check_present("labels", labels.has_value(), layout.n_labels > 0);
  check_present("weight", weight.has_value(), layout.has_weight);
  check_present("group", group.has_value(), layout.has_group);
  ExampleArrays rows{};
  rows.ids = vector_data<std::int64_t>("ids", ids);
  rows.n_ids = length(ids);
  rows.offsets = vector_data<std::int64_t>("offsets", offsets, n * layout.n_slots() + 1);
  rows.values = vector_data<float>("values", values, rows.n_ids);
  const auto table = [&](const char* name, const Input& array, std::int64_t width) {
    const ConstRows matrix = matrix_rows(name, array, n, width);
    if (n > 1 && width > 0 && matrix.stride != width) {
      refuse(std::string(name) + ": not contiguous");
    }
    return matrix.data;
  };
  rows.dense = table("dense", dense, layout.n_dense);
  if (labels) rows.labels = table("labels", *labels, layout.n_labels);
  rows.weight = vector_data<float>("weight", weight, n);
  rows.group = vector_data<std::int64_t>("group", group, n);
  std::vector<std::uint8_t> bytes;
  std::vector<std::int64_t> starts(static_cast<std::size_t>(n) + 1);
  std::int64_t fault;
  {
    const nb::gil_scoped_release release;
    fault = pack_examples(layout, rows, n, bytes, starts.data());
  }
  if (fault >= 0) {
    const std::int64_t slots = layout.n_slots();
    refuse("ids: example " + std::to_string(fault / slots) + ", slot " +
           std::to_string(fault % slots) + ": ids or offsets out of range");
  }
  return nb::make_tuple(to_array(std::move(bytes)), to_array(std::move(starts)));
}

template <class T>
nb::object optional_array(bool present, std::unique_ptr<T[]> data, std::size_t n) {
  return present ? nb::cast(new_array(std::move(data), n)) : nb::none();
}

nb::tuple bind_unpack(const ExampleLayout& layout, const Input& spans) {
  if (spans.ndim() != 2 || spans.shape(1) != 2 || spans.dtype() != nb::dtype<std::int64_t>() ||
      (length(spans) > 0 && (spans.stride(1) != 1 || spans.stride(0) != 2))) {
    refuse("spans: got " + described(spans) + ", expected a contiguous (n, 2) of int64");
  }
  const auto n = static_cast<std::size_t>(length(spans));
  const auto dense_size = n * static_cast<std::size_t>(layout.n_dense);
  const auto label_size = n * static_cast<std::size_t>(layout.n_labels);
  std::unique_ptr<std::int64_t[]> offsets(new std::int64_t[n * layout.widths.size() + 1]);
  std::unique_ptr<float[]> dense(new float[dense_size]);
  std::unique_ptr<float[]> labels(new float[label_size]);
  std::unique_ptr<float[]> weight(new float[layout.has_weight ? n : 0]);
  std::unique_ptr<std::int64_t[]> group(new std::int64_t[layout.has_group ? n : 0]);
  UnpackedExamples rows{
      offsets.get(), dense.get(), labels.get(), weight.get(), group.get(), {}, {}};
  std::int64_t fault;
  {
    const nb::gil_scoped_release release;
    fault = unpack_examples(layout, reinterpret_cast<const ExampleSpan*>(spans.data()),
                            static_cast<std::int64_t>(n), rows);
  }
  if (fault >= 0) refuse("row " + std::to_string(fault) + " is damaged");
  nb::object values = nb::none();
  if (layout.has_values) values = to_array(std::move(rows.values));
  nb::object label_table = nb::none();
  if (layout.n_labels > 0) label_table = nb::cast(new_array(std::move(labels), n, layout.n_labels));
  return nb::make_tuple(to_array(std::move(rows.ids)),
                        new_array(std::move(offsets), n * layout.widths.size() + 1),
                        new_array(std::move(dense), n, layout.n_dense), values, label_table,
                        optional_array(layout.has_weight, std::move(weight), n),
                        optional_array(layout.has_group, std::move(group), n));
}

}  // namespace

void bind_examples(nb::module_& m) {
  nb::class_<ExampleLayout>(m, "ExampleLayout")
      .def(
          "__init__",
          [](ExampleLayout* self, std::vector<int> widths, std::int64_t n_dense,
             std::int64_t n_labels, bool has_values, bool has_weight, bool has_group) {
            new (self) ExampleLayout(make_layout(std::move(widths), n_dense, n_labels, has_values,
                                                 has_weight, has_group));
          },
          "widths"_a, nb::kw_only(), "n_dense"_a, "n_labels"_a, "has_values"_a, "has_weight"_a,
          "has_group"_a)
      .def_prop_ro("n_slots", &ExampleLayout::n_slots)
      .def_ro("n_labels", &ExampleLayout::n_labels);
  m.def("pack_examples", &bind_pack, "layout"_a, "ids"_a, "offsets"_a, "values"_a.none(), "dense"_a,
        "labels"_a.none(), "weight"_a.none(), "group"_a.none());
  m.def("unpack_examples", &bind_unpack, "layout"_a, "spans"_a);
}

}  // namespace widedeep
