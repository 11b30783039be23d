// Record batches that arrive through the Arrow C data interface.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "arrow_abi.hpp"
#include "column.hpp"

namespace widedeep {

// A record batch that was moved out of its producer's structure and is released when this goes.
class ArrowBatch {
 public:
  // Takes the contents of `array` and marks it as moved, as the specification asks; `schema` stays
  // its owner's and is needed during the call only.
  ArrowBatch(const ArrowSchema& schema, ArrowArray& array);
  ~ArrowBatch();
  ArrowBatch(ArrowBatch&& other) noexcept;
  ArrowBatch(const ArrowBatch&) = delete;
  ArrowBatch& operator=(const ArrowBatch&) = delete;
  ArrowBatch& operator=(ArrowBatch&&) = delete;

  std::int64_t length() const noexcept { return array_.length; }
  const std::vector<Column>& columns() const noexcept { return columns_; }

 private:
  ArrowArray array_;
  std::vector<Column> columns_;
};

// Thrown for a type that no feature can be read from; what() is the type.
class UnsupportedArrowType : public std::runtime_error {
 public:
  UnsupportedArrowType(const std::string& type, std::int64_t column)
      : std::runtime_error(type), column(column) {}
  std::int64_t column;
};

// The column of `length` rows that starts `first_row` rows into an array.
Column make_column(const ArrowSchema& schema, const ArrowArray& array, std::int64_t first_row,
                   std::int64_t length);

}  // namespace widedeep
