// Rows of CSV text for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind_arrays.hpp"
#include "csv_rows.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

std::string_view view_of(const nb::bytes& text) { return {text.c_str(), text.size()}; }

nb::tuple bind_csv_end(const nb::bytes& text) {
  CsvEnd end;
  {
    const nb::gil_scoped_release release;
    end = csv_end(view_of(text));
  }
  return nb::make_tuple(end.end, end.lines);
}

void init_csv_rows(CsvRows* self, std::size_t width, const std::vector<std::size_t>& fields,
                   const std::vector<bool>& are_numbers, std::size_t full_bytes,
                   std::vector<std::string> null_values) {
  if (are_numbers.size() != fields.size()) refuse("are_numbers: expected one per field");
  for (const std::size_t field : fields) {
    if (field >= width) refuse("fields: expected each below " + std::to_string(width));
  }
  new (self) CsvRows(width, fields, are_numbers, full_bytes, std::move(null_values));
}

std::int64_t bind_add(CsvRows& self, const nb::bytes& text, std::size_t start,
                      std::int64_t most_rows) {
  if (start > text.size()) refuse("start: beyond the text");
  const nb::gil_scoped_release release;
  return self.add(view_of(text), start, most_rows);
}

// By column: validity or None, then numbers (None where not plain), or codes, offsets and bytes.
nb::list bind_take(CsvRows& self) {
  nb::list columns;
  for (CsvColumn& column : self.take()) {
    const nb::object validity =
        column.n_missing > 0 ? to_array(std::move(column.validity)) : nb::none();
    if (column.is_number) {
      columns.append(nb::make_tuple(
          validity, column.is_plain ? to_array(std::move(column.numbers)) : nb::none()));
      continue;
    }
    columns.append(nb::make_tuple(validity, to_array(std::move(column.codes)),
                                  to_array(std::move(column.offsets)),
                                  to_array(std::move(column.bytes))));
  }
  return columns;
}

}  // namespace

void bind_csv(nb::module_& m) {
  m.def("csv_end", &bind_csv_end, "text"_a);
  nb::class_<CsvRows>(m, "CsvRows")
      .def("__init__", &init_csv_rows, "width"_a, "fields"_a, "are_numbers"_a, "full_bytes"_a,
           "null_values"_a)
      .def("add", &bind_add, "text"_a, "start"_a, "most_rows"_a)
      .def_prop_ro("n_rows", &CsvRows::n_rows)
      .def_prop_ro("is_full", &CsvRows::is_full)
      .def("take", &bind_take);
}

}  // namespace widedeep
