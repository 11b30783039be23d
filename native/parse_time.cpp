#include "parse_time.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>

namespace widedeep {
namespace {

// The next `count` characters as a number; false if they are no digits.
bool take_digits(const char*& at, const char* end, int count, int& out) {
  if (end - at < count) return false;
  const auto parsed = std::from_chars(at, at + count, out);
  if (parsed.ptr != at + count || *at == '-') return false;
  at += count;
  return true;
}

bool take_char(const char*& at, const char* end, char c) {
  if (at == end || *at != c) return false;
  ++at;
  return true;
}

// "Z", "+02:00", "+0200", "+02", or nothing: seconds east of UTC.
bool take_zone(const char*& at, const char* end, std::int64_t& seconds) {
  if (at == end || take_char(at, end, 'Z') || take_char(at, end, 'z')) return true;
  const bool west = *at == '-';
  if (!west && *at != '+') return false;
  ++at;
  int hours = 0;
  int minutes = 0;
  if (!take_digits(at, end, 2, hours)) return false;
  const bool has_colon = take_char(at, end, ':');
  if ((has_colon || at != end) && !take_digits(at, end, 2, minutes)) return false;
  seconds = (west ? -60 : 60) * (hours * 60 + minutes);
  return hours < 24 && minutes < 60;
}

// "12:30", "12:30:05", "12:30:05.25": microseconds of the day.
bool take_clock(const char*& at, const char* end, std::int64_t& microseconds) {
  int hours = 0;
  int minutes = 0;
  int seconds = 0;
  int fraction = 0;
  if (!take_digits(at, end, 2, hours) || !take_char(at, end, ':')) return false;
  if (!take_digits(at, end, 2, minutes)) return false;
  if (take_char(at, end, ':') && !take_digits(at, end, 2, seconds)) return false;
  if (take_char(at, end, '.')) {
    const char* const first = at;
    for (int digit = 0; at != end && *at >= '0' && *at <= '9'; ++at, ++digit) {
      if (digit < 6) fraction = fraction * 10 + (*at - '0');
    }
    if (at == first) return false;
    for (auto digit = at - first; digit < 6; ++digit) fraction *= 10;
  }
  microseconds = ((hours * 60LL + minutes) * 60 + seconds) * 1'000'000 + fraction;
  return hours < 24 && minutes < 60 && seconds < 60;
}

}  // namespace

std::optional<std::int64_t> parse_time(const TextSpan& text) {
  const char* at = text.data;
  const char* const end = at + std::max<std::int64_t>(text.length, 0);
  int year = 0;
  int month = 0;
  int day = 0;
  if (!take_digits(at, end, 4, year) || !take_char(at, end, '-')) return std::nullopt;
  if (!take_digits(at, end, 2, month) || !take_char(at, end, '-')) return std::nullopt;
  if (!take_digits(at, end, 2, day)) return std::nullopt;
  const std::chrono::year_month_day date{std::chrono::year(year),
                                         std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  std::int64_t of_day = 0;
  std::int64_t east = 0;
  const bool has_clock = take_char(at, end, 'T') || take_char(at, end, ' ');
  if (has_clock && !(take_clock(at, end, of_day) && take_zone(at, end, east))) return std::nullopt;
  if (!date.ok() || at != end) return std::nullopt;
  const std::int64_t days = std::chrono::sys_days(date).time_since_epoch().count();
  return (days * 86'400 - east) * 1'000'000 + of_day;
}

}  // namespace widedeep
