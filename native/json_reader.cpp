#include "json_reader.hpp"

#include <algorithm>
#include <charconv>
#include <utility>

namespace widedeep {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

int hex_digit(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

bool read_hex(const char*& from, const char* end, std::uint32_t& unit) {
  if (end - from < 4) return false;
  unit = 0;
  for (int i = 0; i < 4; ++i) {
    const int digit = hex_digit(*from++);
    if (digit < 0) return false;
    unit = unit << 4 | static_cast<std::uint32_t>(digit);
  }
  return true;
}

void append_utf8(std::uint32_t point, std::string& out) {
  const auto byte = [&](std::uint32_t bits) { out.push_back(static_cast<char>(bits)); };
  if (point < 0x80) return byte(point);
  if (point < 0x800) {
    byte(0xc0 | point >> 6);
  } else if (point < 0x10000) {
    byte(0xe0 | point >> 12);
    byte(0x80 | (point >> 6 & 63));
  } else {
    byte(0xf0 | point >> 18);
    byte(0x80 | (point >> 12 & 63));
    byte(0x80 | (point >> 6 & 63));
  }
  byte(0x80 | (point & 63));
}

struct Sequence {
  int length;
  std::uint32_t bits;      // of the first byte
  std::uint32_t smallest;  // a smaller point has a shorter sequence
};

Sequence sequence_of(unsigned char first) {
  if (first < 0x80) return {1, first, 0};
  if (first >= 0xc2 && first < 0xe0) return {2, first & 31U, 0x80};
  if (first >= 0xe0 && first < 0xf0) return {3, first & 15U, 0x800};
  if (first >= 0xf0 && first < 0xf5) return {4, first & 7U, 0x10000};
  return {0, 0, 0};
}

}  // namespace

bool is_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const Sequence sequence = sequence_of(static_cast<unsigned char>(text[at]));
    const auto length = static_cast<std::size_t>(sequence.length);
    if (length == 0 || text.size() - at < length) return false;
    std::uint32_t point = sequence.bits;
    for (std::size_t i = 1; i < length; ++i) {
      const auto next = static_cast<unsigned char>(text[at + i]);
      if (next >> 6 != 2) return false;
      point = point << 6 | (next & 63U);
    }
    const bool is_surrogate = point >= 0xd800 && point < 0xe000;
    if (point < sequence.smallest || point > 0x10ffff || is_surrogate) return false;
    at += length;
  }
  return true;
}

