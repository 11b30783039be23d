// Columns that a schema is learned from, for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "arrow_input.hpp"
#include "bind_arrays.hpp"
#include "column_values.hpp"
#include "order.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

using Numbers = nb::ndarray<nb::numpy, double>;

constexpr std::int64_t kBlock = 1024;

Column column_of(const nb::tuple& pair) {
  const ArrowCapsules capsules(pair);
  return make_column(capsules.schema, capsules.array, 0, capsules.array.length);
}

Numbers bind_read_numbers(nb::tuple capsules) {
  const Column column = column_of(capsules);
  const auto n = static_cast<std::size_t>(column.length);
  std::unique_ptr<double[]> numbers(new double[n]);
  bool is_number = column.list == ListLayer::none && !column.has_dictionary;
  {
    const nb::gil_scoped_release unlocked;
    std::vector<Status> status(kBlock);
    for (std::int64_t begin = 0; is_number && begin < column.length; begin += kBlock) {
      const std::int64_t size = std::min(kBlock, column.length - begin);
      read_numbers(column.values, begin, size, Storage{}, numbers.get() + begin, status.data());
      for (std::int64_t i = 0; i < size; ++i) is_number &= status[i] != Status::bad;
    }
  }
  if (!is_number) refuse("array: expected plain numbers");
  return new_array(std::move(numbers), n);
}

nb::ndarray<nb::numpy, std::int64_t> bind_entry_counts(nb::tuple capsules,
                                                       const std::optional<Input>& counts) {
  const Column column = column_of(capsules);
  if (column.list != ListLayer::none || !column.has_dictionary) {
    refuse("array: expected a dictionary and its indices");
  }
  const auto* const weights = vector_data<std::int64_t>("counts", counts, column.length);
  const auto n = static_cast<std::size_t>(column.values.length);
  std::unique_ptr<std::int64_t[]> entry_counts(new std::int64_t[n]());
  bool is_inside = false;
  {
    const nb::gil_scoped_release unlocked;
    is_inside = count_entries(column, weights, entry_counts.get());
  }
  if (!is_inside) refuse("array: got an index outside its dictionary");
  return new_array(std::move(entry_counts), n);
}

// Microseconds since 1970, and the first value that is no time or -1.
nb::tuple bind_read_times(nb::tuple capsules, std::int64_t unit) {
  const Column column = column_of(capsules);
  if (column.list != ListLayer::none || column.has_dictionary) refuse("array: expected plain text");
  const auto n = static_cast<std::size_t>(column.length);
  std::unique_ptr<std::int64_t[]> times(new std::int64_t[n]);
  std::int64_t bad = -1;
  {
    const nb::gil_scoped_release unlocked;
    const Storage storage{Storage::Kind::time, 0, unit};
    std::vector<Status> status(n);
    read_integers(column.values, 0, column.length, storage, times.get(), status.data());
    const auto at = std::find_if(status.begin(), status.end(), [](Status one) {
      return one != Status::ok && one != Status::null;
    });
    if (at != status.end()) bad = at - status.begin();
  }
  return nb::make_tuple(new_array(std::move(times), n), bad);
}

nb::tuple bind_sum_numbers(const Input& values) {
  const auto* const number = vector_data<double>("values", values);
  NumberSums sums;
  {
    const nb::gil_scoped_release unlocked;
    sums = sum_numbers(number, static_cast<std::size_t>(length(values)));
  }
  if (!sums.is_finite) refuse("values: got an infinite number, expected finite ones or NaN");
  nb::list cells;
  for (const NumberSums::Cell& cell : sums.cells) {
    cells.append(nb::make_tuple(cell.exponent, cell.high, cell.low));
  }
  return nb::make_tuple(sums.count, sums.minimum, sums.maximum, cells);
}

Numbers bind_sorted_numbers(const Input& values) {
  const auto* const number = vector_data<double>("values", values);
  const auto n = static_cast<std::size_t>(length(values));
  std::unique_ptr<double[]> sorted(new double[n]);
  std::size_t n_sorted = 0;
  {
    const nb::gil_scoped_release unlocked;
    for (std::size_t i = 0; i < n; ++i) {
      sorted[n_sorted] = number[i] + 0.0;  // -0 becomes +0
      n_sorted += std::isnan(number[i]) ? 0 : 1;
    }
    sort_numbers(sorted.get(), n_sorted);
  }
  return new_array(std::move(sorted), n_sorted);
}

nb::ndarray<nb::numpy, std::uint64_t> bind_sorted_words(const Input& words) {
  const auto* const word = vector_data<std::uint64_t>("words", words);
  const auto n = static_cast<std::size_t>(length(words));
  std::unique_ptr<std::uint64_t[]> sorted(new std::uint64_t[n]);
  {
    const nb::gil_scoped_release unlocked;
    std::copy_n(word, n, sorted.get());
    sort_words(sorted.get(), n);
  }
  return new_array(std::move(sorted), n);
}

}  // namespace

void bind_columns(nb::module_& m) {
  m.def("read_numbers", &bind_read_numbers, "array"_a);
  m.def("entry_counts", &bind_entry_counts, "array"_a, "counts"_a = nb::none());
  m.def("read_times", &bind_read_times, "array"_a, "unit"_a);
  m.def("sum_numbers", &bind_sum_numbers, "values"_a);
  m.def("sorted_numbers", &bind_sorted_numbers, "values"_a);
  m.def("sorted_words", &bind_sorted_words, "words"_a);
}

}  // namespace widedeep
