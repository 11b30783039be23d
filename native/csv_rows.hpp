// Rows of CSV text as columns: numbers as doubles, everything else as texts by dictionary.
//
// Only regular text is read: what is ragged, damaged or ambiguous is refused with the place of its
// record, and without a reason. Who called finds the reason in that record.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace widedeep {

struct CsvEnd {
  std::size_t end;     // Behind the last line feed outside quotes; 0 if there is none
  std::int64_t lines;  // Line feeds before it
};

CsvEnd csv_end(std::string_view text);

// A field without its quotes; a missing one has no data.
struct CsvField {
  const char* data;
  std::size_t length;
};

// What a column's rows hold, each at most once per row.
struct CsvColumn {
  bool is_number = false;
  std::vector<std::uint8_t> validity;  // A bit a row
  std::int64_t n_missing = 0;

  // Numbers: one a row. Not plain if one is written as none that a double surely stands for: a sign
  // in front, spaces, words, whole numbers from 2^53 on, what is rounded to zero.
  std::vector<double> numbers;
  bool is_plain = true;

  // Texts: the place of each row's in the dictionary, whose texts stand in order of appearance.
  std::vector<std::uint16_t> codes;
  std::vector<std::int32_t> offsets;
  std::vector<std::uint8_t> bytes;
};

class CsvRows {
 public:
  static constexpr std::int64_t kMostRows = 1 << 16;  // So that a code has two bytes

  // `fields[i]` is the position of column i in a record of `width` fields. When the texts of a
  // column take `full_bytes`, no more rows are read. Fields that are one of `null_values`, in
  // quotes or without, are missing.
  CsvRows(std::size_t width, const std::vector<std::size_t>& fields,
          const std::vector<bool>& are_numbers, std::size_t full_bytes,
          std::vector<std::string> null_values);
  ~CsvRows();
  CsvRows(const CsvRows&) = delete;
  CsvRows& operator=(const CsvRows&) = delete;

  // Reads records from `start` on, until there are `most_rows`, texts are full or the text ends.
  // Returns where the next record starts, or -1 less the start of one that is not regular.
  std::int64_t add(std::string_view text, std::size_t start, std::int64_t most_rows);

  std::int64_t n_rows() const { return n_rows_; }
  bool is_full() const;
  // The columns of all rows; none are left.
  std::vector<CsvColumn> take();

 private:
  class Builder;

  bool read_record(const char*& at, const char* end, std::size_t row);
  const char* read_quoted(const char* at, const char* end, CsvField& field);
  bool is_null(const CsvField& field) const;

  std::vector<int> column_of_;  // By position in a record; -1 where it is not read
  std::vector<std::unique_ptr<Builder>> columns_;
  std::vector<CsvField> fields_;  // By column, then by row of the batch
  CsvField unread_{nullptr, 0};   // Stands for fields of columns that are not read
  std::vector<std::unique_ptr<char[]>> unescaped_;
  std::size_t full_bytes_;
  std::vector<std::string> null_values_;
  std::uint64_t null_lengths_ =
      0;  // A bit per length that one of them has; all from 63 on share one
  std::int64_t n_rows_ = 0;
};

}  // namespace widedeep
