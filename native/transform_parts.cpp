#include "transform_parts.hpp"

#include <algorithm>
#include <cmath>

#include "fingerprint.hpp"

namespace widedeep::transform {
namespace {

// Marks among the ids of elements, before they are gathered into rows.
constexpr std::int64_t kNullMark = -1;
constexpr std::int64_t kDroppedMark = -2;
constexpr std::int64_t kBadMark = -3;

std::size_t as_size(std::int64_t n) { return static_cast<std::size_t>(n); }

template <class T>
T* room(std::vector<T>& buffer, std::int64_t n) {
  if (buffer.size() < as_size(n)) buffer.resize(as_size(n));
  return buffer.data();
}

std::uint64_t text_hash(const TextSpan& text) {
  return fingerprint64(text.data, as_size(text.length));
}

// TensorFlow hashes an integer as its decimal text.
std::uint64_t decimal_hash(std::int64_t value, bool is_unsigned) {
  char digits[kDigits];
  return fingerprint64(digits, as_size(write_decimal(value, is_unsigned, digits)));
}

// Weights that are all tiny, by a power of two: their squares then stay above zero in float32. What
// they weigh together is as before for a mean, and nothing to speak of for a sum.
void scale_up_tiny(double* weights, std::int64_t n) {
  constexpr int kSmallest = -60;
  const double largest = n == 0 ? 0 : *std::max_element(weights, weights + n);
  if (largest == 0 || largest >= std::ldexp(1.0, kSmallest)) return;
  const int shift = kSmallest - std::ilogb(largest);
  for (std::int64_t i = 0; i < n; ++i) weights[i] = std::ldexp(weights[i], shift);
}

bool element_is_valid(const Column& column, std::int64_t element) {
  if (!is_valid(column.elements(), element)) return false;
  std::int64_t place = element;
  if (column.has_dictionary) read_indices(column, element, 1, &place);
  return place < 0 || is_valid(column.values, place);
}

// A table pays off where entries are used about as often as there are entries.
bool table_pays_off(const Column& column) {
  return column.has_dictionary && column.values.length <= 2 * column.indices.length + 64;
}

}  // namespace

void check_parallel(const PartInput& input, std::int64_t row, const Where& where,
                    const std::string& feature, const std::string& column,
                    const std::string& parallel) {
  const auto text = [row](const Column& list) {
    const bool is_flat_null = list.list == ListLayer::none && !element_is_valid(list, row);
    if (row_is_null(list, row) || is_flat_null) return std::string("null");
    const ElementRange range = elements_of(list, row);
    return "a list of " + std::to_string(range.end - range.begin);
  };
  const std::string own = text(*input.column);
  const std::string other = text(*input.parallel);
  if (own == other) return;
  throw InputError(InputError::Kind::feature,
                   "feature " + quoted(feature) + " (" +
                       row_text(where.origin, where.batch_row + row) + "): got " + own +
                       " in column " + quoted(column) + " and " + other + " in column " +
                       quoted(parallel) +
                       ", expected one value an event in both; make the lists equally long, with "
                       "null where a value is unknown");
}

std::int64_t CategoricalPart::vocabulary_size() const noexcept {
  if (options_.texts != nullptr) return options_.texts->size();
  return options_.integers != nullptr ? options_.integers->size() : 0;
}

std::int64_t CategoricalPart::id_limit() const noexcept {
  const std::int64_t m = options_.remainders;
  const std::int64_t buckets = m > 0 ? m + (options_.buckets + m - 1) / m : options_.buckets;
  return kFirstKnownId + buckets + options_.oov_buckets + vocabulary_size();
}

std::int64_t CategoricalPart::known_or_unseen(std::int64_t place,
                                              std::uint64_t hash) const noexcept {
  if (place >= 0) return kFirstKnownId + options_.oov_buckets + place;
  if (options_.default_id) return *options_.default_id;
  if (options_.drop_unseen) return kDroppedMark;
  if (options_.oov_buckets == 0) return kUnseenId;
  return kFirstKnownId +
         static_cast<std::int64_t>(hash % static_cast<std::uint64_t>(options_.oov_buckets));
}

// TensorFlow's id: the place in the vocabulary, out-of-vocabulary buckets behind it, or -1.
std::int64_t CategoricalPart::place_key(std::int64_t place, std::uint64_t hash) const noexcept {
  if (place >= 0) return place;
  if (options_.oov_buckets == 0) return -1;
  return vocabulary_size() +
         static_cast<std::int64_t>(hash % static_cast<std::uint64_t>(options_.oov_buckets));
}

// The key of a value in its place, or that of the default for a value without one.
std::int64_t CategoricalPart::known_key(std::int64_t place, std::int64_t key) const noexcept {
  return place < 0 && options_.default_id ? options_.default_key : key;
}

void CategoricalPart::finish_text(const TextSpan& text, std::int64_t* id, std::int64_t* key) const {
  if (text.length < 0 || (text.length == 0 && options_.empty_as_null)) {
    *id = text.length == kBadText ? kBadMark : kNullMark;
    return;
  }
  const bool hashed = options_.way == Way::hash_text;
  const std::int64_t place = hashed ? -1 : *id;
  const bool needs_hash =
      hashed || (place < 0 && options_.oov_buckets > 0) || (key && !options_.key_is_place);
  const std::uint64_t hash = needs_hash ? text_hash(text) : 0;
  if (key != nullptr) {
    const std::int64_t own =
        options_.key_is_place ? place_key(place, hash) : static_cast<std::int64_t>(hash);
    *key = known_key(place, own);
  }
  *id = hashed ? kFirstKnownId +
                     static_cast<std::int64_t>(hash % static_cast<std::uint64_t>(options_.buckets))
               : known_or_unseen(place, hash);
}

void CategoricalPart::finish_integer(std::int64_t value, Status status, std::int64_t* id,
                                     std::int64_t* key) const {
  if (status == Status::null || status == Status::bad) {
    *id = status == Status::null ? kNullMark : kBadMark;
    return;
  }
  const bool wide = status == Status::wide;
  if (options_.way == Way::identity) {
    const bool inside = !wide && value >= 0 && value < options_.buckets;
    if (key != nullptr) *key = known_key(inside ? value : -1, value);
    *id = inside ? kFirstKnownId + value : known_or_unseen(-1, 0);
    return;
  }
  const bool hashed = options_.way == Way::hash_integer;
  const std::int64_t place = hashed || wide ? -1 : *id;
  const bool needs_hash = hashed || (place < 0 && options_.oov_buckets > 0);
  const std::uint64_t hash = needs_hash ? decimal_hash(value, wide) : 0;
  if (key != nullptr) {
    *key = known_key(place, options_.key_is_place ? place_key(place, hash) : value);
  }
  *id = hashed ? kFirstKnownId +
                     static_cast<std::int64_t>(hash % static_cast<std::uint64_t>(options_.buckets))
               : known_or_unseen(place, hash);
}

void CategoricalPart::encode_texts(const Scalars& scalars, std::int64_t begin, std::int64_t n,
                                   Scratch& scratch, std::int64_t* ids, std::int64_t* keys) const {
  TextSpan* const texts = room(scratch.texts, n);
  read_text(scalars, begin, n, room(scratch.digits, n * kDigits), texts);
  if (options_.texts != nullptr) options_.texts->find(texts, n, ids);
  const bool plain = options_.texts != nullptr && keys == nullptr && !options_.empty_as_null;
  const std::int64_t first = kFirstKnownId + options_.oov_buckets;
  for (std::int64_t i = 0; i < n; ++i) {
    if (plain && ids[i] >= 0) {
      ids[i] += first;
    } else {
      finish_text(texts[i], ids + i, keys == nullptr ? nullptr : keys + i);
    }
  }
}

void CategoricalPart::encode_integers(const Scalars& scalars, std::int64_t begin, std::int64_t n,
                                      Scratch& scratch, std::int64_t* ids,
                                      std::int64_t* keys) const {
  std::int64_t* const values = room(scratch.integers, n);
  Status* const status = room(scratch.status, n);
  read_integers(scalars, begin, n, storage, values, status);
  if (options_.empty_as_null) {
    for (std::int64_t i = 0; i < n; ++i) {
      if (status[i] != Status::bad) continue;
      TextSpan text{};
      read_text(scalars, begin + i, 1, room(scratch.digits, kDigits), &text);
      if (text.length == 0) status[i] = Status::null;
    }
  }
  if (options_.integers != nullptr) options_.integers->find(values, n, ids);
  for (std::int64_t i = 0; i < n; ++i) {
    finish_integer(values[i], status[i], ids + i, keys == nullptr ? nullptr : keys + i);
  }
}

void CategoricalPart::encode_scalars(const Scalars& scalars, std::int64_t begin, std::int64_t n,
                                     Scratch& scratch, std::int64_t* ids,
                                     std::int64_t* keys) const {
  if (reads_text()) {
    encode_texts(scalars, begin, n, scratch, ids, keys);
  } else {
    encode_integers(scalars, begin, n, scratch, ids, keys);
  }
}

DictionaryTable CategoricalPart::dictionary_table(const Column& column) const {
  DictionaryTable table;
  if (!table_pays_off(column)) return table;
  constexpr std::int64_t kRun = 4096;  // keeps the scratch small
  const std::int64_t size = column.values.length;
  Scratch scratch;
  table.ids.resize(as_size(size));
  if (wants_keys) table.keys.resize(as_size(size));
  for (std::int64_t begin = 0; begin < size; begin += kRun) {
    encode_scalars(column.values, begin, std::min(kRun, size - begin), scratch,
                   table.ids.data() + begin, wants_keys ? table.keys.data() + begin : nullptr);
  }
  return table;
}

void CategoricalPart::encode_elements(const PartInput& input, std::int64_t begin, std::int64_t n,
                                      Scratch& scratch, std::int64_t* ids,
                                      std::int64_t* keys) const {
  const Column& column = *input.column;
  if (!column.has_dictionary) {
    encode_scalars(column.values, begin, n, scratch, ids, keys);
    return;
  }
  const bool has_table = input.table != nullptr && !input.table->empty();
  if (has_table && keys == nullptr) {
    look_up_indices(column, begin, n, input.table->ids.data(), {kNullMark, kBadMark}, ids);
    return;
  }
  std::int64_t* const places = room(scratch.places, n);
  read_indices(column, begin, n, places);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t place = places[i];
    if (place < 0) {
      ids[i] = place == -1 ? kNullMark : kBadMark;
    } else if (has_table) {
      ids[i] = input.table->ids[as_size(place)];
      keys[i] = input.table->keys[as_size(place)];
    } else {
      encode_scalars(column.values, place, 1, scratch, ids + i,
                     keys == nullptr ? nullptr : keys + i);
    }
  }
}

