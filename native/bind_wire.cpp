// Rows between ranks, for Python: checked, then packed into bytes or taken from them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "bind_arrays.hpp"
#include "route_rows.hpp"
#include "wire_rows.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

constexpr std::array<const char*, 3> kFormats = {"fp32", "bf16", "scaled"};

WireFormat format_of(const std::string& name) {
  return static_cast<WireFormat>(named("format", kFormats, name));
}

const std::int64_t* checked_rows(const char* name, const std::optional<Input>& rows_n,
                                 std::int64_t size, std::int64_t n) {
  const auto* const rows = vector_data<std::int64_t>(name, rows_n, -1);
  if (rows != nullptr) {
    check_positions(name, rows, length(*rows_n), size, "rows");
  } else if (n > size) {
    refuse(std::string(name) + ": got none with " + std::to_string(n) +
           " rows, but the matrix has " + std::to_string(size));
  }
  return rows;
}

// The rows, and how many: all of the matrix in order where none are named.
template <class Matrix, class Bytes>
std::pair<WireRows, std::int64_t> checked_wire(const Matrix& matrix,
                                               const std::optional<Input>& rows_n,
                                               const Bytes& bytes, WireFormat format) {
  const std::int64_t n = rows_n ? length(*rows_n) : length(matrix);
  const auto width = static_cast<std::int64_t>(matrix.shape(1));
  const auto* const rows = checked_rows("rows_n", rows_n, length(matrix), n);
  const auto* const data = vector_data<std::uint8_t>("bytes", bytes, n * wire_bytes(format, width));
  return {{rows, format, const_cast<std::uint8_t*>(data)}, n};
}

HalfRows half_rows(const char* name, const Input& matrix, WireFormat format) {
  if (format != WireFormat::bfloat16) {
    refuse("format: got " + std::string(kFormats[static_cast<std::size_t>(format)]) +
           " for bfloat16 rows");
  }
  check_matrix<std::uint16_t>(name, matrix);
  return {static_cast<const std::uint16_t*>(matrix.data()), matrix.stride(0),
          static_cast<std::int64_t>(matrix.shape(1))};
}

void bind_pack(const Input& matrix_RD, const std::optional<Input>& rows_n, const Output& bytes,
               const std::string& name, int threads) {
  const WireFormat format = format_of(name);
  if (is_half(matrix_RD)) {
    const HalfRows matrix = half_rows("matrix_RD", matrix_RD, format);
    const auto [wire, n] = checked_wire(matrix_RD, rows_n, bytes, format);
    const nb::gil_scoped_release release;
    pack_half_rows(matrix, wire.rows, n, wire.bytes, threads);
    return;
  }
  const ConstRows matrix = matrix_rows("matrix_RD", matrix_RD);
  const auto [wire, n] = checked_wire(matrix_RD, rows_n, bytes, format);
  const nb::gil_scoped_release release;
  pack_rows(wire, matrix, n, threads);
}

void bind_unpack(const Input& bytes, const std::optional<Input>& rows_n, const Output& matrix_RD,
                 const std::string& name, int threads) {
  const Rows matrix = matrix_rows("matrix_RD", matrix_RD);
  const auto [wire, n] = checked_wire(matrix_RD, rows_n, bytes, format_of(name));
  const nb::gil_scoped_release release;
  unpack_rows(wire, matrix, n, threads);
}

void bind_move(const Input& from_RD, const Input& from_n, const Output& to_RD,
               const std::optional<Input>& to_n, const std::string& name, int threads) {
  const std::int64_t n = length(from_n);
  MovedRows moved{};
  moved.format = format_of(name);
  moved.from_rows = checked_rows("from_n", from_n, length(from_RD), n);
  moved.to_rows = checked_rows("to_n", to_n, length(to_RD), n);
  if (to_n) vector_data<std::int64_t>("to_n", *to_n, n);
  moved.to = matrix_rows("to_RD", to_RD, -1, static_cast<std::int64_t>(from_RD.shape(1)));
  if (is_half(from_RD)) {
    const HalfRows from = half_rows("from_RD", from_RD, moved.format);
    const nb::gil_scoped_release release;
    move_half_rows(from, moved, n, threads);
    return;
  }
  moved.from = matrix_rows("from_RD", from_RD);
  const nb::gil_scoped_release release;
  move_rows(moved, n, threads);
}

