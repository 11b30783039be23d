// Chunks of answered requests (impression_queue.hpp) as the column chunks of a Parquet file.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "parquet_encoder.hpp"

namespace widedeep {

// Where the values of a column of the log come from.
enum class LogSource : std::uint8_t {
  request_id,
  user_id,
  item_id,
  position,
  time,
  constant,
  score,
  query,
  item
};

struct LogFileColumn {
  parquet::Column column;
  LogSource source = LogSource::query;
  std::string constant;
};

// Columns of one source stand in the order of their values in the chunks.
class ImpressionFile {
 public:
  ImpressionFile(std::vector<LogFileColumn> columns, std::string arrow_schema);

  // Adds a chunk's rows to the open group of rows. False, and nothing is added, if it is no chunk.
  bool add(std::string chunk);
  std::int64_t rows() const noexcept { return static_cast<std::int64_t>(item_of_row_.size()); }
  // Whether the open group should be written before another chunk is added to it. Lists stand in
  // each of their request's rows, so that few requests may have many values.
  bool is_full() const noexcept { return rows() >= kGroupRows || list_values_ >= kGroupListValues; }
  // The open group's values of a column, which stand at an offset of the file.
  std::string column_chunk(std::size_t column, std::int64_t offset);
  // Begins a new group when all columns of this one are written.
  void end_group();
  std::string footer() const;

 private:
  static constexpr std::int64_t kGroupRows = 1 << 18, kGroupListValues = 1 << 23;

  // A value, or a list of values, of one request or item.
  struct Cell {
    std::uint32_t begin = 0;   // a value's code; a list's first
    std::uint32_t length = 0;  // of a list; kNull: there is none
  };
  struct Store {
    parquet::Dictionary dictionary;
    std::vector<std::uint32_t> list_codes;
    std::vector<Cell> cells;  // by request, or by item of the group
  };
  class Reader;

  bool check(std::string_view chunk) const;
  void add_item(std::string_view record);
  void add_request(Reader& record);
  void read_cell(Reader& record, std::size_t column);
  void put_cell(const Store& store, const Cell& cell, bool is_list, std::uint64_t count,
                parquet::ChunkWriter& writer) const;
  std::string_view integer(std::uint64_t value);

  const std::vector<LogFileColumn> columns_;
  const std::string arrow_schema_;
  std::vector<std::size_t> of_source_[9];
  std::vector<parquet::RowGroup> groups_;
  parquet::RowGroup group_;
  // Of the open group:
  std::deque<std::string> bytes_;  // what the dictionaries' values are part of
  std::vector<Store> stores_;
  std::unordered_map<std::string_view, std::uint32_t> item_numbers_;
  std::vector<std::uint32_t> chunk_items_;   // the group's number of each item of the chunk
  std::vector<std::uint32_t> item_of_row_;   // the group's number
  std::vector<std::uint32_t> request_rows_;  // of each request
  std::string scores_;
  std::int64_t list_values_ = 0;
};

}  // namespace widedeep
