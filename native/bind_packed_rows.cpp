// Packed tables for Python: made from a matrix, and read by rows or by a scorer.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include "bind_arrays.hpp"
#include "bind_score.hpp"
#include "packed_rows.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

constexpr std::array<const char*, 3> kKinds = {"bf16", "int8", "int4"};

RowKind kind_named(const std::string& name) { return static_cast<RowKind>(named(kKinds, name)); }

std::int64_t bind_row_bytes(const std::string& kind, std::int64_t width) {
  return packed_row_bytes(kind_named(kind), width);
}

std::int64_t bind_pack(const Input& matrix_RD, const std::string& kind, const Output& bytes,
                       int threads) {
  const ConstRows matrix = matrix_rows("matrix_RD", matrix_RD);
  const RowKind packed = kind_named(kind);
  const std::int64_t n = length(matrix_RD);
  auto* const to =
      vector_data<std::uint8_t>("bytes", bytes, n * packed_row_bytes(packed, matrix.width));
  const nb::gil_scoped_release release;
  return pack_table(matrix, n, packed, to, threads);
}

void construct(BoundPackedRows* self, Array<std::uint8_t, 2> bytes, const std::string& kind,
               std::int64_t width) {
  const RowKind packed = kind_named(kind);
  const auto row_bytes = static_cast<std::int64_t>(bytes.shape(1));
  if (width < 0 || row_bytes != packed_row_bytes(packed, width)) {
    refuse("got rows of " + std::to_string(row_bytes) + " bytes, expected " +
           std::to_string(packed_row_bytes(packed, width)) + " for " + std::to_string(width) +
           " numbers in " + kind);
  }
  const PackedRows rows = {bytes.data(), row_bytes, width, packed};
  new (self) BoundPackedRows{std::move(bytes), rows};
}

void bind_unpack(const BoundPackedRows& table, const Input& ids_N, const Output& out_ND,
                 int threads) {
  const auto* const ids = vector_data<std::int64_t>("ids_N", ids_N);
  const std::int64_t n = length(ids_N);
  check_positions("ids_N", ids, n, static_cast<std::int64_t>(table.bytes.shape(0)), "rows");
  const Rows out = matrix_rows("out_ND", out_ND, n, table.rows.width);
  const nb::gil_scoped_release release;
  unpack_table(table.rows, ids, n, out, threads);
}

}  // namespace

void bind_packed_rows(nb::module_& m) {
  m.def("packed_row_bytes", &bind_row_bytes, "kind"_a, "width"_a);
  m.def("pack_table", &bind_pack, "matrix_RD"_a, "kind"_a, "bytes"_a, "threads"_a = 1);
  nb::class_<BoundPackedRows>(m, "PackedRows")
      .def("__init__", &construct, "bytes_RB"_a, "kind"_a, "width"_a)
      .def("unpack", &bind_unpack, "ids_N"_a, "out_ND"_a, "threads"_a = 1);
}

}  // namespace widedeep
