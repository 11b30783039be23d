#include "input_error.hpp"

#include <algorithm>
#include <cstdio>

namespace widedeep {

std::string row_text(const Origin& origin, std::int64_t row) {
  const std::string number = "row " + std::to_string(origin.first_row + row);
  return origin.name.empty() ? number : number + " of " + origin.name;
}

std::string column_text(const Origin& origin, const std::string& column) {
  const std::string name = "column " + quoted(column);
  return origin.name.empty() ? name : name + " of " + origin.name;
}

std::string grouped(std::int64_t n) {
  std::string digits = std::to_string(n);
  for (auto at = static_cast<std::int64_t>(digits.size()) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<std::size_t>(at), 1, ',');
  }
  return digits;
}

namespace {

// Length of the UTF-8 character that starts at text[0], or 0 if there is none.
std::int64_t character_length(const char* text, std::int64_t available) {
  const auto lead = static_cast<unsigned char>(text[0]);
  std::int64_t length = 0;
  if (lead < 0x80) {
    length = 1;
  } else if (lead >= 0xc2 && lead < 0xe0) {
    length = 2;
  } else if (lead >= 0xe0 && lead < 0xf0) {
    length = 3;
  } else if (lead >= 0xf0 && lead < 0xf5) {
    length = 4;
  }
  if (length == 0 || length > available) return 0;
  for (std::int64_t i = 1; i < length; ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return 0;
  }
  // Overlong forms and surrogates pass the test above, and Python would refuse the message.
  const auto second = static_cast<unsigned char>(length > 1 ? text[1] : 0);
  if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) ||
      (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f)) {
    return 0;
  }
  return length;
}

}  // namespace

std::string quoted(const char* text, std::int64_t length) {
  constexpr std::int64_t kShown = 60;
  std::string result = "'";
  std::int64_t i = 0;
  while (i < std::min(length, kShown)) {
    const std::int64_t n = character_length(text + i, length - i);
    const auto byte = static_cast<unsigned char>(text[i]);
    if (n == 0 || byte < 0x20 || byte == 0x7f) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", byte);
      result += escaped;
      ++i;
    } else {
      if (byte == '\'' || byte == '\\') result += '\\';
      result.append(text + i, static_cast<std::size_t>(n));
      i += n;
    }
  }
  if (i < length) result += "...";
  return result + "'";
}

std::string quoted(const std::string& text) {
  return quoted(text.data(), static_cast<std::int64_t>(text.size()));
}

}  // namespace widedeep
