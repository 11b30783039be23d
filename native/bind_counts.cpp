// The count table for Python.
#include "bind_counts.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

void check_keys(const CountedKeys& keys, std::int64_t n_bytes) {
  std::int64_t longest = 0, longest_key = 0;
  bool ascends = keys.n == 0 || (keys.offsets[0] >= 0 && keys.offsets[keys.n] <= n_bytes);
  for (std::size_t i = 0; i < keys.n; ++i) {
    const std::int64_t size = keys.offsets[i + 1] - keys.offsets[i];
    ascends = ascends && size >= 0;
    if (size > longest) {
      longest = size;
      longest_key = static_cast<std::int64_t>(i);
    }
  }
  if (!ascends) refuse("offsets: not ascending within [0, " + std::to_string(n_bytes) + "]");
  if (longest > static_cast<std::int64_t>(CountTable::kMaxKeyBytes)) {
    refuse("offsets: key " + std::to_string(longest_key) + " has " + std::to_string(longest) +
           " bytes, expected at most " + std::to_string(CountTable::kMaxKeyBytes));
  }
}

std::size_t bind_add(CountTable& table, const Input& data, const Input& offsets,
                     const std::optional<Input>& counts, std::int64_t first) {
  const CountedKeys keys = counted_keys(data, offsets, counts);
  if (first < 0 || first > static_cast<std::int64_t>(keys.n)) {
    refuse("first: got " + std::to_string(first) + ", expected it in [0, " +
           std::to_string(keys.n) + "]");
  }
  const nb::gil_scoped_release release;
  return table.add(keys, static_cast<std::size_t>(first));
}

nb::tuple bind_partitions(const CountTable& table, std::int64_t shift, std::int64_t bits) {
  if (bits < 0 || bits > 16 || shift < 0 || shift >= 64 || shift + bits > 64) {
    refuse("bits: got " + std::to_string(bits) + " below " + std::to_string(shift) +
           ", expected them within 64, at most 16");
  }
  const std::size_t n_starts = (std::size_t{1} << bits) + 1;
  std::unique_ptr<std::uint32_t[]> order(new std::uint32_t[table.size()]);
  std::unique_ptr<std::int64_t[]> starts(new std::int64_t[n_starts]());
  {
    const nb::gil_scoped_release release;
    table.partition(static_cast<unsigned>(shift), static_cast<unsigned>(bits), order.get(),
                    starts.get());
  }
  return nb::make_tuple(new_array(std::move(order), table.size()),
                        new_array(std::move(starts), n_starts));
}

nb::tuple taken(const CountTable& table, const std::uint32_t* keys, std::size_t n_keys) {
  const auto n_bytes = static_cast<std::size_t>(table.key_bytes(keys, n_keys));
  std::unique_ptr<std::uint8_t[]> data(new std::uint8_t[n_bytes]);
  std::unique_ptr<std::int64_t[]> offsets(new std::int64_t[n_keys + 1]);
  std::unique_ptr<std::int64_t[]> counts(new std::int64_t[n_keys]);
  {
    const nb::gil_scoped_release release;
    table.take(keys, n_keys, data.get(), offsets.get(), counts.get());
  }
  return nb::make_tuple(new_array(std::move(data), n_bytes),
                        new_array(std::move(offsets), n_keys + 1),
                        new_array(std::move(counts), n_keys));
}

nb::tuple bind_take(const CountTable& table, const Input& order) {
  const auto* const keys = vector_data<std::uint32_t>("order", order);
  return taken(table, keys, static_cast<std::size_t>(length(order)));
}

nb::tuple bind_ranked(const CountTable& table, std::int64_t min_count,
                      std::optional<std::int64_t> max_size, std::int64_t tail_size,
                      std::optional<std::int64_t> tail_bytes) {
  for (const auto& [name, got] :
       {std::pair{"max_size", max_size.value_or(0)}, std::pair{"tail_size", tail_size},
        std::pair{"tail_bytes", tail_bytes.value_or(0)}}) {
    if (got < 0)
      refuse(std::string(name) + ": got " + std::to_string(got) + ", expected 0 or more");
  }
  std::vector<std::uint32_t> keys;
  {
    const nb::gil_scoped_release release;
    keys = table.ranked({min_count, max_size.value_or(-1), tail_size, tail_bytes.value_or(-1)});
  }
  return taken(table, keys.data(), keys.size());
}

}  // namespace

CountedKeys counted_keys(const Input& data, const Input& offsets,
                         const std::optional<Input>& counts) {
  const auto* const offset = vector_data<std::int64_t>("offsets", offsets);
  const std::int64_t n_keys = length(offsets) - 1;
  if (n_keys < 0) refuse("offsets: got none, expected at least one");
  const CountedKeys keys = {vector_data<std::uint8_t>("data", data), offset,
                            vector_data<std::int64_t>("counts", counts, n_keys),
                            static_cast<std::size_t>(n_keys)};
  const nb::gil_scoped_release release;
  check_keys(keys, length(data));
  for (std::int64_t i = 0; keys.counts != nullptr && i < n_keys; ++i) {
    if (keys.counts[i] < 0) {
      refuse("counts: got " + std::to_string(keys.counts[i]) + ", expected at least 0");
    }
  }
  return keys;
}

void bind_counts(nb::module_& m) {
  nb::class_<CountTable>(m, "CountTable")
      .def(
          "__init__",
          [](CountTable* self, std::int64_t limit_bytes) {
            if (limit_bytes < 1) {
              refuse("limit_bytes: got " + std::to_string(limit_bytes) + ", expected at least 1");
            }
            new (self) CountTable(static_cast<std::size_t>(limit_bytes));
          },
          "limit_bytes"_a)
      .def("add", &bind_add, "data"_a, "offsets"_a, "counts"_a = nb::none(), "first"_a = 0)
      .def("partitions", &bind_partitions, "shift"_a, "bits"_a)
      .def("take", &bind_take, "order"_a)
      .def("ranked", &bind_ranked, "min_count"_a, "max_size"_a.none(), "tail_size"_a,
           "tail_bytes"_a = nb::none())
      .def("clear", &CountTable::clear)
      .def("__len__", &CountTable::size)
      .def_prop_ro("nbytes", &CountTable::nbytes);
}

}  // namespace widedeep