void CategoricalPart::throw_bad(const Column& column, std::int64_t element, std::int64_t row,
                                const Where& where) const {
  const char* expected = reads_text() ? "text, an integer or null"
                         : storage.is_time()
                             ? kTimeExpected
                             : "a whole number of at most 64 bits (as a float below 2**53) or null";
  const char* advice = reads_text()        ? " to text"
                       : storage.is_time() ? " to timestamps"
                                           : " to integers or declare the feature over text";
  throw InputError(InputError::Kind::feature, "feature " + quoted(name()) + " (" +
                                                  row_text(where.origin, where.batch_row + row) +
                                                  "): got " + describe_element(column, element) +
                                                  ", expected " + expected + "; convert column " +
                                                  quoted(options_.column_name) + advice);
}

void CategoricalPart::read_weights(const PartInput& input, std::int64_t row, std::int64_t size,
                                   std::int64_t first, std::int64_t n, const Where& where,
                                   Scratch& scratch) const {
  const Column& weights = *input.weights;
  const auto fail = [&](const std::string& got) {
    throw InputError(InputError::Kind::feature, "feature " + quoted(name()) + " (" +
                                                    row_text(where.origin, where.batch_row + row) +
                                                    "): got " + got);
  };
  const ElementRange range = elements_of(weights, row);
  const bool is_one_null = weights.list == ListLayer::none && !element_is_valid(weights, row);
  const bool is_null =
      row_is_null(weights, row) || (is_one_null && input.column->list != ListLayer::none);
  if (is_null && size == 0) return;
  if (is_null || range.end - range.begin != size) {
    const std::string got = is_null ? "null in place of the weights"
                                    : std::to_string(range.end - range.begin) + " weights";
    fail(got + " in column " + quoted(options_.weights_name) + " for " + std::to_string(size) +
         " values, expected one a value; make the lists equally long");
  }
  double* const numbers = room(scratch.numbers, n);
  Status* const status = room(scratch.status, n);
  const std::int64_t begin = range.begin + first;
  read_element_numbers(weights, {}, begin, n, scratch, numbers, status);
  for (std::int64_t i = 0; i < n; ++i) {
    if (status[i] == Status::ok && numbers[i] >= 0 && numbers[i] <= kLargestWeight) continue;
    fail(describe_element(weights, begin + i) + " as a weight in column " +
         quoted(options_.weights_name) + kWeightExpected + "; correct it or drop the row");
  }
  scale_up_tiny(numbers, n);
}

