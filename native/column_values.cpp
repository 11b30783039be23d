#include "column_values.hpp"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "input_error.hpp"
#include "parse_time.hpp"

namespace widedeep {
namespace {

constexpr double kTwo63 = 9223372036854775808.0;
__extension__ typedef __int128 Wide;

double half_to_double(std::uint16_t half) {
  const int exponent = half >> 10 & 31;
  const int fraction = half & 1023;
  double value;
  if (exponent == 31) {
    value = fraction == 0 ? std::numeric_limits<double>::infinity()
                          : std::numeric_limits<double>::quiet_NaN();
  } else {
    value = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25);
  }
  return (half >> 15) != 0 ? -value : value;
}

// A decimal of up to 32 bytes as limbs of 64 bits, sign-extended.
struct Limbs {
  std::uint64_t limb[4];

  bool fits_128() const {
    const std::uint64_t sign = limb[1] >> 63 != 0 ? ~std::uint64_t{0} : 0;
    return limb[2] == sign && limb[3] == sign;
  }
  Wide low_128() const {
    __extension__ typedef unsigned __int128 Bits;
    return static_cast<Wide>(static_cast<Bits>(limb[1]) << 64 | limb[0]);
  }
};

Limbs load_limbs(const Scalars& scalars, std::int64_t i) {
  Limbs value{};
  const char* at = static_cast<const char*>(scalars.data) + (scalars.offset + i) * scalars.width;
  std::memcpy(value.limb, at, static_cast<std::size_t>(scalars.width));
  if (scalars.width == 4) {
    value.limb[0] = static_cast<std::uint64_t>(
        static_cast<std::int64_t>(static_cast<std::int32_t>(value.limb[0])));
  }
  for (int limb = scalars.width <= 8 ? 1 : scalars.width / 8; limb < 4; ++limb) {
    value.limb[limb] = value.limb[limb - 1] >> 63 != 0 ? ~std::uint64_t{0} : 0;
  }
  return value;
}

// Powers of ten that a double holds exactly.
constexpr double kTens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                            1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
constexpr int kMostTens = 22;
constexpr double kTwo53 = 9007199254740992.0;

// The decimal digits of the limbs' absolute value.
std::string digits_of(Limbs value) {
  __extension__ typedef unsigned __int128 Bits;
  std::string digits;
  const bool negative = value.limb[3] >> 63 != 0;
  bool carry = negative;
  for (int limb = 0; negative && limb < 4; ++limb) {
    value.limb[limb] = ~value.limb[limb] + (carry ? 1 : 0);
    carry = carry && value.limb[limb] == 0;
  }
  while ((value.limb[0] | value.limb[1] | value.limb[2] | value.limb[3]) != 0) {
    std::uint64_t rest = 0;
    for (int limb = 3; limb >= 0; --limb) {
      const Bits part = static_cast<Bits>(rest) << 64 | value.limb[limb];
      value.limb[limb] = static_cast<std::uint64_t>(part / 10);
      rest = static_cast<std::uint64_t>(part % 10);
    }
    digits.push_back(static_cast<char>('0' + rest));
  }
  std::reverse(digits.begin(), digits.end());
  return digits.empty() ? "0" : digits;
}

// The nearest double, as that of the same number written as text.
double decimal_to_double(const Scalars& scalars, std::int64_t i) {
  const Limbs value = load_limbs(scalars, i);
  if (value.fits_128() && scalars.scale >= 0 && scalars.scale <= kMostTens) {
    const auto whole = static_cast<double>(value.low_128());
    if (std::fabs(whole) < kTwo53) return whole / kTens[scalars.scale];
  }
  const std::string text = digits_of(value) + "e" + std::to_string(-scalars.scale);
  double number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return value.limb[3] >> 63 != 0 ? -number : number;
}

Status decimal_to_integer(const Scalars& scalars, std::int64_t i, std::int64_t* out) {
  const Limbs limbs = load_limbs(scalars, i);
  if (!limbs.fits_128()) return Status::bad;
  Wide value = limbs.low_128();
  for (int digit = 0; digit < scalars.scale && value != 0; ++digit) {
    if (value % 10 != 0) return Status::bad;
    value /= 10;
  }
  for (int digit = 0; digit > scalars.scale; --digit) {
    if (__builtin_mul_overflow(value, Wide{10}, &value)) return Status::bad;
  }
  *out = static_cast<std::int64_t>(value);
  return *out == value ? Status::ok : Status::bad;
}

Status floor_of(double value, double limit, std::int64_t* out) {
  if (std::isnan(value)) return Status::null;
  if (!(value > -limit && value < limit)) return Status::bad;
  *out = static_cast<std::int64_t>(std::floor(value));
  return Status::ok;
}

// From 2^53 on a double may stand for its neighbours, too: an id would be rounded to another.
Status real_to_integer(double value, std::int64_t* out) {
  const Status status = floor_of(value, kTwo53, out);
  return status == Status::ok && value != std::floor(value) ? Status::bad : status;
}

double round_to_half(double value) {
  if (!std::isfinite(value) || value == 0) return value;
  const int step = std::max(std::ilogb(value), -14) - 10;
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, -step)), step);
  return std::fabs(rounded) > 65504 ? std::copysign(HUGE_VAL, rounded) : rounded;
}

