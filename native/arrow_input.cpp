#include "arrow_input.hpp"

#include <cstdlib>
#include <cstring>
#include <string_view>

namespace widedeep {
namespace {

constexpr std::int64_t kMicrosecondsPerDay = 86'400'000'000;

struct TypeName {
  const char* prefix;
  const char* name;
};

// Formats that are known and refused, for messages.
constexpr TypeName kRefused[] = {
    {"+s", "struct"},
    {"+m", "map"},
    {"+ud", "dense union"},
    {"+us", "sparse union"},
    {"+r", "run-end encoded"},
    {"w:", "fixed-size binary"},
    {"tt", "time"},
    {"tD", "duration"},
    {"ti", "interval"},
};

[[noreturn]] void refuse(const char* format) {
  for (const auto& [prefix, name] : kRefused) {
    if (std::strncmp(format, prefix, std::strlen(prefix)) == 0) {
      throw UnsupportedArrowType(name, -1);
    }
  }
  throw UnsupportedArrowType(std::string("with format '") + format + "'", -1);
}

[[noreturn]] void refuse_nested(const char* what) { throw UnsupportedArrowType(what, -1); }

Physical plain_type(char format) {
  switch (format) {
    case 'n':
      return Physical::null;
    case 'b':
      return Physical::boolean;
    case 'c':
      return Physical::int8;
    case 'C':
      return Physical::uint8;
    case 's':
      return Physical::int16;
    case 'S':
      return Physical::uint16;
    case 'i':
      return Physical::int32;
    case 'I':
      return Physical::uint32;
    case 'l':
      return Physical::int64;
    case 'L':
      return Physical::uint64;
    case 'e':
      return Physical::float16;
    case 'f':
      return Physical::float32;
    case 'g':
      return Physical::float64;
    case 'u':
    case 'z':
      return Physical::text32;
    case 'U':
    case 'Z':
      return Physical::text64;
    default:
      refuse(std::string(1, format).c_str());
  }
}

// "d:precision,scale" or "d:precision,scale,bits".
void set_decimal(const char* format, Scalars& scalars) {
  char* end = nullptr;
  std::strtol(format + 2, &end, 10);
  if (*end != ',') refuse(format);
  scalars.scale = static_cast<int>(std::strtol(end + 1, &end, 10));
  const long bits = *end == ',' ? std::strtol(end + 1, &end, 10) : 128;
  if (bits != 32 && bits != 64 && bits != 128 && bits != 256) refuse(format);
  scalars.type = Physical::decimal;
  scalars.width = static_cast<int>(bits / 8);
}

void set_time(const char* format, Scalars& scalars) {
  const std::string_view text(format);
  scalars.type = Physical::timestamp;
  if (text == "tdD") {
    scalars.type = Physical::date32;
    scalars.factor = kMicrosecondsPerDay;
  } else if (text == "tdm" || text.starts_with("tsm")) {
    scalars.factor = 1'000;
  } else if (text.starts_with("tss")) {
    scalars.factor = 1'000'000;
  } else if (text.starts_with("tsn")) {
    scalars.divisor = 1'000;
  } else if (!text.starts_with("tsu")) {
    refuse(format);
  }
}

void set_type(const char* format, Scalars& scalars) {
  if (std::strcmp(format, "vu") == 0 || std::strcmp(format, "vz") == 0) {
    scalars.type = Physical::text_view;
  } else if (std::strncmp(format, "d:", 2) == 0) {
    set_decimal(format, scalars);
  } else if (format[0] == 't') {
    set_time(format, scalars);
  } else if (format[0] != '\0' && format[1] == '\0') {
    scalars.type = plain_type(format[0]);
  } else {
    refuse(format);
  }
  scalars.is_binary = std::strchr("zZ", format[0]) != nullptr || std::strcmp(format, "vz") == 0;
}

const std::uint8_t* validity_of(const ArrowArray& array) {
  // A null count of -1 means that nobody has counted.
  if (array.null_count == 0 || array.n_buffers == 0) return nullptr;
  return static_cast<const std::uint8_t*>(array.buffers[0]);
}

Scalars make_scalars(const ArrowSchema& schema, const ArrowArray& array, std::int64_t first,
                     std::int64_t length) {
  Scalars scalars;
  set_type(schema.format, scalars);
  scalars.offset = array.offset + first;
  scalars.length = length;
  if (scalars.type == Physical::null) return scalars;
  scalars.validity = validity_of(array);
  scalars.data = array.buffers[1];
  if (scalars.type == Physical::text32 || scalars.type == Physical::text64) {
    scalars.text = static_cast<const char*>(array.buffers[2]);
  } else if (scalars.type == Physical::text_view) {
    scalars.view_buffers = array.buffers + 2;
  }
  return scalars;
}

bool is_index(Physical type) { return type >= Physical::int8 && type <= Physical::uint64; }

void set_elements(const ArrowSchema& schema, const ArrowArray& array, std::int64_t first,
                  std::int64_t length, Column& column) {
  if (schema.dictionary == nullptr) {
    column.values = make_scalars(schema, array, first, length);
    return;
  }
  if (schema.dictionary->format[0] == '+') refuse_nested("dictionary of lists");
  if (schema.dictionary->dictionary != nullptr) refuse_nested("dictionary of dictionaries");
  column.has_dictionary = true;
  column.indices = make_scalars(schema, array, first, length);
  if (!is_index(column.indices.type)) refuse_nested("dictionary with an index that is no integer");
  column.values = make_scalars(*schema.dictionary, *array.dictionary, 0, array.dictionary->length);
}

ListLayer list_layer(const char* format) {
  const std::string_view text(format);
  if (text == "+l") return ListLayer::list32;
  if (text == "+L") return ListLayer::list64;
  if (text == "+vl") return ListLayer::view32;
  if (text == "+vL") return ListLayer::view64;
  if (text.starts_with("+w:")) return ListLayer::fixed;
  refuse(format);
}

}  // namespace

Column make_column(const ArrowSchema& schema, const ArrowArray& array, std::int64_t first_row,
                   std::int64_t length) {
  Column column;
  column.length = length;
  if (schema.format[0] != '+') {
    set_elements(schema, array, first_row, length, column);
    return column;
  }
  column.list = list_layer(schema.format);
  if (schema.children[0]->format[0] == '+') refuse_nested("list of lists or structs");
  column.list_validity = validity_of(array);
  column.list_offset = array.offset + first_row;
  if (column.list == ListLayer::fixed) {
    column.list_size = std::strtol(schema.format + 3, nullptr, 10);
  } else {
    column.list_offsets = array.buffers[1];
  }
  if (column.list == ListLayer::view32 || column.list == ListLayer::view64) {
    column.list_sizes = array.buffers[2];
  }
  set_elements(*schema.children[0], *array.children[0], 0, array.children[0]->length, column);
  return column;
}

ArrowBatch::ArrowBatch(const ArrowSchema& schema, ArrowArray& array) : array_(array) {
  array.release = nullptr;
  try {
    if (std::strcmp(schema.format, "+s") != 0) {
      throw UnsupportedArrowType("other than a record batch", -1);
    }
    columns_.reserve(static_cast<std::size_t>(schema.n_children));
    for (std::int64_t i = 0; i < schema.n_children; ++i) {
      try {
        columns_.push_back(
            make_column(*schema.children[i], *array_.children[i], array_.offset, array_.length));
      } catch (const UnsupportedArrowType& error) {
        throw UnsupportedArrowType(error.what(), i);
      }
    }
  } catch (...) {
    array_.release(&array_);
    throw;
  }
}

ArrowBatch::~ArrowBatch() {
  if (array_.release != nullptr) array_.release(&array_);
}

ArrowBatch::ArrowBatch(ArrowBatch&& other) noexcept
    : array_(other.array_), columns_(std::move(other.columns_)) {
  other.array_.release = nullptr;
}

}  // namespace widedeep