void CategoricalPart::append_row(const PartInput& input, std::int64_t row, ElementRange elements,
                                 const std::int64_t* ids, const std::int64_t* keys,
                                 const Where& where, Scratch& scratch, PartCells& out) const {
  const std::int64_t size = elements.end - elements.begin;
  const auto [n, first] = KeptRange(size, options_.maxlen, options_.keep_first);
  const bool weighted = input.weights != nullptr;
  if (input.parallel != nullptr) {
    check_parallel(input, row, where, name(), options_.column_name, options_.parallel_name);
  }
  const bool is_flat_null = input.column->list == ListLayer::none && ids[0] == kNullMark;
  if (row_is_null(*input.column, row) || is_flat_null) {
    out.ids.ids.push_back(kMissingId);
    if (weighted) out.ids.values.push_back(1.0F);
  } else {
    if (n < size) truncated.fetch_add(1, std::memory_order_relaxed);
    for (std::int64_t i = first; i < first + n; ++i) {
      if (ids[i] == kBadMark) throw_bad(*input.column, elements.begin + i, row, where);
    }
    if (weighted) read_weights(input, row, size, first, n, where, scratch);
    for (std::int64_t i = first; i < first + n; ++i) {
      const bool is_null = ids[i] == kNullMark;
      if (is_null && !options_.keeps_nulls) continue;
      if (wants_keys && !is_null) out.keys.ids.push_back(keys[i]);
      if (ids[i] == kDroppedMark) continue;
      const auto weight = weighted ? static_cast<float>(scratch.numbers[as_size(i - first)]) : 1.0F;
      const auto append = [&](std::int64_t id) {
        out.ids.ids.push_back(id);
        if (weighted) out.ids.values.push_back(weight);
      };
      if (is_null || options_.remainders == 0) {
        append(is_null ? kMissingId : ids[i]);
        continue;
      }
      const std::int64_t bucket = ids[i] - kFirstKnownId;
      append(kFirstKnownId + bucket % options_.remainders);
      append(kFirstKnownId + options_.remainders + bucket / options_.remainders);
    }
  }
  out.ids.ends.push_back(static_cast<std::int64_t>(out.ids.ids.size()));
  // Not by `keys`: for a row without items it may be null.
  if (wants_keys) out.keys.ends.push_back(static_cast<std::int64_t>(out.keys.ids.size()));
}