double round_to_digits(double value, int digits) {
  if (digits > kMostTens) return value;
  const double whole = std::nearbyint(value * kTens[digits]);
  return std::fabs(whole) < kTwo53 ? whole / kTens[digits] : value;
}

// Whether every value of a type is one that the storage holds.
bool fits_storage(const Scalars& scalars, const Storage& storage) {
  switch (storage.kind) {
    case Storage::Kind::float32:
      return scalars.type == Physical::float32 || scalars.type == Physical::float16;
    case Storage::Kind::float16:
      return scalars.type == Physical::float16;
    case Storage::Kind::decimal:
      return scalars.type == Physical::decimal && scalars.scale <= storage.scale;
    default:
      return true;
  }
}

// Text that is written as its integer is; 007 and -0 are other texts than 7 and 0.
Status text_to_integer(const TextSpan& text, std::int64_t* out) {
  const char* const end = text.data + text.length;
  const bool signed_text = text.length > 0 && *text.data == '-';
  const char* const digits = text.data + (signed_text ? 1 : 0);
  if (end - digits > (signed_text ? 0 : 1) && *digits == '0') return Status::bad;
  auto parsed = std::from_chars(text.data, end, *out);
  if (parsed.ec == std::errc() && parsed.ptr == end) return Status::ok;
  std::uint64_t bits = 0;
  parsed = std::from_chars(text.data, end, bits);
  if (parsed.ec != std::errc() || parsed.ptr != end) return Status::bad;
  *out = static_cast<std::int64_t>(bits);
  return Status::wide;
}

// A point in time in microseconds, rounded down.
Status time_to_integer(const Scalars& scalars, std::int64_t stored, std::int64_t* out) {
  if (__builtin_mul_overflow(stored, scalars.factor, out)) return Status::bad;
  const std::int64_t rest = *out % scalars.divisor;
  *out = *out / scalars.divisor - (rest < 0 ? 1 : 0);
  return Status::ok;
}

// Microseconds, rounded down to a step of the storage.
std::int64_t round_down(std::int64_t microseconds, const Storage& storage) {
  const std::int64_t step = std::max<std::int64_t>(storage.unit / 1000, 1);
  const std::int64_t rest = microseconds % step;
  return microseconds - rest - (rest < 0 ? step : 0);
}

Status count_to_time(std::int64_t count, const Storage& storage, std::int64_t* out) {
  if (storage.unit >= 1000) {
    return __builtin_mul_overflow(count, storage.unit / 1000, out) ? Status::bad : Status::ok;
  }
  const std::int64_t per_microsecond = 1000 / storage.unit;
  *out = count / per_microsecond - (count % per_microsecond < 0 ? 1 : 0);
  return Status::ok;
}

Status real_to_time(double value, const Storage& storage, std::int64_t* out) {
  std::int64_t count = 0;
  const Status status = floor_of(value, kTwo63, &count);
  return status == Status::ok ? count_to_time(count, storage, out) : status;
}

Status text_to_time(const TextSpan& text, const Storage& storage, std::int64_t* out) {
  if (const std::optional<std::int64_t> time = parse_time(text)) {
    *out = round_down(*time, storage);
    return Status::ok;
  }
  std::int64_t count = 0;
  const Status status = text_to_integer(text, &count);
  return status == Status::ok ? count_to_time(count, storage, out) : Status::bad;
}

