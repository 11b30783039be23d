#include "csv_rows.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <string>

#include "count_table.hpp"
#include "json_reader.hpp"

namespace widedeep {
namespace {

// Rows whose fields are found together, before each column takes its own. A column's fields lie so
// far apart that those of a row share no set of a cache.
constexpr std::size_t kBatch = 256;
constexpr std::size_t kStride = kBatch + 4;
constexpr std::size_t kFirstSlots = 64;
// Bytes of texts of which no room is kept that they do not need.
constexpr std::size_t kMuch = std::size_t{1} << 20;
constexpr double kTwo53 = 9007199254740992.0;
constexpr double kTens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                            1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
constexpr std::uint64_t kOnes = 0x0101010101010101U;

bool is_mark(char c) { return c == ',' || c == '\n' || c == '\r' || c == '"' || c == '\0'; }

// The first byte that may end a field, or is in no field without quotes.
const char* find_mark(const char* at, const char* end) {
  for (;;) {
    // All marks are bytes up to the comma: the lowest such byte of eight is found at once.
    for (; end - at >= 8; at += 8) {
      std::uint64_t word;
      std::memcpy(&word, at, sizeof(word));
      const std::uint64_t low = (word - kOnes * (',' + 1)) & ~word & (kOnes << 7);
      if (low == 0) continue;
      at += __builtin_ctzll(low) >> 3;
      break;
    }
    while (at < end && static_cast<unsigned char>(*at) > ',') ++at;
    if (at == end || is_mark(*at)) return at;
    ++at;
  }
}

const char* skip_digits(const char* at, const char* end, std::uint64_t& number) {
  for (; at < end && *at >= '0' && *at <= '9'; ++at) {
    number = number * 10 + static_cast<std::uint64_t>(*at - '0');
  }
  return at;
}

// Reads a plain decimal number; false for what is none, or needs a closer look.
bool read_plain_number(const CsvField& field, double& number) {
  const char* at = field.data;
  const char* const end = at + field.length;
  const bool is_negative = at < end && *at == '-';
  at += is_negative ? 1 : 0;
  std::uint64_t mantissa = 0;
  const char* const whole = at;
  at = skip_digits(at, end, mantissa);
  std::int64_t n_digits = at - whole;
  std::int64_t exponent = 0;
  if (at < end && *at == '.') {
    const char* const fraction = ++at;
    at = skip_digits(at, end, mantissa);
    exponent = fraction - at;
    n_digits += at - fraction;
  }
  if (n_digits == 0) return false;
  if (at < end && (*at == 'e' || *at == 'E')) {
    const bool is_small = ++at < end && *at == '-';
    at += at < end && (*at == '-' || *at == '+') ? 1 : 0;
    std::uint64_t tens = 0;
    const char* const first = at;
    at = skip_digits(at, end, tens);
    if (at == first || at - first > 4) return false;
    exponent += is_small ? -static_cast<std::int64_t>(tens) : static_cast<std::int64_t>(tens);
  }
  if (at != end) return false;
  if (n_digits <= 19 && mantissa <= std::uint64_t{1} << 53 && std::abs(exponent) <= 22) {
    // Both are exact, so that one operation rounds as the number itself would be.
    number = static_cast<double>(mantissa);
    number = exponent < 0 ? number / kTens[-exponent] : number * kTens[exponent];
    number = is_negative ? -number : number;
  } else {
    const auto parsed = std::from_chars(field.data, end, number);
    if (parsed.ec != std::errc() || parsed.ptr != end) return false;
  }
  const bool is_lost = number == 0 && (mantissa != 0 || n_digits > 19);
  return std::fabs(number) < kTwo53 && !is_lost;
}

// Most texts are short: two words that overlap tell them apart without a call.
bool is_equal(const void* one, const void* other, std::size_t length) {
  const auto* const a = static_cast<const char*>(one);
  const auto* const b = static_cast<const char*>(other);
  if (length > 16) return std::memcmp(a, b, length) == 0;
  const auto differ = [&](std::size_t at, auto word) {
    auto of_b = word;
    std::memcpy(&word, a + at, sizeof(word));
    std::memcpy(&of_b, b + at, sizeof(word));
    return word != of_b;
  };
  if (length >= 8) return !differ(0, std::uint64_t{}) && !differ(length - 8, std::uint64_t{});
  if (length >= 4) return !differ(0, std::uint32_t{}) && !differ(length - 4, std::uint32_t{});
  for (std::size_t i = 0; i < length; ++i) {
    if (a[i] != b[i]) return false;
  }
  return true;
}

std::uint64_t length_bit(std::size_t length) {
  return std::uint64_t{1} << std::min<std::size_t>(length, 63);
}

bool is_ascii(const char* at, std::size_t length) {
  return std::none_of(at, at + length, [](char c) { return (c & 0x80) != 0; });
}

}  // namespace

CsvEnd csv_end(std::string_view text) {
  const auto count = [&](char mark, std::size_t from, std::size_t to) {
    return std::count(text.begin() + static_cast<std::ptrdiff_t>(from),
                      text.begin() + static_cast<std::ptrdiff_t>(to), mark);
  };
  std::size_t feed = text.rfind('\n');
  if (feed == std::string_view::npos) return {0, 0};
  // Most texts have no quote at all, which is found out faster than how many there are.
  const std::size_t first = text.find('"');
  auto quotes = first < feed ? count('"', first, feed) : 0;
  while (quotes % 2 != 0) {  // Within quotes: the one before may be outside
    const std::size_t before = feed == 0 ? std::string_view::npos : text.rfind('\n', feed - 1);
    if (before == std::string_view::npos) return {0, 0};
    quotes -= count('"', before, feed);
    feed = before;
  }
  return {feed + 1, count('\n', 0, feed + 1)};
}

// A column as it grows, row by row.
class CsvRows::Builder {
 public:
  explicit Builder(bool is_number) { clear(is_number); }

