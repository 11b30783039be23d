// What is wrong with the input, told so that the binding can raise the matching Python class.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace widedeep {

class InputError : public std::runtime_error {
 public:
  // FeatureError, DataError, SchemaError, LimitError.
  enum class Kind { feature, data, schema, limit };

  InputError(Kind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  Kind kind() const noexcept { return kind_; }

 private:
  Kind kind_;
};

// Where rows come from, for messages.
struct Origin {
  std::string name;  // a file, or empty
  std::int64_t first_row = 0;
};

// "row 17 of train.parquet", or "row 17".
std::string row_text(const Origin& origin, std::int64_t row);

// "column 'age' of train.parquet", or "column 'age'".
std::string column_text(const Origin& origin, const std::string& column);

// "12,345,678".
std::string grouped(std::int64_t n);

// 'text' in single quotes as Python shows it, cut if long.
std::string quoted(const char* text, std::int64_t length);
std::string quoted(const std::string& text);

}  // namespace widedeep