Status variant_time(const Variant& value, const Storage& storage, std::int64_t* out) {
  switch (value.tag) {
    case Variant::Tag::null:
      return Status::null;
    case Variant::Tag::time:
      *out = round_down(value.integer, storage);
      return Status::ok;
    case Variant::Tag::integer:
      return count_to_time(value.integer, storage, out);
    case Variant::Tag::real:
      return real_to_time(value.real, storage, out);
    case Variant::Tag::text:
      return text_to_time({value.text, value.length}, storage, out);
    default:
      return Status::bad;
  }
}

std::int64_t stored_time(const Scalars& scalars, std::int64_t i) {
  return scalars.type == Physical::date32 ? load_as<std::int32_t>(scalars.data, scalars.offset + i)
                                          : load_as<std::int64_t>(scalars.data, scalars.offset + i);
}

TextSpan view_at(const Scalars& scalars, std::int64_t i) {
  // 16 bytes: length, then the text itself if it is short, else prefix, buffer and offset.
  const char* const view = static_cast<const char*>(scalars.data) + (scalars.offset + i) * 16;
  const std::int64_t length = load_as<std::int32_t>(view, 0);
  if (length <= 12) return {view + 4, length};
  const auto* const buffer =
      static_cast<const char*>(scalars.view_buffers[load_as<std::int32_t>(view, 2)]);
  return {buffer + load_as<std::int32_t>(view, 3), length};
}

bool is_text(Physical type) {
  return type == Physical::text32 || type == Physical::text64 || type == Physical::text_view;
}

template <class Offset>
TextSpan text_between(const Scalars& scalars, std::int64_t i) {
  const std::int64_t begin = load_as<Offset>(scalars.data, scalars.offset + i);
  return {scalars.text + begin, load_as<Offset>(scalars.data, scalars.offset + i + 1) - begin};
}

TextSpan text_at(const Scalars& scalars, std::int64_t i) {
  if (scalars.type == Physical::text32) return text_between<std::int32_t>(scalars, i);
  if (scalars.type == Physical::text64) return text_between<std::int64_t>(scalars, i);
  return view_at(scalars, i);
}

// Calls fn(T{}) with the C++ type of an integer or floating column; false for any other type.
template <class Fn>
bool with_number_type(Physical type, Fn&& fn) {
  switch (type) {
    case Physical::int8:
      return fn(std::int8_t{}), true;
    case Physical::int16:
      return fn(std::int16_t{}), true;
    case Physical::int32:
      return fn(std::int32_t{}), true;
    case Physical::int64:
      return fn(std::int64_t{}), true;
    case Physical::uint8:
      return fn(std::uint8_t{}), true;
    case Physical::uint16:
      return fn(std::uint16_t{}), true;
    case Physical::uint32:
      return fn(std::uint32_t{}), true;
    case Physical::uint64:
      return fn(std::uint64_t{}), true;
    case Physical::float32:
      return fn(float{}), true;
    case Physical::float64:
      return fn(double{}), true;
    default:
      return false;
  }
}

// Calls fn(i) for the valid scalars among [begin, begin + n), i from 0, and null_fn(i) for others.
template <class Fn, class NullFn>
void for_each_valid(const Scalars& scalars, std::int64_t begin, std::int64_t n, Fn&& fn,
                    NullFn&& null_fn) {
  if (scalars.type == Physical::null) {
    for (std::int64_t i = 0; i < n; ++i) null_fn(i);
  } else if (scalars.validity == nullptr) {
    for (std::int64_t i = 0; i < n; ++i) fn(i);
  } else {
    for (std::int64_t i = 0; i < n; ++i) {
      bit_at(scalars.validity, scalars.offset + begin + i) ? fn(i) : null_fn(i);
    }
  }
}

const Variant& variant_at(const Scalars& scalars, std::int64_t i) {
  return static_cast<const Variant*>(scalars.data)[scalars.offset + i];
}

bool boolean_at(const Scalars& scalars, std::int64_t i) {
  return bit_at(static_cast<const std::uint8_t*>(scalars.data), scalars.offset + i);
}

double half_at(const Scalars& scalars, std::int64_t i) {
  return half_to_double(load_as<std::uint16_t>(scalars.data, scalars.offset + i));
}