  // Returns the first row that is not UTF-8; `n` where all are.
  std::size_t add(const CsvField* fields, std::size_t n) {
    const std::size_t first = n_rows_;
    n_rows_ += n;
    column_.validity.resize((n_rows_ + 7) / 8);
    for (std::size_t i = 0; i < n; ++i) {
      const bool is_valid = fields[i].data != nullptr;
      column_.n_missing += is_valid ? 0 : 1;
      column_.validity[(first + i) / 8] |=
          static_cast<std::uint8_t>((is_valid ? 1U : 0U) << (first + i) % 8);
    }
    if (!column_.is_number) return add_texts(fields, n);
    column_.numbers.resize(n_rows_);
    for (std::size_t i = 0; i < n && column_.is_plain; ++i) {
      double& number = column_.numbers[first + i];
      column_.is_plain = fields[i].data == nullptr || read_plain_number(fields[i], number);
    }
    return n;
  }

  std::size_t n_bytes() const { return column_.bytes.size(); }

  CsvColumn take() {
    CsvColumn taken = std::move(column_);
    if (taken.bytes.size() > kMuch) taken.bytes.shrink_to_fit();
    clear(taken.is_number);
    return taken;
  }

 private:
  struct Slot {
    std::uint32_t tag;
    std::uint32_t entry;  // Place in the dictionary and 1; 0 where the slot is empty
    std::uint32_t first;  // Where its bytes begin
    std::uint32_t length;
  };

  void clear(bool is_number) {
    column_ = CsvColumn();
    column_.is_number = is_number;
    column_.offsets.assign(1, 0);
    n_rows_ = 0;
    slots_.assign(kFirstSlots, Slot{});
  }

