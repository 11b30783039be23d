#include "transform_numbers.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace widedeep::transform {
namespace {

// Products with weights are to stay within float32.
constexpr float kLargestDense = 1e30F;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::size_t as_size(std::int64_t n) { return static_cast<std::size_t>(n); }

[[noreturn]] void throw_feature(const std::string& feature, std::int64_t row, const Where& where,
                                const std::string& message) {
  throw InputError(InputError::Kind::feature, "feature " + quoted(feature) + " (" +
                                                  row_text(where.origin, where.batch_row + row) +
                                                  "): " + message);
}

bool fits(float x) { return std::fabs(x) <= kLargestDense; }

// Without a branch, which nulls here and there would make wrong.
float choose(bool first, float a, float b) noexcept {
  const std::uint32_t mask = std::uint32_t{0} - static_cast<std::uint32_t>(first);
  return std::bit_cast<float>((std::bit_cast<std::uint32_t>(a) & mask) |
                              (std::bit_cast<std::uint32_t>(b) & ~mask));
}

[[noreturn]] void throw_scaled_too_large(const std::string& feature, const std::string& transform,
                                         const Column& column, std::int64_t element,
                                         std::int64_t row, const Where& where) {
  throw_feature(feature, row, where,
                "got " + describe_element(column, element) +
                    ", which transform=" + quoted(transform) +
                    " takes beyond 1e30; scale the column or choose "
                    "transform='quantile'");
}

std::string range_text(const Storage& storage) {
  if (storage.kind == Storage::Kind::float32) return " within float32, as the column was stored,";
  if (storage.kind == Storage::Kind::float16) return " within float16, as the column was stored,";
  return "";
}

// Checks the `n` numbers of one row that were read from `element` on.
void check_numbers(const Column& column, const Storage& storage, const std::string& feature,
                   std::int64_t element, std::int64_t n, const double* numbers,
                   const Status* status, std::int64_t row, const Where& where) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (status[i] == Status::ok && !std::isinf(numbers[i])) continue;
    const std::string got = "got " + describe_element(column, element + i) + ", expected ";
    if (storage.is_time()) {
      throw_feature(feature, row, where, got + kTimeExpected + "; correct it or drop the row");
    }
    if (status[i] != Status::ok) {
      throw_feature(feature, row, where,
                    got +
                        "a number or null; write a number (in JSON without quotes) or null, or "
                        "drop the row");
    }
    throw_feature(
        feature, row, where,
        got + "a finite number" + range_text(storage) + " or null; make it null or drop the row");
  }
}

bool all_finite(const double* numbers, const Status* status, std::int64_t n) noexcept {
  bool fine = true;
  for (std::int64_t i = 0; i < n; ++i) {
    fine &= status[i] == Status::ok && !std::isinf(numbers[i]);
  }
  return fine;
}

void read_row(const Column& column, const Storage& storage, const std::string& feature,
              std::int64_t size, std::int64_t row, const Where& where, Scratch& scratch,
              double* out) {
  const bool is_list = column.list != ListLayer::none;
  if (row_is_null(column, row)) {
    std::fill(out, out + size, kNan);
    return;
  }
  const ElementRange range = elements_of(column, row);
  const std::int64_t n = range.end - range.begin;
  if (!is_list && size > 1 && !is_valid(column.elements(), row)) {
    std::fill(out, out + size, kNan);
    return;
  }
  if (n != size) {
    const std::string got =
        is_list ? "a list of " + std::to_string(n) : describe_element(column, range.begin);
    const std::string expected =
        size == 1 ? "a number or null; declare size=" + std::to_string(n) + " or take one of them"
                  : "a list of " + std::to_string(size) +
                        " numbers or null; make it so or declare another size";
    throw_feature(feature, row, where, "got " + got + ", expected " + expected);
  }
  scratch.status.resize(std::max(scratch.status.size(), as_size(n)));
  read_element_numbers(column, storage, range.begin, n, scratch, out, scratch.status.data());
  check_numbers(column, storage, feature, range.begin, n, out, scratch.status.data(), row, where);
}

}  // namespace

void read_element_numbers(const Column& column, const Storage& storage, std::int64_t begin,
                          std::int64_t n, Scratch& scratch, double* out, Status* status) {
  if (!column.has_dictionary) {
    read_numbers(column.values, begin, n, storage, out, status);
    return;
  }
  if (scratch.places.size() < as_size(n)) scratch.places.resize(as_size(n));
  std::int64_t* const places = scratch.places.data();
  read_indices(column, begin, n, places);
  for (std::int64_t i = 0; i < n; ++i) {
    out[i] = kNan;
    status[i] = places[i] == -2 ? Status::bad : Status::ok;
    if (places[i] >= 0) read_numbers(column.values, places[i], 1, storage, out + i, status + i);
  }
}

void read_feature_numbers(const Column& column, const Storage& storage, const std::string& feature,
                          std::int64_t size, std::int64_t row_begin, std::int64_t row_end,
                          const Where& where, Scratch& scratch) {
  const std::int64_t n = row_end - row_begin;
  if (scratch.numbers.size() < as_size(n * size)) scratch.numbers.resize(as_size(n * size));
  if (scratch.status.size() < as_size(n * size)) scratch.status.resize(as_size(n * size));
  double* const numbers = scratch.numbers.data();
  if (column.list == ListLayer::none && size == 1) {
    Status* const status = scratch.status.data();
    read_element_numbers(column, storage, row_begin, n, scratch, numbers, status);
    if (all_finite(numbers, status, n)) return;
    for (std::int64_t i = 0; i < n; ++i) {
      check_numbers(column, storage, feature, row_begin + i, 1, numbers + i, status + i,
                    row_begin + i, where);
    }
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) {
    read_row(column, storage, feature, size, row_begin + i, where, scratch, numbers + i * size);
  }
}