TextSpan variant_text(const Variant& value, char* digits) {
  switch (value.tag) {
    case Variant::Tag::null:
      return {nullptr, kNullText};
    case Variant::Tag::text:
      return {value.text, value.length};
    case Variant::Tag::integer:
    case Variant::Tag::time:
    case Variant::Tag::unsigned_integer: {
      const bool is_unsigned = value.tag == Variant::Tag::unsigned_integer;
      return {digits, write_decimal(value.integer, is_unsigned, digits)};
    }
    case Variant::Tag::real:
      return {nullptr, std::isnan(value.real) ? kNullText : kBadText};
    default:
      return {nullptr, kBadText};
  }
}

Status variant_integer(const Variant& value, std::int64_t* out) {
  switch (value.tag) {
    case Variant::Tag::null:
      return Status::null;
    case Variant::Tag::text:
      return text_to_integer({value.text, value.length}, out);
    case Variant::Tag::real:
      return real_to_integer(value.real, out);
    default:
      *out = value.integer;
      return value.tag == Variant::Tag::unsigned_integer ? Status::wide : Status::ok;
  }
}

double variant_number(const Variant& value) {
  switch (value.tag) {
    case Variant::Tag::real:
      return value.real;
    case Variant::Tag::unsigned_integer:
      return static_cast<double>(static_cast<std::uint64_t>(value.integer));
    case Variant::Tag::boolean:
    case Variant::Tag::time:
    case Variant::Tag::integer:
      return static_cast<double>(value.integer);
    default:
      return std::numeric_limits<double>::quiet_NaN();
  }
}

template <class T>
Status number_to_integer(T value, std::int64_t* out) {
  if constexpr (std::is_floating_point_v<T>) {
    return real_to_integer(value, out);
  } else {
    *out = static_cast<std::int64_t>(value);
    return std::is_same_v<T, std::uint64_t> && *out < 0 ? Status::wide : Status::ok;
  }
}

Status scalar_to_integer(const Scalars& scalars, std::int64_t i, std::int64_t* out) {
  switch (scalars.type) {
    case Physical::boolean:
      *out = boolean_at(scalars, i) ? 1 : 0;
      return Status::ok;
    case Physical::float16:
      return real_to_integer(half_at(scalars, i), out);
    case Physical::decimal:
      return decimal_to_integer(scalars, i, out);
    case Physical::timestamp:
    case Physical::date32:
      return time_to_integer(scalars, stored_time(scalars, i), out);
    case Physical::variant:
      return variant_integer(variant_at(scalars, i), out);
    default:
      return text_to_integer(text_at(scalars, i), out);
  }
}

double scalar_to_number(const Scalars& scalars, std::int64_t i, Status* status) {
  *status = Status::ok;
  switch (scalars.type) {
    case Physical::boolean:
      return boolean_at(scalars, i) ? 1.0 : 0.0;
    case Physical::float16:
      return half_at(scalars, i);
    case Physical::decimal:
      return decimal_to_double(scalars, i);
    case Physical::timestamp:
    case Physical::date32: {
      std::int64_t microseconds = 0;
      *status = time_to_integer(scalars, stored_time(scalars, i), &microseconds);
      return static_cast<double>(microseconds);
    }
    case Physical::variant:
      if (variant_at(scalars, i).tag == Variant::Tag::text) *status = Status::bad;
      return variant_number(variant_at(scalars, i));
    default:
      *status = Status::bad;
      return std::numeric_limits<double>::quiet_NaN();
  }
}

// The valid scalar i of a column of times, in microseconds.
Status scalar_to_time(const Scalars& scalars, std::int64_t i, const Storage& storage,
                      std::int64_t* out) {
  Status status = Status::bad;
  switch (scalars.type) {
    case Physical::variant:
      return variant_time(variant_at(scalars, i), storage, out);
    case Physical::timestamp:
    case Physical::date32:
      status = time_to_integer(scalars, stored_time(scalars, i), out);
      if (status == Status::ok) *out = round_down(*out, storage);
      return status;
    case Physical::float16:
      return real_to_time(half_at(scalars, i), storage, out);
    case Physical::boolean:
    case Physical::decimal:
      return Status::bad;
    default:
      break;
  }
  if (is_text(scalars.type)) return text_to_time(text_at(scalars, i), storage, out);
  with_number_type(scalars.type, [&](auto type) {
    using T = decltype(type);
    const T value = load_as<T>(scalars.data, scalars.offset + i);
    if constexpr (std::is_floating_point_v<T>) {
      status = real_to_time(value, storage, out);
    } else {
      const bool wraps = std::is_same_v<T, std::uint64_t> && static_cast<std::int64_t>(value) < 0;
      if (!wraps) status = count_to_time(static_cast<std::int64_t>(value), storage, out);
    }
  });
  return status;
}

