// JSON, read strictly and in one pass: texts and numbers as the full server reads them, or not at
// all.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>

#include "column.hpp"

namespace widedeep {

bool is_utf8(std::string_view text);

// Whether a text between quotes may hold the character as it is, in one byte.
bool is_plain(char c);

// Text as JSON, with its quotes.
void append_json(std::string_view text, std::string& out);

// What reads a body derives from it. Each function takes what it names off the text, or returns
// false: then the body is the full server's to read.
class JsonReader {
 protected:
  void start(std::string_view text);
  bool is_over();
  // Null, a boolean, a number or a text.
  bool read_value(Variant& value);
  bool read_number(Variant& value);
  bool read_text(std::string_view& text);
  bool take(char c);
  bool take_word(std::string_view word);
  void skip_space();
  // A text that stands in the answer again: written without escapes, and short.
  bool read_id(std::string_view& id);

  // Calls item() for each item.
  template <class Item>
  bool read_list(Item&& item) {
    if (!take('[')) return false;
    if (take(']')) return true;
    do {
      if (!item()) return false;
    } while (take(','));
    return take(']');
  }

  // Calls member(name) for each member's value.
  template <class Member>
  bool read_object(Member&& member) {
    if (!take('{')) return false;
    if (take('}')) return true;
    do {
      std::string_view name;
      if (!read_text(name) || !take(':') || !member(name)) return false;
    } while (take(','));
    return take('}');
  }

  const char* at_ = nullptr;
  const char* end_ = nullptr;
  std::deque<std::string> unescaped_;  // texts that were written with escapes; they stay in place

 private:
  bool unescape(const char* begin, std::string_view& text);
  bool read_escape(const char*& from, std::string& out);
};

}  // namespace widedeep
