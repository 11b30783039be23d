// Reads runs of scalars as text, integers or numbers, whatever their type.
//
// A value that does not fit (text where a number is due) is marked, not thrown: it may be an entry
// of a dictionary that no row uses, or lie under a null list.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "column.hpp"
#include "vocabulary.hpp"

namespace widedeep {

enum class Status : std::uint8_t {
  ok,
  null,
  bad,
  wide,  // an unsigned integer above the largest int64, whose bits are kept
};

// How the values of a column were stored where the schema was fitted: a value that comes in another
// form is rounded to what the column could have held, so that one number has one place.
struct Storage {
  enum class Kind : std::uint8_t { any, float16, float32, float64, decimal, time };
  Kind kind = Kind::any;
  int scale = 0;          // digits of a decimal behind its point
  std::int64_t unit = 1;  // nanoseconds of one step of a time
  bool is_time() const noexcept { return kind == Kind::time; }
};

constexpr std::int64_t kNullText = -1;
constexpr std::int64_t kBadText = -2;

// Room for one integer as decimal text.
constexpr std::int64_t kDigits = 24;

// Values [begin, begin + n) as text: text and bytes as they are, integers as decimal text (written
// to `digits`, kDigits bytes a value), null and NaN with length kNullText, else kBadText.
void read_text(const Scalars& scalars, std::int64_t begin, std::int64_t n, char* digits,
               TextSpan* out);

// As integers: booleans as 0 and 1, whole numbers, decimal text, points in time in microseconds.
// Where `storage` is a time, numbers count its units and text is ISO 8601.
void read_integers(const Scalars& scalars, std::int64_t begin, std::int64_t n,
                   const Storage& storage, std::int64_t* out, Status* status);

// As float64; null and NaN become NaN. `status` is bad for text, ok for all else; but times are
// read as read_integers does.
void read_numbers(const Scalars& scalars, std::int64_t begin, std::int64_t n,
                  const Storage& storage, double* out, Status* status);

// The value as a column of this storage could have held it; infinite beyond its range.
double round_to(const Storage& storage, double value);

// Places in a dictionary, -1 for a null index. A place outside the dictionary is -2.
void read_indices(const Column& column, std::int64_t begin, std::int64_t n, std::int64_t* out);

// Adds to `counts`, of which there is one an entry of the dictionary, how often each occurs; an
// index counts `weights[i]`, or 1 without weights. False if an index lies outside the dictionary.
bool count_entries(const Column& column, const std::int64_t* weights, std::int64_t* counts);

// The table's entries at those places; what stands for a null index and for one outside.
struct IndexMarks {
  std::int64_t null;
  std::int64_t outside;
};
void look_up_indices(const Column& column, std::int64_t begin, std::int64_t n,
                     const std::int64_t* table, IndexMarks marks, std::int64_t* out);

// True if scalar i is not null (NaN is not null here).
bool is_valid(const Scalars& scalars, std::int64_t i);

// The valid scalar i if it is a boolean.
std::optional<bool> boolean_of(const Scalars& scalars, std::int64_t i);

// The shortest text that reads back as the same number.
std::string shortest_text(double value);

// Scalar i as a message shows it: "'n/a' (str)", "1.5 (float)", "None".
std::string describe(const Scalars& scalars, std::int64_t i);

// The element of a column (through its dictionary), likewise.
std::string describe_element(const Column& column, std::int64_t element);

// Decimal text of an integer, at most kDigits bytes; returns its length.
std::int64_t write_decimal(std::int64_t value, bool is_unsigned, char* out);

}  // namespace widedeep
