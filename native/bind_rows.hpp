// Rows of a request, given as Python dicts, as columns that the transform reads.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>
#include <vector>

#include "column.hpp"
#include "input_error.hpp"
#include "transform.hpp"

namespace widedeep {

// Names of columns, as the keys of dicts too.
class ColumnNames {
 public:
  explicit ColumnNames(std::vector<std::string> names);

  const std::vector<std::string>& names() const noexcept { return names_; }
  nanobind::handle key(std::size_t column) const { return keys_[column]; }

 private:
  std::vector<std::string> names_;
  std::vector<nanobind::str> keys_;
};

class RowColumns {
 public:
  // One column a name; an absent key is null and counted. `plain` turns values of other types than
  // Python's own into those (NumPy scalars), times into a subclass of int, or returns
  // NotImplemented. A plan says how many values there may be; null: any number.
  RowColumns(nanobind::handle rows, const ColumnNames& columns, nanobind::callable plain,
             const Origin& origin, const transform::Plan* plan);

  std::int64_t length() const noexcept { return n_rows_; }
  const std::vector<Column>& columns() const noexcept { return columns_; }
  const std::vector<std::int64_t>& absent() const noexcept { return absent_; }

 private:
  struct Store {
    std::vector<Variant> values;
    std::vector<std::int64_t> text_starts;  // of each value, while the text may still move
    std::string text;
    std::vector<std::int64_t> ends;      // of each row's values
    std::vector<std::uint8_t> validity;  // a bit a row, for columns with lists
    bool has_lists = false;
  };

  void append_cell(nanobind::handle cell, Store& store);
  void add_values(std::int64_t n);
  void append_value(nanobind::handle value, Store& store, bool may_convert);
  void append_text(const char* data, std::int64_t length, Store& store);
  bool append_integer(nanobind::handle value, Store& store);
  [[noreturn]] void refuse(nanobind::handle value, const std::string& expected) const;
  void finish(Store& store);

  nanobind::callable plain_;
  const transform::Plan* plan_;
  std::int64_t n_values_ = 0;
  std::int64_t n_rows_ = 0;
  std::vector<Store> stores_;
  std::vector<Column> columns_;
  std::vector<std::int64_t> absent_;
  // Of the value being read, for messages.
  const Origin& origin_;
  const std::string* name_ = nullptr;
  std::int64_t row_ = 0;
};

}  // namespace widedeep