TextSpan real_text(double value) { return {nullptr, std::isnan(value) ? kNullText : kBadText}; }

}  // namespace

double round_to(const Storage& storage, double value) {
  switch (storage.kind) {
    case Storage::Kind::float32:
      return static_cast<double>(static_cast<float>(value));
    case Storage::Kind::float16:
      return round_to_half(value);
    case Storage::Kind::decimal:
      return round_to_digits(value, storage.scale);
    default:
      return value;
  }
}

std::string shortest_text(double value) {
  char text[40];
  for (int digits = 1; digits <= 17; ++digits) {
    std::snprintf(text, sizeof text, "%.*g", digits, value);
    if (std::strtod(text, nullptr) == value) break;
  }
  return text;
}

std::optional<bool> boolean_of(const Scalars& scalars, std::int64_t i) {
  if (scalars.type == Physical::boolean) return boolean_at(scalars, i);
  if (scalars.type != Physical::variant) return std::nullopt;
  const Variant& value = variant_at(scalars, i);
  if (value.tag != Variant::Tag::boolean) return std::nullopt;
  return value.integer != 0;
}

std::int64_t write_decimal(std::int64_t value, bool is_unsigned, char* out) {
  const auto written = is_unsigned
                           ? std::to_chars(out, out + kDigits, static_cast<std::uint64_t>(value))
                           : std::to_chars(out, out + kDigits, value);
  return written.ptr - out;
}

bool is_valid(const Scalars& scalars, std::int64_t i) {
  if (scalars.type == Physical::null) return false;
  if (scalars.type == Physical::variant) {
    return variant_at(scalars, i).tag != Variant::Tag::null;
  }
  return scalars.validity == nullptr || bit_at(scalars.validity, scalars.offset + i);
}

void read_text(const Scalars& scalars, std::int64_t begin, std::int64_t n, char* digits,
               TextSpan* out) {
  const auto null = [out](std::int64_t i) { out[i] = {nullptr, kNullText}; };
  const auto read = [&](auto&& fn) {
    for_each_valid(
        scalars, begin, n, [&](std::int64_t i) { out[i] = fn(begin + i, digits + i * kDigits); },
        null);
  };
  switch (scalars.type) {
    case Physical::text32:
      return read([&](std::int64_t i, char*) { return text_between<std::int32_t>(scalars, i); });
    case Physical::text64:
      return read([&](std::int64_t i, char*) { return text_between<std::int64_t>(scalars, i); });
    case Physical::text_view:
      return read([&](std::int64_t i, char*) { return view_at(scalars, i); });
    case Physical::variant:
      return read(
          [&](std::int64_t i, char* room) { return variant_text(variant_at(scalars, i), room); });
    case Physical::float16:
      return read([&](std::int64_t i, char*) { return real_text(half_at(scalars, i)); });
    default:
      break;
  }
  const bool is_number = with_number_type(scalars.type, [&](auto type) {
    using T = decltype(type);
    read([&](std::int64_t i, char* room) -> TextSpan {
      const T value = load_as<T>(scalars.data, scalars.offset + i);
      if constexpr (std::is_floating_point_v<T>) {
        return real_text(value);
      } else {
        return {room, write_decimal(static_cast<std::int64_t>(value),
                                    std::is_same_v<T, std::uint64_t>, room)};
      }
    });
  });
  if (!is_number) read([](std::int64_t, char*) { return TextSpan{nullptr, kBadText}; });
}

namespace {

// Integers of a column that was stored as floating numbers: those that it could have held.
void round_integers(const Storage& storage, std::int64_t n, std::int64_t* out, Status* status) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (status[i] != Status::ok && status[i] != Status::wide) continue;
    const double value = status[i] == Status::wide
                             ? static_cast<double>(static_cast<std::uint64_t>(out[i]))
                             : static_cast<double>(out[i]);
    status[i] = real_to_integer(round_to(storage, value), &out[i]);
  }
}

bool is_floating(const Storage& storage) {
  return storage.kind == Storage::Kind::float16 || storage.kind == Storage::Kind::float32 ||
         storage.kind == Storage::Kind::float64;
}