void CategoricalPart::encode_flat(const PartInput& input, std::int64_t row_begin,
                                  std::int64_t row_end, const Where& where, Scratch& scratch,
                                  PartCells& out) const {
  const std::int64_t n = row_end - row_begin;
  out.ids.ids.resize(as_size(n));
  if (wants_keys) out.keys.ids.resize(as_size(n));
  std::int64_t* const ids = out.ids.ids.data();
  encode_elements(input, row_begin, n, scratch, ids, wants_keys ? out.keys.ids.data() : nullptr);
  std::int64_t signs = 0;
  for (std::int64_t i = 0; i < n; ++i) signs |= ids[i];
  const bool alone =
      input.weights == nullptr && input.parallel == nullptr && options_.remainders == 0;
  if (signs >= 0 && alone) return;
  if (alone && !options_.drop_unseen && !wants_keys) {
    for (std::int64_t i = 0; i < n; ++i) {
      if (ids[i] == kBadMark) throw_bad(*input.column, row_begin + i, row_begin + i, where);
      if (ids[i] == kNullMark) ids[i] = kMissingId;
    }
    return;
  }
  scratch.element_ids.assign(ids, ids + n);
  scratch.element_keys.assign(out.keys.ids.begin(), out.keys.ids.end());
  out.ids.clear();
  out.keys.clear();
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t row = row_begin + i;
    append_row(input, row, {row, row + 1}, scratch.element_ids.data() + i,
               wants_keys ? scratch.element_keys.data() + i : nullptr, where, scratch, out);
  }
}

