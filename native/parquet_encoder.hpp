// Pages and footer of a Parquet file, uncompressed: dictionaries, and values in runs where one
// stands in many rows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace widedeep::parquet {

enum class Physical : std::int32_t { boolean = 0, int64 = 2, real32 = 4, real = 5, text = 6 };

struct Column {
  std::string name;
  Physical type = Physical::text;
  bool is_time = false;  // int64: microseconds since 1970
  bool is_list = false;
};

// Parquet's hybrid of runs and packed bits, of numbers of `width` bits.
class HybridEncoder {
 public:
  HybridEncoder(int width, std::string& out) : width_(width), out_(out) {}

  void put(std::uint32_t value) {
    pending_[n_pending_++] = value;
    if (n_pending_ == kGroup) flush_group();
  }
  void put(std::uint32_t value, std::uint64_t count);
  void finish();

 private:
  static constexpr int kGroup = 8, kMostGroups = 63;  // a header of one byte

  void flush_group();
  void end_literal();

  const int width_;
  std::string& out_;
  std::uint32_t pending_[kGroup] = {};
  int n_pending_ = 0;
  std::size_t literal_ = std::string::npos;  // where the header of the open packed run stands
  int n_groups_ = 0;
};

// Distinct values in the order of their first use, as they stand in a dictionary's page; somebody
// else keeps their bytes.
class Dictionary {
 public:
  std::uint32_t code(std::string_view plain);
  std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(values_.size()); }
  std::string_view operator[](std::uint32_t code) const { return values_[code]; }
  int width() const;  // of a code, in bits

 private:
  std::unordered_map<std::string_view, std::uint32_t> codes_;
  std::vector<std::string_view> values_;
};

// The levels and values of a column in a group of rows.
class ChunkWriter {
 public:
  static constexpr std::uint32_t kNull = 0xffffffff;

  ChunkWriter(const Column& column, const Dictionary& dictionary);

  void put(std::uint32_t code, std::uint64_t count);
  void put(std::uint32_t code) {
    if (code == kNull || type_ == Physical::boolean) return put(code, 1);
    ++n_present_;
    codes_.put(code);
  }
  // The values of a row's list; null: there is none.
  void put_list(const std::uint32_t* codes, std::uint32_t n);
  // Values that go without the dictionary.
  void put_plain(std::string_view bytes, std::uint64_t count);

  struct Pages {
    std::string bytes;
    std::int64_t values = 0;
    std::int64_t dictionary_bytes = 0;  // at the beginning; 0: values are plain
  };
  Pages finish();

 private:
  void flush_present();
  void put_value(std::uint32_t code, std::uint64_t count);

  const Physical type_;
  const bool is_list_;
  const Dictionary& dictionary_;
  std::uint64_t n_levels_ = 0;
  std::uint64_t n_present_ = 0;  // rows that are not null since the last definition level
  std::string repetitions_bytes_, definitions_bytes_, codes_bytes_, plain_bytes_;
  HybridEncoder repetitions_, definitions_, codes_;
  std::uint64_t n_bits_ = 0;  // of booleans
};

struct RowGroup {
  struct Chunk {
    std::int64_t offset = 0;
    std::int64_t bytes = 0;
    std::int64_t values = 0;
    std::int64_t dictionary_bytes = 0;
  };
  std::int64_t rows = 0;
  std::vector<Chunk> chunks;  // by column
};

// What follows the last chunk; `arrow_schema` is the text by which Arrow's readers know their
// types.
std::string footer(const std::vector<Column>& columns, const std::vector<RowGroup>& groups,
                   const std::string& arrow_schema);

}  // namespace widedeep::parquet