  std::size_t add_texts(const CsvField* fields, std::size_t n) {
    std::uint64_t hashes[kBatch];
    for (std::size_t i = 0; i < n; ++i) {
      if (fields[i].data == nullptr) continue;
      hashes[i] =
          hash_bytes(reinterpret_cast<const std::uint8_t*>(fields[i].data), fields[i].length);
      __builtin_prefetch(&slots_[hashes[i] & (slots_.size() - 1)]);
    }
    for (std::size_t i = 0; i < n; ++i) {
      if (fields[i].data == nullptr) continue;
      __builtin_prefetch(column_.bytes.data() + slots_[hashes[i] & (slots_.size() - 1)].first);
    }
    for (std::size_t i = 0; i < n; ++i) {
      std::uint32_t entry = 1;
      if (fields[i].data != nullptr) {
        entry = find_or_append(fields[i], hashes[i]);
        if (entry == 0) return i;
      }
      column_.codes.push_back(static_cast<std::uint16_t>(entry - 1));
    }
    return n;
  }

  // The entry of a text; 0 if it is not UTF-8.
  std::uint32_t find_or_append(const CsvField& field, std::uint64_t hash) {
    const auto tag = static_cast<std::uint32_t>(hash >> 32);
    Slot* slot = nullptr;
    for (std::size_t at = hash;; ++at) {
      slot = &slots_[at & (slots_.size() - 1)];
      if (slot->entry == 0) break;
      if (slot->tag == tag && slot->length == field.length &&
          is_equal(column_.bytes.data() + slot->first, field.data, field.length)) {
        return slot->entry;
      }
    }
    if (!is_ascii(field.data, field.length) && !is_utf8({field.data, field.length})) return 0;
    const auto entry = static_cast<std::uint32_t>(column_.offsets.size());
    *slot = {tag, entry, static_cast<std::uint32_t>(column_.bytes.size()),
             static_cast<std::uint32_t>(field.length)};
    column_.bytes.insert(column_.bytes.end(), field.data, field.data + field.length);
    column_.offsets.push_back(static_cast<std::int32_t>(column_.bytes.size()));
    if (2 * column_.offsets.size() > slots_.size()) grow();
    return entry;
  }

  void grow() {
    std::vector<Slot> slots(4 * slots_.size(), Slot{});
    for (std::uint32_t entry = 1; entry < column_.offsets.size(); ++entry) {
      const auto first = static_cast<std::uint32_t>(column_.offsets[entry - 1]);
      const auto length = static_cast<std::uint32_t>(column_.offsets[entry]) - first;
      const std::uint64_t hash = hash_bytes(column_.bytes.data() + first, length);
      std::size_t at = hash & (slots.size() - 1);
      while (slots[at].entry != 0) at = (at + 1) & (slots.size() - 1);
      slots[at] = {static_cast<std::uint32_t>(hash >> 32), entry, first, length};
    }
    slots_ = std::move(slots);
  }

