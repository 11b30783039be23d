#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "csv_rows.hpp"

using widedeep::csv_end;
using widedeep::CsvColumn;
using widedeep::CsvRows;

namespace {

constexpr std::size_t kRoom = std::size_t{1} << 20;

// Reads in exactly as many bytes, so that a read beyond them is seen.
std::int64_t read(CsvRows& rows, const std::string& text) {
  const std::vector<char> exact(text.begin(), text.end());
  return rows.add({exact.data(), exact.size()}, 0, CsvRows::kMostRows);
}

std::vector<std::string> texts_of(const CsvColumn& column) {
  std::vector<std::string> texts;
  for (std::size_t row = 0; row < column.codes.size(); ++row) {
    if ((column.validity[row / 8] >> row % 8 & 1) == 0) {
      texts.emplace_back("(none)");
      continue;
    }
    const auto first = column.bytes.begin() + column.offsets[column.codes[row]];
    const auto last = column.bytes.begin() + column.offsets[column.codes[row] + 1U];
    texts.emplace_back(first, last);
  }
  return texts;
}

}  // namespace

TEST(csv_rows_are_read_by_columns) {
  CsvRows rows(3, {2, 0}, {false, true}, kRoom, {});
  CHECK(read(rows, "1.5,x,a\r\n\n,,\"b \"\"c\"\"\"\n-3e2,\"\n,\",a") == 33);
  CHECK(rows.n_rows() == 3);
  const std::vector<CsvColumn> columns = rows.take();
  CHECK((texts_of(columns[0]) == std::vector<std::string>{"a", "b \"c\"", "a"}));
  CHECK(columns[0].offsets.size() == 3);
  CHECK(columns[1].is_plain && columns[1].n_missing == 1);
  CHECK(columns[1].numbers[0] == 1.5 && columns[1].numbers[2] == -300);
  CHECK(rows.n_rows() == 0 && rows.take()[0].codes.empty());
}

TEST(csv_rows_take_words_for_nothing) {
  const std::string longest(70, 'x');
  CsvRows rows(2, {0, 1}, {false, true}, kRoom, {"NA", "-", longest, longest + "y"});
  const std::string text =
      "NA,NA\n\"NA\",-\nNAN,1\n\"\",-1\n" + longest + ",\"-\"\n" + longest + "z,";
  CHECK(read(rows, text) == static_cast<std::int64_t>(text.size()));
  const std::vector<CsvColumn> columns = rows.take();
  const std::vector<std::string> texts{"(none)", "(none)", "NAN", "", "(none)", longest + "z"};
  CHECK(texts_of(columns[0]) == texts);
  CHECK(columns[1].is_plain && columns[1].n_missing == 4);
  CHECK(columns[1].numbers[2] == 1 && columns[1].numbers[3] == -1);
}

TEST(csv_rows_refuse_what_is_not_regular) {
  for (const char* text : {"a\n", "a,b,c\n", "a,b\"\n", "\"a\"b,c\n", "\"a,b\n", "a\rb,c\n",
                           "a,\xff\n", "a,\xc3", "\ra,b\n"}) {
    CsvRows rows(2, {0, 1}, {false, false}, kRoom, {});
    CHECK(read(rows, text) == -1);
  }
  CsvRows rows(2, {0, 1}, {false, false}, kRoom, {});
  CHECK(read(rows, std::string("a,b\0c\n", 6)) == -1);
  for (const char* text : {"a,b\n\nc\n", "a,b\n\n\xff,c\nd\n", "a,b\n\n\rb,c\n"}) {
    CsvRows later(2, {0, 1}, {false, false}, kRoom, {});
    CHECK(read(later, text) == -1 - 5);  // Of the first record that is not
  }
}

TEST(csv_numbers_are_plain_or_looked_at_again) {
  for (const char* text : {"0", "-0", "1.", ".5", "1e5", "0.1e-300", "9007199254740991",
                           "123456789012345678901234567890e-20"}) {
    CsvRows rows(1, {0}, {true}, kRoom, {});
    read(rows, text);
    const CsvColumn column = rows.take()[0];
    CHECK(column.is_plain && column.numbers[0] == std::strtod(text, nullptr));
  }
  for (const char* text : {"+1", " 1", "1 ", ".", "-", "1e", "1e99999", "9007199254740992", "1e400",
                           "1e-400", "nan", "inf", "0x1", "1,5\"", "\"\""}) {
    CsvRows rows(1, {0}, {true}, kRoom, {});
    if (read(rows, text) >= 0) CHECK(!rows.take()[0].is_plain);
  }
}

TEST(csv_dictionaries_hold_many_texts) {
  CsvRows rows(2, {0, 1}, {false, false}, kRoom, {});
  std::string text;
  for (int row = 0; row < 20'000; ++row) {
    text += std::to_string(row * 7919 % 9'973) + "," + std::string(row % 40U, 'x') + "\n";
  }
  CHECK(read(rows, text) == static_cast<std::int64_t>(text.size()));
  const std::vector<CsvColumn> columns = rows.take();
  CHECK(columns[0].offsets.size() == 9'974 && columns[1].offsets.size() == 40);
  const std::vector<std::string> texts = texts_of(columns[0]);
  for (int row = 0; row < 20'000; ++row) {
    CHECK(texts[static_cast<std::size_t>(row)] == std::to_string(row * 7919 % 9'973));
  }
}

TEST(csv_ends_lie_outside_quotes) {
  CHECK(csv_end("a\nb").end == 2 && csv_end("a\nb").lines == 1);
  CHECK(csv_end("").end == 0 && csv_end("ab").end == 0);
  CHECK(csv_end("a\n\"b\nc").end == 2);
  CHECK(csv_end("\"b\nc").end == 0 && csv_end("\n\"\n").end == 1);
  CHECK(csv_end("a\n\"b\nc\"\n\"d\n").end == 8);
}

TEST(csv_rows_survive_any_bytes) {
  std::mt19937 random(1);
  const std::string pieces = "1,\"\n\r.-e \xc3\xa9x";
  for (int turn = 0; turn < 3'000; ++turn) {
    std::string text;
    while (random() % 24 != 0) text += pieces[random() % pieces.size()];
    CsvRows rows(1 + random() % 3, {0}, {random() % 2 == 0}, 8, {"1", "e-"});
    const std::int64_t stop = read(rows, text);
    CHECK(stop >= -1 - static_cast<std::int64_t>(text.size()) &&
          stop <= static_cast<std::int64_t>(text.size()));
    csv_end(text);
  }
}
