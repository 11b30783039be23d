#include "transform_targets.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "fingerprint.hpp"

namespace widedeep::transform {
namespace {

std::size_t as_size(std::int64_t n) { return static_cast<std::size_t>(n); }

[[noreturn]] void throw_target(InputError::Kind kind, const char* role, const std::string& column,
                               std::int64_t row, const Where& where, const std::string& message) {
  throw InputError(kind, std::string(role) + " " + quoted(column) + " (" +
                             row_text(where.origin, where.batch_row + row) + "): " + message);
}

void refuse_lists(const Column& column, InputError::Kind kind, const char* role,
                  const std::string& name, std::int64_t row, const Where& where) {
  if (column.list == ListLayer::none) return;
  throw_target(kind, role, name, row, where, "got a list, expected one value a row");
}

// The place of a row's value among `column.values`, or nothing for a null.
std::optional<std::int64_t> value_place(const Column& column, std::int64_t row) {
  std::int64_t place = row;
  if (column.has_dictionary) read_indices(column, row, 1, &place);
  if (place < 0 || !is_valid(column.values, place)) return std::nullopt;
  return place;
}

constexpr float kNoLabel = std::numeric_limits<float>::quiet_NaN();

const char* kNumberAdvice =
    ", expected a finite number of at most 1e17; correct it or drop the row";

}  // namespace

LabelClasses::LabelClasses(std::vector<std::string> names) : names_(std::move(names)) {
  offsets_.push_back(0);
  for (const std::string& name : names_) {
    bytes_ += name;
    offsets_.push_back(static_cast<std::int64_t>(bytes_.size()));
  }
  lookup_ = std::make_unique<TextVocabulary>(offsets_.data(), bytes_.data(),
                                             static_cast<std::int64_t>(names_.size()));
}

std::string LabelClasses::shown() const {
  constexpr std::size_t kShown = 10;
  std::string text;
  for (std::size_t i = 0; i < std::min(kShown, names_.size()); ++i) {
    text += (i == 0 ? "" : ", ") + quoted(names_[i]);
  }
  if (names_.size() > kShown) text += " and " + std::to_string(names_.size() - kShown) + " more";
  return text;
}

std::optional<std::string> class_text(const Scalars& values, std::int64_t i) {
  if (!is_valid(values, i)) return std::nullopt;
  if (const std::optional<bool> truth = boolean_of(values, i)) return *truth ? "true" : "false";
  char digits[kDigits];
  TextSpan text{};
  read_text(values, i, 1, digits, &text);
  if (text.length >= 0) return std::string(text.data, as_size(text.length));
  double number = 0;
  Status status = Status::ok;
  read_numbers(values, i, 1, {}, &number, &status);
  if (status != Status::ok || std::isnan(number)) return std::nullopt;
  std::int64_t whole = 0;
  read_integers(values, i, 1, {}, &whole, &status);
  return status == Status::ok ? std::to_string(whole) : shortest_text(number);
}

// The classes of scalars [begin, begin + n), -1 for none of them.
void LabelClasses::find_all(const Scalars& values, std::int64_t begin, std::int64_t n,
                            Scratch& scratch, std::int64_t* places) const {
  if (scratch.texts.size() < as_size(n)) scratch.texts.resize(as_size(n));
  if (scratch.digits.size() < as_size(n * kDigits)) scratch.digits.resize(as_size(n * kDigits));
  read_text(values, begin, n, scratch.digits.data(), scratch.texts.data());
  lookup_->find(scratch.texts.data(), n, places);
  for (std::int64_t i = 0; i < n; ++i) {
    if (scratch.texts[as_size(i)].length != kBadText) continue;
    const std::optional<std::string> text = class_text(values, begin + i);
    const TextSpan span = text ? TextSpan{text->data(), static_cast<std::int64_t>(text->size())}
                               : TextSpan{nullptr, kNullText};
    lookup_->find(&span, 1, places + i);
  }
}

void LabelClasses::find_rows(const Column& column, std::int64_t row_begin, std::int64_t n,
                             Scratch& scratch, std::int64_t* places) const {
  if (!column.has_dictionary) {
    find_all(column.values, row_begin, n, scratch, places);
    return;
  }
  read_indices(column, row_begin, n, places);
  std::vector<std::int64_t>& known = scratch.packed;
  const std::int64_t size = column.values.length;
  const bool once = size <= n;  // look each entry up once, or else each row's
  if (known.size() < as_size(size) && once) known.resize(as_size(size));
  if (once) find_all(column.values, 0, size, scratch, known.data());
  for (std::int64_t i = 0; i < n; ++i) {
    if (places[i] < 0) continue;
    if (once) {
      places[i] = known[as_size(places[i])];
    } else {
      find_all(column.values, places[i], 1, scratch, places + i);
    }
  }
}

void Label::encode_classes(const Column& input, std::int64_t row_begin, std::int64_t row_end,
                           const Where& where, Scratch& scratch, float* out,
                           std::int64_t stride) const {
  const std::int64_t n = row_end - row_begin;
  if (scratch.places.size() < as_size(n)) scratch.places.resize(as_size(n));
  std::int64_t* const places = scratch.places.data();
  classes->find_rows(input, row_begin, n, scratch, places);
  for (std::int64_t i = 0; i < n; ++i) {
    if (places[i] < 0) {
      if (nullable && !value_place(input, row_begin + i)) {
        out[i * stride] = kNoLabel;
        continue;
      }
      throw_target(InputError::Kind::feature, "label", column_name, row_begin + i, where,
                   "got " + describe_element(input, row_begin + i) + ", expected one of " +
                       classes->shown() + "; correct it or drop the row");
    }
    out[i * stride] = static_cast<float>(places[i]);
  }
}

// 1 for each class of a row's list, 0 for the others.
void Label::encode_lists(const Column& input, std::int64_t row_begin, std::int64_t row_end,
                         const Where& where, Scratch& scratch, float* out,
                         std::int64_t stride) const {
  constexpr auto kKind = InputError::Kind::feature;
  for (std::int64_t row = row_begin; row < row_end; ++row, out += stride) {
    if (input.list == ListLayer::none || row_is_null(input, row)) {
      const char* const got = input.list == ListLayer::none ? "one value" : "null";
      if (input.list == ListLayer::none || !nullable) {
        throw_target(kKind, "label", column_name, row, where,
                     std::string("got ") + got +
                         ", expected a list of classes; correct it or drop "
                         "the row");
      }
      std::fill(out, out + width(), kNoLabel);
      continue;
    }
    std::fill(out, out + width(), 0.0f);
    const ElementRange range = elements_of(input, row);
    const std::int64_t n = range.end - range.begin;
    if (scratch.places.size() < as_size(n)) scratch.places.resize(as_size(n));
    std::int64_t* const places = scratch.places.data();
    classes->find_rows(input, range.begin, n, scratch, places);
    for (std::int64_t i = 0; i < n; ++i) {
      if (places[i] < 0) {
        throw_target(kKind, "label", column_name, row, where,
                     "got a list with " + describe_element(input, range.begin + i) +
                         ", expected classes of " + classes->shown() +
                         "; correct it or drop the row");
      }
      out[places[i]] = 1.0f;
    }
  }
}

void Label::encode(const Column& input, std::int64_t row_begin, std::int64_t row_end,
                   const Where& where, Scratch& scratch, float* out, std::int64_t stride) const {
  constexpr auto kKind = InputError::Kind::feature;
  if (several) {
    encode_lists(input, row_begin, row_end, where, scratch, out, stride);
    return;
  }
  refuse_lists(input, kKind, is_weight ? "weight" : "label", column_name, row_begin, where);
  if (classes != nullptr) {
    encode_classes(input, row_begin, row_end, where, scratch, out, stride);
    return;
  }
  const std::int64_t n = row_end - row_begin;
  scratch.numbers.resize(std::max(scratch.numbers.size(), as_size(n)));
  scratch.status.resize(std::max(scratch.status.size(), as_size(n)));
  double* const numbers = scratch.numbers.data();
  read_element_numbers(input, {}, row_begin, n, scratch, numbers, scratch.status.data());
  for (std::int64_t i = 0; i < n; ++i) {
    const bool is_number = scratch.status[as_size(i)] == Status::ok;
    if (nullable && is_number && std::isnan(numbers[i])) {
      out[i * stride] = kNoLabel;
      continue;
    }
    if (is_weight && !(is_number && numbers[i] >= 0 && numbers[i] <= kLargestWeight)) {
      throw_target(InputError::Kind::data, "weight", column_name, row_begin + i, where,
                   "got " + describe_element(input, row_begin + i) + kWeightExpected +
                       "; correct it or drop the row");
    }
    if (!is_number || !(std::fabs(numbers[i]) <= kLargestLabel)) {
      throw_target(kKind, "label", column_name, row_begin + i, where,
                   "got " + describe_element(input, row_begin + i) + kNumberAdvice);
    }
    out[i * stride] = static_cast<float>(numbers[i]);
  }
}

void encode_weights(const Column& column, const std::string& name, std::int64_t row_begin,
                    std::int64_t row_end, const Where& where, Scratch& scratch, float* out) {
  refuse_lists(column, InputError::Kind::data, "weight", name, row_begin, where);
  const std::int64_t n = row_end - row_begin;
  scratch.numbers.resize(std::max(scratch.numbers.size(), as_size(n)));
  scratch.status.resize(std::max(scratch.status.size(), as_size(n)));
  double* const numbers = scratch.numbers.data();
  read_element_numbers(column, {}, row_begin, n, scratch, numbers, scratch.status.data());
  for (std::int64_t i = 0; i < n; ++i) {
    const bool fine =
        scratch.status[as_size(i)] == Status::ok && numbers[i] >= 0 && numbers[i] <= kLargestWeight;
    if (!fine) {
      throw_target(InputError::Kind::data, "weight", name, row_begin + i, where,
                   "got " + describe_element(column, row_begin + i) + kWeightExpected +
                       "; correct it or drop the row");
    }
    out[i] = static_cast<float>(numbers[i]);
  }
}

void encode_groups(const Column& column, const std::string& name, std::int64_t row_begin,
                   std::int64_t row_end, const Where& where, Scratch& scratch, std::int64_t* out) {
  refuse_lists(column, InputError::Kind::data, "group", name, row_begin, where);
  const std::int64_t n = row_end - row_begin;
  scratch.digits.resize(std::max<std::size_t>(scratch.digits.size(), kDigits));
  for (std::int64_t i = 0; i < n; ++i) {
    const std::optional<std::int64_t> place = value_place(column, row_begin + i);
    Status status = Status::bad;
    if (place) {
      TextSpan text{};
      read_text(column.values, *place, 1, scratch.digits.data(), &text);
      const bool is_integer = text.length >= 0 && text.data == scratch.digits.data();
      if (text.length >= 0 && !is_integer) {
        out[i] = static_cast<std::int64_t>(fingerprint64(text.data, as_size(text.length)));
        continue;
      }
      read_integers(column.values, *place, 1, {}, out + i, &status);
    }
    if (status != Status::ok && status != Status::wide) {
      throw_target(InputError::Kind::data, "group", name, row_begin + i, where,
                   "got " + describe_element(column, row_begin + i) +
                       ", expected text or an integer; correct it or drop the row");
    }
  }
}

}  // namespace widedeep::transform