  CsvColumn column_;
  std::size_t n_rows_ = 0;
  std::vector<Slot> slots_;
};

CsvRows::CsvRows(std::size_t width, const std::vector<std::size_t>& fields,
                 const std::vector<bool>& are_numbers, std::size_t full_bytes,
                 std::vector<std::string> null_values)
    : column_of_(width, -1),
      fields_(fields.size() * kStride),
      full_bytes_(full_bytes),
      null_values_(std::move(null_values)) {
  for (const std::string& word : null_values_) null_lengths_ |= length_bit(word.size());
  for (std::size_t i = 0; i < fields.size(); ++i) {
    column_of_.at(fields[i]) = static_cast<int>(i);
    columns_.push_back(std::make_unique<Builder>(are_numbers.at(i)));
  }
}

CsvRows::~CsvRows() = default;

bool CsvRows::is_full() const {
  return std::any_of(columns_.begin(), columns_.end(),
                     [this](const auto& column) { return column->n_bytes() >= full_bytes_; });
}

std::int64_t CsvRows::add(std::string_view text, std::size_t start, std::int64_t most_rows) {
  most_rows = std::min(most_rows, kMostRows);
  const char* at = text.data() + start;
  const char* const end = text.data() + text.size();
  const char* starts[kBatch];  // Of the records of a batch
  while (at < end && n_rows_ < most_rows && !is_full()) {
    const auto room = std::min<std::size_t>(kBatch, static_cast<std::size_t>(most_rows - n_rows_));
    std::size_t n = 0;
    bool is_regular = true;
    while (at < end && n < room && is_regular) {
      const bool is_blank = column_of_.size() > 1 && (*at == '\n' || *at == '\r');
      if (is_blank && (*at == '\n' || end - at < 2 || at[1] == '\n')) {
        at += *at == '\r' && end - at > 1 ? 2 : 1;
        continue;
      }
      starts[n] = at;
      is_regular = !is_blank && read_record(at, end, n);
      n += is_regular ? 1 : 0;
    }
    std::size_t refused = n;
    for (std::size_t column = 0; column < columns_.size(); ++column) {
      refused = std::min(refused, columns_[column]->add(&fields_[column * kStride], n));
    }
    if (refused < n || !is_regular) return -1 - (starts[refused] - text.data());
    n_rows_ += static_cast<std::int64_t>(n);
    unescaped_.clear();
  }
  return at - text.data();
}

bool CsvRows::read_record(const char*& at, const char* end, std::size_t row) {
  for (std::size_t position = 0; position < column_of_.size(); ++position) {
    const int column = column_of_[position];
    CsvField& field =
        column < 0 ? unread_ : fields_[static_cast<std::size_t>(column) * kStride + row];
    if (at < end && *at == '"') {
      at = read_quoted(at, end, field);
      if (at == nullptr) return false;
    } else {
      const char* const mark = find_mark(at, end);
      field.data = mark > at ? at : nullptr;
      field.length = static_cast<std::size_t>(mark - at);
      at = mark;
    }
    if ((null_lengths_ & length_bit(field.length)) != 0 && is_null(field)) field.data = nullptr;
    const bool is_last = position + 1 == column_of_.size();
    if (at == end) return is_last;
    if (*at == ',') {
      ++at;
      continue;
    }
    if (*at == '\r') {
      if (++at == end) return is_last;
    }
    return *at++ == '\n' && is_last;
  }
  return false;
}

bool CsvRows::is_null(const CsvField& field) const {
  const std::string_view text(field.data, field.data == nullptr ? 0 : field.length);
  return std::find(null_values_.begin(), null_values_.end(), text) != null_values_.end();
}

// Reads a field between quotes; returns the byte behind it, or nothing for what is not regular.
const char* CsvRows::read_quoted(const char* at, const char* end, CsvField& field) {
  const char* const first = ++at;
  std::size_t n_doubled = 0;
  for (;;) {
    at = static_cast<const char*>(std::memchr(at, '"', static_cast<std::size_t>(end - at)));
    if (at == nullptr) return nullptr;
    if (end - at < 2 || at[1] != '"') break;
    ++n_doubled;
    at += 2;
  }
  field = {first, static_cast<std::size_t>(at - first)};
  if (std::memchr(first, '\0', field.length) != nullptr) return nullptr;
  if (n_doubled > 0) {
    unescaped_.push_back(std::make_unique<char[]>(field.length - n_doubled));
    char* to = unescaped_.back().get();
    field = {to, field.length - n_doubled};
    for (const char* from = first; from < at; ++from) {
      *to++ = *from;
      from += *from == '"' ? 1 : 0;
    }
  }
  ++at;
  return at == end || *at == ',' || *at == '\n' || *at == '\r' ? at : nullptr;
}

std::vector<CsvColumn> CsvRows::take() {
  std::vector<CsvColumn> taken;
  for (const auto& column : columns_) taken.push_back(column->take());
  n_rows_ = 0;
  return taken;
}

}  // namespace widedeep
