// Rows between ranks, for Python: checked, then packed into bytes or taken from them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <string>

#include "bind_arrays.hpp"
#include "wire_rows.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

WireFormat format_of(const std::string& name) {
  if (name == "fp32") return WireFormat::float32;
  if (name == "bf16") return WireFormat::bfloat16;
  if (name == "scaled") return WireFormat::scaled;
  refuse("format: got " + name + ", expected fp32, bf16 or scaled");
}

template <class Matrix, class Bytes>
const std::int64_t* checked_rows(const Matrix& matrix, const Input& rows_n, const Bytes& bytes,
                                 WireFormat format) {
  const auto* const rows = vector_data<std::int64_t>("rows_n", rows_n);
  const std::int64_t n = length(rows_n);
  check_positions("rows_n", rows, n, length(matrix), "rows");
  const auto width = static_cast<std::int64_t>(matrix.shape(1));
  vector_data<std::uint8_t>("bytes", bytes, n * wire_bytes(format, width));
  return rows;
}

void bind_pack(const Input& matrix_RD, const Input& rows_n, const Output& bytes,
               const std::string& name, int threads) {
  auto* const out = static_cast<std::uint8_t*>(bytes.data());
  const std::int64_t n = length(rows_n);
  const WireFormat format = format_of(name);
  if (is_half(matrix_RD)) {
    if (format != WireFormat::bfloat16) refuse("format: got " + name + " for bfloat16 rows");
    check_matrix<std::uint16_t>("matrix_RD", matrix_RD);
    const std::int64_t* const rows = checked_rows(matrix_RD, rows_n, bytes, format);
    const nb::gil_scoped_release release;
    pack_half_rows(static_cast<const std::uint16_t*>(matrix_RD.data()), matrix_RD.stride(0),
                   static_cast<std::int64_t>(matrix_RD.shape(1)), rows, n, out, threads);
    return;
  }
  const ConstRows matrix = matrix_rows("matrix_RD", matrix_RD);
  const std::int64_t* const rows = checked_rows(matrix_RD, rows_n, bytes, format);
  const nb::gil_scoped_release release;
  pack_rows(matrix, rows, n, format, out, threads);
}

void bind_unpack(const Input& bytes, const Input& rows_n, const Output& matrix_RD,
                 const std::string& name, int threads) {
  const Rows matrix = matrix_rows("matrix_RD", matrix_RD);
  const WireFormat format = format_of(name);
  const std::int64_t* const rows = checked_rows(matrix_RD, rows_n, bytes, format);
  const std::int64_t n = length(rows_n);
  const nb::gil_scoped_release release;
  unpack_rows(static_cast<const std::uint8_t*>(bytes.data()), rows, n, format, matrix, threads);
}

}  // namespace

void bind_wire(nb::module_& m) {
  m.def("pack_rows", &bind_pack, "matrix_RD"_a, "rows_n"_a, "bytes"_a, "format"_a = "fp32",
        "threads"_a = 1);
  m.def("unpack_rows", &bind_unpack, "bytes"_a, "rows_n"_a, "matrix_RD"_a, "format"_a = "fp32",
        "threads"_a = 1);
}

}  // namespace widedeep