bool is_floating(Physical type) {
  return type == Physical::float16 || type == Physical::float32 || type == Physical::float64;
}

}  // namespace

void read_integers(const Scalars& scalars, std::int64_t begin, std::int64_t n,
                   const Storage& storage, std::int64_t* out, Status* status) {
  const auto null = [&](std::int64_t i) { out[i] = 0, status[i] = Status::null; };
  if (storage.is_time()) {
    for_each_valid(
        scalars, begin, n,
        [&](std::int64_t i) { status[i] = scalar_to_time(scalars, begin + i, storage, &out[i]); },
        null);
    return;
  }
  if (is_floating(storage) && !(is_floating(scalars.type) && fits_storage(scalars, storage))) {
    read_integers(scalars, begin, n, {}, out, status);
    round_integers(storage, n, out, status);
    return;
  }
  const bool is_number = with_number_type(scalars.type, [&](auto type) {
    for_each_valid(
        scalars, begin, n,
        [&](std::int64_t i) {
          status[i] = number_to_integer(
              load_as<decltype(type)>(scalars.data, scalars.offset + begin + i), &out[i]);
        },
        null);
  });
  if (is_number) return;
  for_each_valid(
      scalars, begin, n,
      [&](std::int64_t i) { status[i] = scalar_to_integer(scalars, begin + i, &out[i]); }, null);
}

namespace {

void read_any_numbers(const Scalars& scalars, std::int64_t begin, std::int64_t n, double* out,
                      Status* status) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const bool is_number = with_number_type(scalars.type, [&](auto type) {
    const std::int64_t first = scalars.offset + begin;
    for (std::int64_t i = 0; i < n; ++i) {
      out[i] = static_cast<double>(load_as<decltype(type)>(scalars.data, first + i));
    }
    if (scalars.validity != nullptr) {
      // Without a branch, which nulls here and there would make wrong: all bits set are a NaN.
      for (std::int64_t i = 0; i < n; ++i) {
        const auto valid = static_cast<std::uint64_t>(bit_at(scalars.validity, first + i));
        out[i] = std::bit_cast<double>(std::bit_cast<std::uint64_t>(out[i]) | (valid - 1));
      }
    }
    std::fill(status, status + n, Status::ok);
  });
  if (is_number) return;
  for_each_valid(
      scalars, begin, n,
      [&](std::int64_t i) { out[i] = scalar_to_number(scalars, begin + i, &status[i]); },
      [&](std::int64_t i) {
        out[i] = kNan;
        status[i] = Status::ok;
      });
}

}  // namespace

void read_numbers(const Scalars& scalars, std::int64_t begin, std::int64_t n,
                  const Storage& storage, double* out, Status* status) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  if (!storage.is_time()) {
    read_any_numbers(scalars, begin, n, out, status);
    if (fits_storage(scalars, storage)) return;
    if (storage.kind == Storage::Kind::float32) {
      for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<double>(static_cast<float>(out[i]));
      return;
    }
    for (std::int64_t i = 0; i < n; ++i) out[i] = round_to(storage, out[i]);
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) {
    std::int64_t time = 0;
    read_integers(scalars, begin + i, 1, storage, &time, status + i);
    out[i] = status[i] == Status::ok ? static_cast<double>(time) : kNan;
    if (status[i] == Status::null) status[i] = Status::ok;
  }
}

namespace {

// Calls fn(place) for each index that is valid and inside the dictionary.
template <class Fn>
void for_each_index(const Column& column, std::int64_t begin, std::int64_t n, IndexMarks marks,
                    std::int64_t* out, Fn&& fn) {
  const Scalars& indices = column.indices;
  const auto size = static_cast<std::uint64_t>(column.values.length);
  with_number_type(indices.type, [&](auto type) {
    for_each_valid(
        indices, begin, n,
        [&](std::int64_t i) {
          const auto place = static_cast<std::int64_t>(
              load_as<decltype(type)>(indices.data, indices.offset + begin + i));
          out[i] = static_cast<std::uint64_t>(place) < size ? fn(place) : marks.outside;
        },
        [&](std::int64_t i) { out[i] = marks.null; });
  });
}

}  // namespace

void read_indices(const Column& column, std::int64_t begin, std::int64_t n, std::int64_t* out) {
  for_each_index(column, begin, n, {-1, -2}, out, [](std::int64_t place) { return place; });
}