nb::tuple bind_route(const Input& ids_n, const Input& starts_R, const Input& owner,
                     const Input& place, const Input& rows_TW) {
  const std::int64_t runs = length(starts_R) - 1, n = length(ids_n);
  const auto* const ids = vector_data<std::int64_t>("ids_n", ids_n);
  const auto* const starts = vector_data<std::int64_t>("starts_R", starts_R);
  if (runs < 0 || starts[0] != 0 || starts[runs] != n ||
      !std::is_sorted(starts, starts + runs + 1)) {
    refuse("starts_R: expected ascending numbers from 0 to " + std::to_string(n));
  }
  if (n > 0 && *std::min_element(ids, ids + n) < 0) refuse("ids_n: expected numbers of at least 0");
  const std::int64_t block = std::int64_t{1} << kLayoutBits;
  const auto tables = length(rows_TW), ranks = static_cast<std::int64_t>(rows_TW.shape(1));
  check_matrix<std::int64_t>("rows_TW", rows_TW);
  check_matrix<std::int16_t>("owner", owner, tables, block);
  check_matrix<std::int16_t>("place", place, tables, block);
  const DealtTables dealt{static_cast<const std::int16_t*>(owner.data()),
                          static_cast<const std::int16_t*>(place.data()),
                          static_cast<const std::int64_t*>(rows_TW.data()), tables, ranks};
  std::unique_ptr<std::int64_t[]> counts(new std::int64_t[static_cast<std::size_t>(ranks * runs)]);
  std::unique_ptr<std::int64_t[]> order(new std::int64_t[static_cast<std::size_t>(n)]);
  std::unique_ptr<std::int64_t[]> places(new std::int64_t[static_cast<std::size_t>(n)]);
  {
    const nb::gil_scoped_release release;
    route_rows(dealt, {ids, starts, runs}, counts.get(), order.get(), places.get());
  }
  return nb::make_tuple(new_array(std::move(counts), ranks, runs), new_array(std::move(order), n),
                        new_array(std::move(places), n));
}

// Some of the runs of a vector, one after the other, each shifted by a number of its own.
nb::ndarray<nb::numpy, std::int64_t> bind_take_runs(const Input& values_n, const Input& counts_R,
                                                    const Input& shifts_R, const Input& taken_R) {
  const auto* const values = vector_data<std::int64_t>("values_n", values_n);
  const std::int64_t runs = length(counts_R);
  const auto* const counts = vector_data<std::int64_t>("counts_R", counts_R);
  const auto* const shifts = vector_data<std::int64_t>("shifts_R", shifts_R, runs);
  const auto* const taken = vector_data<bool>("taken_R", taken_R, runs);
  std::int64_t n = 0, n_taken = 0;
  for (std::int64_t run = 0; run < runs; ++run) {
    if (counts[run] < 0) refuse("counts_R: expected numbers of at least 0");
    n += counts[run];
    n_taken += taken[run] ? counts[run] : 0;
  }
  if (n != length(values_n)) {
    refuse("values_n: got length " + std::to_string(length(values_n)) + ", expected " +
           std::to_string(n));
  }
  std::unique_ptr<std::int64_t[]> out(new std::int64_t[static_cast<std::size_t>(n_taken)]);
  std::int64_t* at = out.get();
  std::int64_t first = 0;
  for (std::int64_t run = 0; run < runs; first += counts[run++]) {
    for (std::int64_t i = 0; taken[run] && i < counts[run]; ++i) {
      *at++ = values[first + i] + shifts[run];
    }
  }
  return new_array(std::move(out), n_taken);
}

}  // namespace

void bind_wire(nb::module_& m) {
  m.def("pack_rows", &bind_pack, "matrix_RD"_a, "rows_n"_a.none(), "bytes"_a, "format"_a = "fp32",
        "threads"_a = 1);
  m.def("unpack_rows", &bind_unpack, "bytes"_a, "rows_n"_a.none(), "matrix_RD"_a,
        "format"_a = "fp32", "threads"_a = 1);
  m.def("move_rows", &bind_move, "from_RD"_a, "from_n"_a, "to_RD"_a, "to_n"_a.none(),
        "format"_a = "fp32", "threads"_a = 1);
  m.def("route_rows", &bind_route, "ids_n"_a, "starts_R"_a, "owner"_a, "place"_a, "rows_TW"_a);
  m.def("take_runs", &bind_take_runs, "values_n"_a, "counts_R"_a, "shifts_R"_a, "taken_R"_a);
}

}  // namespace widedeep
