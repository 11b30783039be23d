#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"
#include "column_values.hpp"
#include "parse_time.hpp"
#include "transform_crosses.hpp"

namespace {

using namespace widedeep;
using widedeep::transform::Cells;
using widedeep::transform::CrossFeature;
using widedeep::transform::CrossInput;
using widedeep::transform::PartCells;
using widedeep::transform::Scratch;

std::optional<std::int64_t> time_of(const std::string& text) {
  // In a block of its own size: a sanitizer sees a byte too many.
  std::vector<char> bytes(text.begin(), text.end());
  return parse_time({bytes.data(), static_cast<std::int64_t>(bytes.size())});
}

Variant integer(std::int64_t value) {
  Variant variant{};
  variant.tag = Variant::Tag::integer;
  variant.integer = value;
  return variant;
}

Variant real(double value) {
  Variant variant{};
  variant.tag = Variant::Tag::real;
  variant.real = value;
  return variant;
}

double read(const Variant& value, const Storage& storage, Status expected = Status::ok) {
  Scalars scalars;
  scalars.type = Physical::variant;
  scalars.data = &value;
  scalars.length = 1;
  double number = 0;
  Status status = Status::ok;
  read_numbers(scalars, 0, 1, storage, &number, &status);
  CHECK(status == expected);
  return number;
}

double decimal(std::vector<std::uint64_t> limbs, int scale) {
  Scalars scalars;
  scalars.type = Physical::decimal;
  scalars.data = limbs.data();
  scalars.width = static_cast<int>(8 * limbs.size());
  scalars.scale = scale;
  scalars.length = 1;
  double number = 0;
  Status status = Status::ok;
  read_numbers(scalars, 0, 1, {}, &number, &status);
  CHECK(status == Status::ok);
  return number;
}

TEST(times_are_read_as_iso_8601_writes_them) {
  CHECK(time_of("1970-01-01") == 0);
  CHECK(time_of("1969-12-31T23:59:59.999999Z") == -1);
  CHECK(time_of("2024-02-29T13:05:59+00:00") == 1'709'211'959'000'000);
  CHECK(time_of("2024-02-29 14:35:59.25+0130") == 1'709'211'959'250'000);
  CHECK(time_of("2024-02-29T05:05:59.1234567-08") == 1'709'211'959'123'456);
  CHECK(time_of("0001-01-01T00:00") == -62'135'596'800'000'000);
  for (const char* text : {"",
                           "2",
                           "2024",
                           "2024-02",
                           "2024-02-30",
                           "2023-02-29",
                           "2024-13-01",
                           "2024-02-29T",
                           "2024-02-29T1",
                           "2024-02-29T24:00",
                           "2024-02-29T10:60",
                           "2024-02-29T10:00:60",
                           "2024-02-29T10:00:00.",
                           "2024-02-29T10:00+",
                           "2024-02-29T10:00+2",
                           "2024-02-29T10:00+24:00",
                           "2024-02-29T10:00Zz",
                           "2024-02-29Z",
                           "+024-02-29",
                           "2024-2-29",
                           "2024-02--9"}) {
    CHECK(!time_of(text));
  }
}

TEST(numbers_are_rounded_to_the_storage_of_their_column) {
  const Storage single{Storage::Kind::float32, 0, 1};
  const Storage half{Storage::Kind::float16, 0, 1};
  const Storage cents{Storage::Kind::decimal, 2, 1};
  CHECK(read(real(0.1), single) == static_cast<double>(0.1F));
  CHECK(read(real(0.1), {}) == 0.1);
  CHECK(std::isinf(read(real(1e39), single)));
  CHECK(read(real(1e-46), single) == 0);
  CHECK(read(real(1e-45), single) == static_cast<double>(std::numeric_limits<float>::denorm_min()));
  CHECK(std::isnan(read(real(std::nan("")), single)));
  CHECK(read(integer(16'777'217), single) == 16'777'216);
  CHECK(read(real(0.1), half) == 0.0999755859375);
  CHECK(read(real(65'519.9), half) == 65'504);
  CHECK(std::isinf(read(real(-65'520), half)));
  CHECK(read(real(6e-8), half) == std::ldexp(1.0, -24));
  CHECK(read(real(2e-8), half) == 0);
  CHECK(read(integer(2049), half) == 2048 && read(integer(2051), half) == 2052);
  CHECK(read(real(0.0651), cents) == 0.07 && read(real(1.1), cents) == 1.1);
  CHECK(read(real(1e300), cents) == 1e300);
}

TEST(numbers_of_times_count_the_units_of_their_column) {
  const auto unit = [](std::int64_t nanoseconds) {
    return Storage{Storage::Kind::time, 0, nanoseconds};
  };
  CHECK(read(integer(7), unit(1'000'000'000)) == 7e6);
  CHECK(read(integer(-7), unit(1'000'000)) == -7e3);
  CHECK(read(integer(-1), unit(1)) == -1);
  CHECK(read(integer(1999), unit(1)) == 1);
  CHECK(read(integer(2), unit(86'400'000'000'000)) == 172'800e6);
  CHECK(read(real(-0.5), unit(1'000'000'000)) == -1e6);
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  read(integer(huge), unit(1'000'000'000), Status::bad);
  read(real(1e300), unit(1), Status::bad);
  CHECK(std::isnan(read(Variant{}, unit(1))));
}

TEST(decimals_are_the_nearest_doubles) {
  const std::uint64_t ones = ~std::uint64_t{0};
  CHECK(decimal({7, 0}, 2) == 0.07);
  CHECK(decimal({static_cast<std::uint64_t>(-7), ones}, 2) == -0.07);
  CHECK(decimal({12'345'678'901'234'567'890ULL, 0}, 4) == 1234567890123456.7890);
  CHECK(decimal({0, 1}, 0) == 18446744073709551616.0);
  CHECK(decimal({0, 0, 0, 1}, 10) ==
        6277101735386680763835789423207666416102355444464034512896e-10);
  CHECK(decimal({0, 0, 0, ones}, 0) ==
        -6277101735386680763835789423207666416102355444464034512896.0);
  CHECK(decimal({5, 0}, -3) == 5000);
}

TEST(combinations_beyond_the_limit_are_refused_and_those_below_come_in_order) {
  PartCells left;
  PartCells right;
  left.ids.ids = {2, 3, 1, 4};
  left.ids.ends = {2, 3, 4};  // the second row is missing
  right.ids.ids = {2, 3, 4, 2, 2};
  right.ids.ends = {3, 4, 5};
  for (PartCells* part : {&left, &right}) part->keys = part->ids;
  left.keys.ids = {2, 3, 4};
  left.keys.ends = {2, 2, 3};
  const std::int64_t tuples[] = {2, 2, 3, 4};
  for (const bool hashed : {false, true}) {
    CrossFeature cross;
    cross.name = "pair";
    cross.buckets = 1000;
    cross.max_combinations = 6;
    if (!hashed)
      cross.vocabulary =
          std::make_unique<TupleVocabulary>(tuples, 2, std::vector<std::int64_t>{5, 5});
    const Origin origin{"", 0};
    Scratch scratch;
    Cells out;
    const std::vector<CrossInput> inputs = {{&left}, {&right}};
    cross.encode(inputs, 3, {origin, 0}, scratch, out);
    CHECK(out.ends == (std::vector<std::int64_t>{6, 6, 7}));
    CHECK(cross.count(inputs, 3) == 7);
    if (!hashed) CHECK(out.ids == (std::vector<std::int64_t>{2, 0, 0, 0, 0, 3, 0}));
    // The same rows, chosen one by one, with the left part's first row for all.
    const std::int64_t rows[] = {2, 0};
    const std::vector<CrossInput> chosen = {{&left, nullptr, true}, {&right, rows}};
    Cells some;
    cross.encode(chosen, 2, {origin, 0}, scratch, some);
    CHECK(some.ends == (std::vector<std::int64_t>{2, 8}));
    CHECK(std::vector<std::int64_t>(some.ids.begin() + 2, some.ids.end()) ==
          std::vector<std::int64_t>(out.ids.begin(), out.ids.begin() + 6));
    cross.max_combinations = 5;
    std::string message;
    try {
      cross.encode(inputs, 3, {origin, 10}, scratch, out);
    } catch (const InputError& error) {
      CHECK(error.kind() == InputError::Kind::limit);
      message = error.what();
    }
    CHECK(message.starts_with("feature 'pair' (row 10): got 2 x 3 values"));
  }
}

}  // namespace
