#include "json_number.hpp"

#include <algorithm>
#include <charconv>
#include <string_view>

namespace widedeep {

void append_number(double value, std::string& out) {
  char text[32];
  const char* const end =
      std::to_chars(text, text + sizeof text, value, std::chars_format::scientific).ptr;
  const char* const e = std::find(text, const_cast<char*>(end), 'e');
  const char* first = text;
  if (*first == '-') out += *first++;
  int exponent = 0;
  std::from_chars(e[1] == '+' ? e + 2 : e + 1, end, exponent);
  char digits[24];
  std::size_t n = 0;
  for (const char* at = first; at != e; ++at) {
    if (*at != '.') digits[n++] = *at;
  }
  const std::string_view all(digits, n);
  if (exponent < -5 || exponent > 15) {
    out.append(first, e);
    out += 'e';
    out += std::to_string(exponent);
  } else if (exponent < 0) {
    out += "0.";
    out.append(static_cast<std::size_t>(-exponent - 1), '0');
    out += all;
  } else {
    const auto whole = static_cast<std::size_t>(exponent) + 1;
    out += all.substr(0, std::min(n, whole));
    if (n < whole) out.append(whole - n, '0');
    out += '.';
    out += n > whole ? all.substr(whole) : "0";
  }
}

}  // namespace widedeep