void NumericFeature::encode(const Column& input, std::int64_t row_begin, std::int64_t row_end,
                            const Where& where, Scratch& scratch, float* out,
                            std::int64_t stride) const {
  read_feature_numbers(input, storage, name, size, row_begin, row_end, where, scratch);
  bool finite = true;
  for (std::int64_t j = 0; j < size; ++j) {
    finite &= encode_component(j, row_end - row_begin, scratch.numbers.data() + j, out + j, stride);
  }
  if (!finite) throw_too_large(input, row_begin, row_end, where, out, stride);
}

void NumericFeature::count(const Cells& cells, std::int64_t n_rows, float* out,
                           std::int64_t stride) const {
  for (std::int64_t row = 0; row < n_rows; ++row, out += stride) {
    std::fill(out, out + size, 0.0F);
    for (std::int64_t i = cells.begin(row); i < cells.end(row); ++i) {
      const std::int64_t place = cells.ids[as_size(i)] - kFirstKnownId;
      if (place >= 0) out[place] += cells.values.empty() ? 1.0F : cells.values[as_size(i)];
    }
  }
}

// Returns whether all results are within kLargestDense.
bool NumericFeature::encode_component(std::int64_t j, std::int64_t n_rows, const double* numbers,
                                      float* out, std::int64_t stride) const {
  constexpr std::int64_t kRun = 64;
  double raw[kRun];
  double scaled[kRun];
  bool finite = true;
  const float missing = fill[as_size(j)];
  for (std::int64_t begin = 0; begin < n_rows; begin += kRun) {
    const std::int64_t n = std::min(kRun, n_rows - begin);
    for (std::int64_t i = 0; i < n; ++i) raw[i] = numbers[(begin + i) * size];
    curves[as_size(j)].apply(raw, n, scaled);
    for (std::int64_t i = 0; i < n; ++i, out += stride) {
      const bool is_missing = std::isnan(raw[i]);
      *out = choose(is_missing, missing, static_cast<float>(scaled[i]));
      finite &= std::fabs(*out) <= kLargestDense;
      if (indicator) out[size] = is_missing ? 1.0F : 0.0F;
    }
  }
  return finite;
}

void NumericFeature::throw_too_large(const Column& input, std::int64_t row_begin,
                                     std::int64_t row_end, const Where& where, const float* out,
                                     std::int64_t stride) const {
  std::int64_t row = row_begin;
  std::int64_t j = 0;
  while (row + 1 < row_end && std::all_of(out, out + size, fits)) {
    ++row;
    out += stride;
  }
  while (j + 1 < size && fits(out[j])) ++j;
  throw_scaled_too_large(name, transform, input, elements_of(input, row).begin + j, row, where);
}

void NumberSequencePart::encode(const PartInput& input, std::int64_t row_begin,
                                std::int64_t row_end, const Where& where, Scratch& scratch,
                                PartCells& out) const {
  out.ids.clear();
  out.keys.clear();
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    append_row(input, row, where, scratch, out.ids);
    out.ids.ends.push_back(static_cast<std::int64_t>(out.ids.ids.size()));
  }
}

void NumberSequencePart::append_row(const PartInput& input, std::int64_t row, const Where& where,
                                    Scratch& scratch, Cells& out) const {
  const Column& column = *input.column;
  if (input.parallel != nullptr) {
    check_parallel(input, row, where, name(), options_.column_name, options_.parallel_name);
  }
  if (row_is_null(column, row)) {
    out.ids.push_back(kMissingId);
    out.values.push_back(1.0F);
    return;
  }
  const ElementRange range = elements_of(column, row);
  const std::int64_t size = range.end - range.begin;
  const auto [n, first] = KeptRange(size, options_.maxlen, options_.keep_first);
  if (n < size) truncated.fetch_add(1, std::memory_order_relaxed);
  if (scratch.numbers.size() < as_size(2 * n)) scratch.numbers.resize(as_size(2 * n));
  if (scratch.status.size() < as_size(n)) scratch.status.resize(as_size(n));
  double* const numbers = scratch.numbers.data();
  double* const scaled = numbers + n;
  const std::int64_t begin = range.begin + first;
  read_element_numbers(column, storage, begin, n, scratch, numbers, scratch.status.data());
  check_numbers(column, storage, name(), begin, n, numbers, scratch.status.data(), row, where);
  options_.curve.apply(numbers, n, scaled);
  for (std::int64_t i = 0; i < n; ++i) {
    const bool is_missing = std::isnan(numbers[i]);
    const float value = is_missing ? 1.0F : static_cast<float>(scaled[i]);
    if (!fits(value)) {
      throw_scaled_too_large(name(), options_.transform, column, begin + i, row, where);
    }
    out.ids.push_back(is_missing ? kMissingId : kFirstKnownId);
    out.values.push_back(value);
  }
}

}  // namespace widedeep::transform