void CategoricalPart::encode_lists(const PartInput& input, std::int64_t row_begin,
                                   std::int64_t row_end, const Where& where, Scratch& scratch,
                                   PartCells& out) const {
  const Column& column = *input.column;
  const bool contiguous = column.list != ListLayer::view32 && column.list != ListLayer::view64;
  // Items of consecutive rows lie one after the other, except in list views.
  const std::int64_t run = contiguous ? row_end - row_begin : 1;
  for (std::int64_t first = row_begin; first < row_end; first += run) {
    const std::int64_t begin = elements_of(column, first).begin;
    const std::int64_t n = elements_of(column, first + run - 1).end - begin;
    std::int64_t* const ids = room(scratch.element_ids, n);
    std::int64_t* const keys = wants_keys ? room(scratch.element_keys, n) : nullptr;
    encode_elements(input, begin, n, scratch, ids, keys);
    for (std::int64_t row = first; row < first + run; ++row) {
      const ElementRange range = elements_of(column, row);
      append_row(input, row, range, ids + (range.begin - begin),
                 wants_keys ? keys + (range.begin - begin) : nullptr, where, scratch, out);
    }
  }
}

void CategoricalPart::encode(const PartInput& input, std::int64_t row_begin, std::int64_t row_end,
                             const Where& where, Scratch& scratch, PartCells& out) const {
  out.ids.clear();
  out.keys.clear();
  if (input.column->list == ListLayer::none) {
    encode_flat(input, row_begin, row_end, where, scratch, out);
  } else {
    encode_lists(input, row_begin, row_end, where, scratch, out);
  }
}

CutPoints::CutPoints(std::vector<double> cuts) : cuts_(std::move(cuts)) {
  for (const double cut : cuts_) {
    as_float32_.push_back(round_to({Storage::Kind::float32, 0, 1}, cut));
    as_float16_.push_back(round_to({Storage::Kind::float16, 0, 1}, cut));
  }
}

// Numbers that come narrower than their column was stored are compared in their own width: 0.7
// lies in the bucket from 0.7 on, in float32 too. Those of decimals were rounded to their digits.
const std::vector<double>& CutPoints::of(const Column& column, const Storage& storage) const {
  const Physical type = column.values.type;
  const bool is_wide = storage.kind == Storage::Kind::float64;
  if (type == Physical::float32 && is_wide) return as_float32_;
  if (type == Physical::float16 && (is_wide || storage.kind == Storage::Kind::float32)) {
    return as_float16_;
  }
  return cuts_;
}

namespace {

std::int64_t bucket_of(const std::vector<double>& boundaries, double value) {
  return std::upper_bound(boundaries.begin(), boundaries.end(), value) - boundaries.begin();
}

}  // namespace

