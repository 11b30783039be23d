// Input columns as the transform sees them: scalars, with a dictionary or a list layer above them.
#pragma once

#include <cstdint>
#include <cstring>

namespace widedeep {

enum class Physical : std::uint8_t {
  null,
  boolean,
  int8,
  int16,
  int32,
  int64,
  uint8,
  uint16,
  uint32,
  uint64,
  float16,
  float32,
  float64,
  decimal,    // `width` bytes, value / 10^scale
  timestamp,  // int64 times factor / divisor = microseconds
  date32,     // int32 days; factor as for timestamps
  text32,
  text64,
  text_view,
  variant,  // values of a request, each with a type of its own
};

// One value of a request. A time is an integer of microseconds since 1970.
struct Variant {
  enum class Tag : std::uint8_t { null, boolean, integer, unsigned_integer, real, text, time };
  Tag tag;
  union {
    std::int64_t integer;
    double real;
    const char* text;
  };
  std::int64_t length;  // of the text
};

struct Scalars {
  Physical type = Physical::null;
  bool is_binary = false;                  // bytes, not UTF-8; only messages care
  const std::uint8_t* validity = nullptr;  // a bit a value; absent if none is null
  const void* data = nullptr;              // numbers, text offsets or text views
  const char* text = nullptr;              // bytes of text32 and text64
  const void* const* view_buffers = nullptr;
  std::int64_t offset = 0;  // of value 0 in validity and data
  std::int64_t length = 0;
  int width = 0;
  int scale = 0;
  std::int64_t factor = 1;
  std::int64_t divisor = 1;
};

enum class ListLayer : std::uint8_t { none, list32, list64, fixed, view32, view64 };

struct Column {
  std::int64_t length = 0;

  ListLayer list = ListLayer::none;
  const std::uint8_t* list_validity = nullptr;
  const void* list_offsets = nullptr;
  const void* list_sizes = nullptr;  // list views only
  std::int64_t list_offset = 0;
  std::int64_t list_size = 0;  // fixed-size lists only

  bool has_dictionary = false;
  Scalars indices;  // integers into `values`, if there is a dictionary
  Scalars values;

  // How many elements (rows, or items of lists) there are, and how many rows of `indices` or
  // values.
  const Scalars& elements() const noexcept { return has_dictionary ? indices : values; }
};

// Buffers from elsewhere need not be aligned.
template <class T>
T load_as(const void* data, std::int64_t i) noexcept {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + i * static_cast<std::int64_t>(sizeof(T)),
              sizeof(T));
  return value;
}

inline bool bit_at(const std::uint8_t* bits, std::int64_t i) noexcept {
  return (bits[i >> 3] >> (i & 7) & 1) != 0;
}

// The elements of one row.
struct ElementRange {
  std::int64_t begin;
  std::int64_t end;
};

inline bool row_is_null(const Column& column, std::int64_t row) noexcept {
  return column.list_validity != nullptr && !bit_at(column.list_validity, column.list_offset + row);
}

inline ElementRange elements_of(const Column& column, std::int64_t row) noexcept {
  const std::int64_t at = column.list_offset + row;
  switch (column.list) {
    case ListLayer::list32:
      return {load_as<std::int32_t>(column.list_offsets, at),
              load_as<std::int32_t>(column.list_offsets, at + 1)};
    case ListLayer::list64:
      return {load_as<std::int64_t>(column.list_offsets, at),
              load_as<std::int64_t>(column.list_offsets, at + 1)};
    case ListLayer::fixed:
      return {at * column.list_size, (at + 1) * column.list_size};
    case ListLayer::view32: {
      const std::int64_t begin = load_as<std::int32_t>(column.list_offsets, at);
      return {begin, begin + load_as<std::int32_t>(column.list_sizes, at)};
    }
    case ListLayer::view64: {
      const std::int64_t begin = load_as<std::int64_t>(column.list_offsets, at);
      return {begin, begin + load_as<std::int64_t>(column.list_sizes, at)};
    }
    default:
      return {row, row + 1};
  }
}

}  // namespace widedeep