void append_json(std::string_view text, std::string& out) {
  constexpr char kHex[] = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += "\\u00";
      out += kHex[c >> 4];
      out += kHex[c & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

bool is_plain(char c) {
  return static_cast<unsigned char>(c) >= 0x20 && static_cast<unsigned char>(c) < 0x80 &&
         c != '"' && c != '\\';
}

void JsonReader::start(std::string_view text) {
  at_ = text.data();
  end_ = at_ + text.size();
  unescaped_.clear();
}

bool JsonReader::is_over() {
  skip_space();
  return at_ == end_;
}

bool JsonReader::read_value(Variant& value) {
  skip_space();
  value = {};
  if (at_ == end_) return false;
  if (*at_ == '"') {
    std::string_view text;
    if (!read_text(text)) return false;
    value.tag = Variant::Tag::text;
    value.text = text.data();
    value.length = static_cast<std::int64_t>(text.size());
    return true;
  }
  if (*at_ == 'n') return take_word("null");
  if (*at_ == 't' || *at_ == 'f') {
    value.tag = Variant::Tag::boolean;
    value.integer = *at_ == 't' ? 1 : 0;
    return take_word(*at_ == 't' ? "true" : "false");
  }
  return read_number(value);
}

bool JsonReader::read_number(Variant& value) {
  const char* const begin = at_;
  if (at_ != end_ && *at_ == '-') ++at_;
  const char* const digits = at_;
  while (at_ != end_ && is_digit(*at_)) ++at_;
  if (at_ == digits || (*digits == '0' && at_ - digits > 1)) return false;
  bool is_whole = true;
  if (at_ != end_ && *at_ == '.') {
    is_whole = false;
    const char* const fraction = ++at_;
    while (at_ != end_ && is_digit(*at_)) ++at_;
    if (at_ == fraction) return false;
  }
  if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
    is_whole = false;
    if (++at_ != end_ && (*at_ == '+' || *at_ == '-')) ++at_;
    const char* const exponent = at_;
    while (at_ != end_ && is_digit(*at_)) ++at_;
    if (at_ == exponent) return false;
  }
  if (!is_whole) {
    value.tag = Variant::Tag::real;
    return std::from_chars(begin, at_, value.real).ec == std::errc();
  }
  if (*begin == '-' && *digits == '0') return false;
  value.tag = Variant::Tag::integer;
  if (std::from_chars(begin, at_, value.integer).ec == std::errc()) return true;
  std::uint64_t bits = 0;
  value.tag = Variant::Tag::unsigned_integer;
  if (*begin == '-' || std::from_chars(begin, at_, bits).ec != std::errc()) return false;
  value.integer = static_cast<std::int64_t>(bits);
  return true;
}

bool JsonReader::read_text(std::string_view& text) {
  skip_space();
  if (at_ == end_ || *at_ != '"') return false;
  const char* const begin = ++at_;
  while (at_ != end_ && is_plain(*at_)) ++at_;
  if (at_ == end_) return false;
  if (*at_ != '"') return unescape(begin, text);
  text = {begin, static_cast<std::size_t>(at_ - begin)};
  ++at_;
  return true;
}

// The rest of a text that holds an escape or bytes beyond ASCII.
bool JsonReader::unescape(const char* begin, std::string_view& text) {
  std::string out(begin, at_);
  bool has_escape = false;
  while (at_ != end_ && *at_ != '"') {
    if (*at_ == '\\') {
      has_escape = true;
      if (++at_ == end_ || !read_escape(at_, out)) return false;
    } else {
      if (static_cast<unsigned char>(*at_) < 0x20) return false;
      out.push_back(*at_++);
    }
  }
  if (at_ == end_ || !is_utf8(out)) return false;
  text = {begin, static_cast<std::size_t>(at_ - begin)};
  if (has_escape) text = unescaped_.emplace_back(std::move(out));
  ++at_;
  return true;
}

bool JsonReader::read_escape(const char*& from, std::string& out) {
  constexpr std::string_view kNames = "\"\\/bfnrt";
  constexpr std::string_view kMeant = "\"\\/\b\f\n\r\t";
  const char name = *from++;
  if (name != 'u') {
    const std::size_t at = kNames.find(name);
    if (at == std::string_view::npos) return false;
    out.push_back(kMeant[at]);
    return true;
  }
  std::uint32_t unit = 0;
  if (!read_hex(from, end_, unit) || (unit >= 0xdc00 && unit < 0xe000)) return false;
  if (unit >= 0xd800 && unit < 0xdc00) {
    std::uint32_t low = 0;
    if (end_ - from < 6 || from[0] != '\\' || from[1] != 'u') return false;
    from += 2;
    if (!read_hex(from, end_, low) || low < 0xdc00 || low >= 0xe000) return false;
    unit = 0x10000 + ((unit - 0xd800) << 10 | (low - 0xdc00));
  }
  append_utf8(unit, out);
  return true;
}

bool JsonReader::take(char c) {
  skip_space();
  if (at_ == end_ || *at_ != c) return false;
  ++at_;
  return true;
}

bool JsonReader::take_word(std::string_view word) {
  if (static_cast<std::size_t>(end_ - at_) < word.size() ||
      std::string_view(at_, word.size()) != word) {
    return false;
  }
  at_ += word.size();
  return true;
}

void JsonReader::skip_space() {
  while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
}

bool JsonReader::read_id(std::string_view& id) {
  skip_space();
  const char* const begin = at_ + 1;
  if (!read_text(id)) return false;
  const auto length = at_ - 1 - begin;
  return id.data() == begin && length > 0 && length <= 128 &&
         std::all_of(begin, begin + length, [](char c) { return is_plain(c) && c != 0x7f; });
}

}  // namespace widedeep