void BucketizedPart::encode_vectors(const std::vector<double>& boundaries, std::int64_t n,
                                    const double* numbers, PartCells& out) const {
  for (std::int64_t row = 0; row < n; ++row, numbers += size_) {
    const std::size_t first = out.ids.ids.size();
    for (std::int64_t i = 0; i < size_; ++i) {
      if (std::isnan(numbers[i])) continue;
      const std::int64_t place = i * n_buckets() + bucket_of(boundaries, numbers[i]);
      out.ids.ids.push_back(kFirstKnownId + place);
      if (wants_keys) out.keys.ids.push_back(place);
    }
    if (out.ids.ids.size() == first) out.ids.ids.push_back(kMissingId);
    out.ids.ends.push_back(static_cast<std::int64_t>(out.ids.ids.size()));
    if (wants_keys) out.keys.ends.push_back(static_cast<std::int64_t>(out.keys.ids.size()));
  }
}

void BucketizedPart::encode(const PartInput& input, std::int64_t row_begin, std::int64_t row_end,
                            const Where& where, Scratch& scratch, PartCells& out) const {
  const std::int64_t n = row_end - row_begin;
  read_feature_numbers(*input.column, storage, name(), size_, row_begin, row_end, where, scratch);
  out.ids.clear();
  out.keys.clear();
  const std::vector<double>& boundaries = boundaries_.of(*input.column, storage);
  if (size_ > 1) {
    encode_vectors(boundaries, n, scratch.numbers.data(), out);
    return;
  }
  out.ids.ids.resize(as_size(n));
  for (std::int64_t i = 0; i < n; ++i) {
    const double value = scratch.numbers[as_size(i)];
    const bool missing = std::isnan(value);
    const std::int64_t bucket = bucket_of(boundaries, value);
    out.ids.ids[as_size(i)] = missing ? kMissingId : kFirstKnownId + bucket;
    if (!wants_keys) continue;
    if (!missing) out.keys.ids.push_back(bucket);
    out.keys.ends.push_back(static_cast<std::int64_t>(out.keys.ids.size()));
  }
}

void PiecewisePart::encode(const PartInput& input, std::int64_t row_begin, std::int64_t row_end,
                           const Where& where, Scratch& scratch, PartCells& out) const {
  const std::int64_t n = row_end - row_begin;
  read_feature_numbers(*input.column, storage, name(), 1, row_begin, row_end, where, scratch);
  out.ids.clear();
  out.keys.clear();
  const std::vector<double>& cuts = cuts_.of(*input.column, storage);
  const auto add = [&](std::int64_t id, float weight) {
    out.ids.ids.push_back(id);
    out.ids.values.push_back(weight);
  };
  for (std::int64_t i = 0; i < n; ++i) {
    const double value = scratch.numbers[as_size(i)];
    // Cut points at or below the value; rounded ones may be equal, and the last of these counts.
    const auto above = std::upper_bound(cuts.begin(), cuts.end(), value) - cuts.begin();
    if (std::isnan(value)) {
      add(kMissingId, 1.0F);
    } else if (cuts.empty()) {
      add(kUnseenId, 1.0F);
    } else if (above == 0 || above == std::ssize(cuts)) {
      add(kFirstKnownId + std::max<std::int64_t>(above - 1, 0), 1.0F);
    } else {
      const double low = cuts[as_size(above - 1)];
      // By halves, whose difference stays within float64.
      const double fraction = (value / 2 - low / 2) / (cuts[as_size(above)] / 2 - low / 2);
      const auto upper = static_cast<float>(fraction);
      if (upper < 1.0F) add(kFirstKnownId + above - 1, static_cast<float>(1.0 - fraction));
      if (upper > 0.0F) add(kFirstKnownId + above, upper);
    }
    out.ids.ends.push_back(static_cast<std::int64_t>(out.ids.ids.size()));
  }
}

}  // namespace widedeep::transform
