// The count table for Python. Types and lengths are checked in widedeep.kernels.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "count_table.hpp"

namespace nb = nanobind;

namespace widedeep {
namespace {

template <class T>
using Array = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ReleaseGil = nb::call_guard<nb::gil_scoped_release>;

std::size_t bind_add(CountTable& table, const Array<const std::uint8_t>& data,
                     const Array<const std::int64_t>& offsets,
                     const std::optional<Array<const std::int64_t>>& counts, std::size_t first) {
  const CountedKeys keys = {data.data(), offsets.data(), counts ? counts->data() : nullptr,
                            offsets.shape(0) - 1};
  return table.add(keys, first);
}

void bind_partition(const CountTable& table, unsigned shift, unsigned bits,
                    const Array<std::uint32_t>& order, const Array<std::int64_t>& starts) {
  table.partition(shift, bits, order.data(), starts.data());
}

std::int64_t bind_key_bytes(const CountTable& table, const Array<const std::uint32_t>& order) {
  return table.key_bytes(order.data(), order.shape(0));
}

void bind_take(const CountTable& table, const Array<const std::uint32_t>& order,
               const Array<std::uint8_t>& data, const Array<std::int64_t>& offsets,
               const Array<std::int64_t>& counts) {
  table.take(order.data(), order.shape(0), data.data(), offsets.data(), counts.data());
}

}  // namespace

void bind_counts(nb::module_& m) {
  auto table = nb::class_<CountTable>(m, "CountTable");
  table.attr("MAX_KEY_BYTES") = CountTable::kMaxKeyBytes;
  table.def(nb::init<std::size_t>(), nb::arg("limit_bytes"))
      .def("add", &bind_add, nb::arg("data"), nb::arg("offsets"), nb::arg("counts").none(),
           nb::arg("first"), ReleaseGil())
      .def("partition", &bind_partition, nb::arg("shift"), nb::arg("bits"), nb::arg("order"),
           nb::arg("starts"), ReleaseGil())
      .def("key_bytes", &bind_key_bytes, nb::arg("order"), ReleaseGil())
      .def("take", &bind_take, nb::arg("order"), nb::arg("data"), nb::arg("offsets"),
           nb::arg("counts"), ReleaseGil())
      .def("clear", &CountTable::clear)
      .def("__len__", &CountTable::size)
      .def_prop_ro("nbytes", &CountTable::nbytes);
}

}  // namespace widedeep