bool count_entries(const Column& column, const std::int64_t* weights, std::int64_t* counts) {
  constexpr std::uint64_t kSmall = 1024;
  const Scalars& indices = column.indices;
  const auto size = static_cast<std::uint64_t>(column.values.length);
  // Of few entries one often follows itself, and a sum would wait for the one before it.
  const std::int64_t n_lanes = size <= kSmall ? 4 : 1;
  std::vector<std::int64_t> lanes(n_lanes > 1 ? 3 * size : 0);
  std::int64_t* const lane_counts[4] = {counts, lanes.data(), lanes.data() + lanes.size() / 3,
                                        lanes.data() + lanes.size() / 3 * 2};
  bool is_inside = true;
  with_number_type(indices.type, [&](auto type) {
    for_each_valid(
        indices, 0, column.length,
        [&](std::int64_t i) {
          const auto place =
              static_cast<std::uint64_t>(load_as<decltype(type)>(indices.data, indices.offset + i));
          if (place < size) {
            lane_counts[i & (n_lanes - 1)][place] += weights == nullptr ? 1 : weights[i];
          } else {
            is_inside = false;
          }
        },
        [](std::int64_t) {});
  });
  for (std::size_t i = 0; i < lanes.size(); ++i) counts[i % size] += lanes[i];
  return is_inside;
}

void look_up_indices(const Column& column, std::int64_t begin, std::int64_t n,
                     const std::int64_t* table, IndexMarks marks, std::int64_t* out) {
  for_each_index(column, begin, n, marks, out,
                 [table](std::int64_t place) { return table[place]; });
}

namespace {

std::string describe_real(double value, const char* type) {
  if (std::isnan(value)) return std::string("nan (") + type + ")";
  if (std::isinf(value)) return std::string(value < 0 ? "-inf (" : "inf (") + type + ")";
  const std::string text = shortest_text(value);
  const bool looks_whole = text.find_first_of(".e") == std::string::npos;
  return text + (looks_whole ? ".0 (" : " (") + type + ")";
}

std::string describe_integer(std::int64_t value, bool is_unsigned) {
  char digits[kDigits];
  const std::int64_t length = write_decimal(value, is_unsigned, digits);
  return std::string(digits, static_cast<std::size_t>(length)) + " (int)";
}

std::string describe_variant(const Variant& value) {
  switch (value.tag) {
    case Variant::Tag::boolean:
      return value.integer != 0 ? "True (bool)" : "False (bool)";
    case Variant::Tag::real:
      return describe_real(value.real, "float");
    case Variant::Tag::text:
      return quoted(value.text, value.length) + " (str)";
    case Variant::Tag::null:
      return "None";
    case Variant::Tag::time:
      return "a point in time (timestamp)";
    default:
      return describe_integer(value.integer, value.tag == Variant::Tag::unsigned_integer);
  }
}

}  // namespace

std::string describe(const Scalars& scalars, std::int64_t i) {
  if (!is_valid(scalars, i)) return "null";
  if (is_text(scalars.type)) {
    const TextSpan text = text_at(scalars, i);
    return quoted(text.data, text.length) + (scalars.is_binary ? " (bytes)" : " (str)");
  }
  Status status = Status::ok;
  switch (scalars.type) {
    case Physical::variant:
      return describe_variant(variant_at(scalars, i));
    case Physical::boolean:
      return boolean_at(scalars, i) ? "True (bool)" : "False (bool)";
    case Physical::float16:
    case Physical::float32:
    case Physical::float64: {
      double value = 0;
      read_any_numbers(scalars, i, 1, &value, &status);
      return describe_real(value, "float");
    }
    case Physical::decimal:
      return describe_real(decimal_to_double(scalars, i), "decimal");
    case Physical::timestamp:
    case Physical::date32:
      return "a point in time (timestamp)";
    default: {
      std::int64_t value = 0;
      read_integers(scalars, i, 1, {}, &value, &status);
      return describe_integer(value, status == Status::wide);
    }
  }
}

std::string describe_element(const Column& column, std::int64_t element) {
  if (!column.has_dictionary) return describe(column.values, element);
  std::int64_t place = -1;
  read_indices(column, element, 1, &place);
  if (place == -2) return "an index outside its dictionary";
  return place < 0 ? "null" : describe(column.values, place);
}

}  // namespace widedeep
