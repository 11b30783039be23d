#include "vocabulary.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace widedeep {
namespace {

constexpr std::uint32_t kEmpty = std::numeric_limits<std::uint32_t>::max();
constexpr std::int64_t kBatch = 64;
constexpr std::uint64_t kOdd1 = 0x9e3779b97f4a7c15;  // 2^64 over the golden ratio
constexpr std::uint64_t kOdd2 = 0xd6e8feb86659fd93;

__extension__ typedef unsigned __int128 Wide;

// Both halves of the product: every bit of the inputs reaches the high bits, which choose the slot.
std::uint64_t mix(std::uint64_t a, std::uint64_t b) noexcept {
  const Wide product = static_cast<Wide>(a ^ kOdd1) * (b ^ kOdd2);
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

// A number below `capacity` (at most 2^32) from the high bits of a hash.
std::uint64_t slot_of(std::uint64_t hash, std::uint64_t capacity) noexcept {
  return ((hash >> 32) * capacity) >> 32;
}

std::uint64_t next_slot(std::uint64_t slot, std::uint64_t capacity) noexcept {
  return slot + 1 == capacity ? 0 : slot + 1;
}

std::uint64_t capacity_for(std::int64_t size) {
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  if (size > kMost) {
    throw std::invalid_argument("got " + std::to_string(size) +
                                " values, a vocabulary holds at most " + std::to_string(kMost));
  }
  const auto n = static_cast<std::uint64_t>(size);
  return 2 * n + 1;  // half full at most: a search ends soon, and always at a free slot
}

std::uint64_t load(const char* at, std::size_t n) noexcept {
  std::uint64_t word = 0;
  std::memcpy(&word, at, n);
  return word;
}

// The bytes of a text of at most 8, zero-padded, read without touching what lies behind it.
std::uint64_t short_payload(const char* s, std::int64_t n) noexcept {
  if (n == 8) return load(s, 8);
  if (n >= 4) return load(s, 4) | load(s + n - 4, 4) << ((n - 4) * 8);
  if (n == 0) return 0;
  return load(s, 1) | load(s + n / 2, 1) << (n / 2 * 8) | load(s + n - 1, 1) << ((n - 1) * 8);
}

std::uint64_t hash_text(const TextSpan& text) noexcept {
  const char* s = text.data;
  const std::int64_t n = text.length;
  const auto length = static_cast<std::uint64_t>(n);
  if (n <= 8) return mix(short_payload(s, n), length);
  std::uint64_t hash = length;
  const char* const last = s + n - 16;
  if (n > 16) {
    for (; s < last; s += 16) hash = mix(load(s, 8) ^ hash, load(s + 8, 8));
    return mix(load(last, 8) ^ hash, load(last + 8, 8));
  }
  return mix(load(s, 8) ^ hash, load(s + n - 8, 8));
}

std::uint32_t tag_of(std::uint64_t hash, std::int64_t length) noexcept {
  const auto shown = static_cast<std::uint32_t>(std::min<std::int64_t>(length, 255));
  return static_cast<std::uint32_t>(hash) << 8 | shown;
}

[[noreturn]] void throw_twice(std::int64_t first, std::int64_t second) {
  throw std::invalid_argument("got one value at positions " + std::to_string(first) + " and " +
                              std::to_string(second) + " of a vocabulary");
}

[[noreturn]] void throw_foreign(std::uint64_t at) {
  throw std::invalid_argument("got an index that is not of its vocabulary (slot " +
                              std::to_string(at) + ")");
}

void check_slots(std::size_t n_slots, std::uint64_t expected) {
  if (n_slots != expected) throw_foreign(n_slots);
}

}  // namespace

TextVocabulary::TextVocabulary(const std::int64_t* offsets, const char* bytes, std::int64_t size)
    : offsets_(offsets),
      bytes_(bytes),
      size_(size),
      capacity_(capacity_for(size)),
      table_(capacity_, Slot{0, 0, kEmpty}),
      slots_(table_.data()) {
  for (std::int64_t i = 0; i < size; ++i) {
    const TextSpan text = value(i);
    if (text.length < 0) throw std::invalid_argument("got offsets of a vocabulary that decrease");
    const std::uint64_t hash = hash_text(text);
    const std::uint64_t payload = text.length <= 8
                                      ? short_payload(text.data, text.length)
                                      : static_cast<std::uint64_t>(offsets[i] - offsets[0]);
    const std::uint32_t tag = tag_of(hash, text.length);
    std::uint64_t at = slot_of(hash, capacity_);
    for (; slots_[at].position != kEmpty; at = next_slot(at, capacity_)) {
      if (holds(slots_[at], text, payload, tag)) throw_twice(slots_[at].position, i);
    }
    table_.own(at) = {payload, tag, static_cast<std::uint32_t>(i)};
  }
}

TextVocabulary::TextVocabulary(const std::int64_t* offsets, const char* bytes, std::int64_t size,
                               const Slot* slots, std::size_t n_slots)
    : offsets_(offsets),
      bytes_(bytes),
      size_(size),
      capacity_(capacity_for(size)),
      table_(slots, n_slots),
      slots_(slots) {
  check_slots(n_slots, capacity_);
  const auto n_bytes = static_cast<std::uint64_t>(offsets[size] - offsets[0]);
  std::int64_t n_used = 0;
  for (std::uint64_t at = 0; at < capacity_; ++at) {
    const Slot& slot = slots[at];
    if (slot.position == kEmpty) continue;
    ++n_used;
    const std::uint64_t length = slot.tag & 255;
    // A length of 255 stands for longer texts too, whose length is looked up.
    const bool inside =
        slot.position < static_cast<std::uint64_t>(size) &&
        (length <= 8 || (slot.payload <= n_bytes && length <= n_bytes - slot.payload)) &&
        (length < 255 ||
         slot.payload == static_cast<std::uint64_t>(offsets[slot.position] - offsets[0]));
    if (!inside) throw_foreign(at);
  }
  if (n_used != size) throw_foreign(capacity_);
}

TextSpan TextVocabulary::value(std::int64_t position) const noexcept {
  return {bytes_ + (offsets_[position] - offsets_[0]), offsets_[position + 1] - offsets_[position]};
}

bool TextVocabulary::holds(const Slot& slot, const TextSpan& text, std::uint64_t payload,
                           std::uint32_t tag) const noexcept {
  if (slot.tag != tag) return false;
  if (text.length <= 8) return slot.payload == payload;
  const auto length = static_cast<std::size_t>(text.length);
  if (text.length >= 255 && value(slot.position).length != text.length) return false;
  return std::memcmp(bytes_ + slot.payload, text.data, length) == 0;
}

std::int64_t TextVocabulary::find_one(const TextSpan& text, std::uint64_t payload,
                                      std::uint64_t hash) const noexcept {
  const std::uint32_t tag = tag_of(hash, text.length);
  std::uint64_t at = slot_of(hash, capacity_);
  for (; slots_[at].position != kEmpty; at = next_slot(at, capacity_)) {
    if (holds(slots_[at], text, payload, tag)) return slots_[at].position;
  }
  return -1;
}

// Of texts of at most 8 bytes; the empty slot ends the search, whatever its payload.
std::int64_t TextVocabulary::find_short(std::uint64_t payload, std::uint32_t tag,
                                        std::uint64_t at) const noexcept {
  while (slots_[at].payload != payload || slots_[at].tag != tag) {
    if (slots_[at].position == kEmpty) return -1;
    at = next_slot(at, capacity_);
  }
  return slots_[at].position == kEmpty ? -1 : static_cast<std::int64_t>(slots_[at].position);
}

void TextVocabulary::find(const TextSpan* values, std::int64_t n,
                          std::int64_t* positions) const noexcept {
  std::uint64_t hashes[kBatch];
  std::uint64_t payloads[kBatch];
  for (std::int64_t begin = 0; begin < n; begin += kBatch) {
    const std::int64_t count = std::min(kBatch, n - begin);
    const TextSpan* const batch = values + begin;
    for (std::int64_t i = 0; i < count; ++i) {
      const bool is_short = batch[i].length <= 8;
      payloads[i] =
          is_short && batch[i].length >= 0 ? short_payload(batch[i].data, batch[i].length) : 0;
      hashes[i] = is_short ? mix(payloads[i], static_cast<std::uint64_t>(batch[i].length))
                           : hash_text(batch[i]);
      __builtin_prefetch(&slots_[slot_of(hashes[i], capacity_)]);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      if (batch[i].length <= 8) continue;
      const Slot& slot = slots_[slot_of(hashes[i], capacity_)];
      if (slot.tag == tag_of(hashes[i], batch[i].length)) __builtin_prefetch(bytes_ + slot.payload);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const TextSpan& text = batch[i];
      if (text.length > 8) {
        positions[begin + i] = find_one(text, 0, hashes[i]);
      } else if (text.length >= 0) {
        positions[begin + i] =
            find_short(payloads[i], tag_of(hashes[i], text.length), slot_of(hashes[i], capacity_));
      } else {
        positions[begin + i] = -1;
      }
    }
  }
}

IntegerVocabulary::IntegerVocabulary(const std::int64_t* values, std::int64_t size)
    : size_(size), capacity_(capacity_for(size)) {
  if (size == 0) return;
  if (is_dense(values)) {
    direct_ = SlotArray<std::uint32_t>(range_ + 1, kEmpty);
    build_direct(values);
  } else {
    slots_ = SlotArray<Slot>(capacity_, Slot{0, kEmpty, 0});
    build_hashed(values);
  }
}

IntegerVocabulary::IntegerVocabulary(const std::int64_t* values, std::int64_t size,
                                     SlotArray<std::uint32_t> direct, SlotArray<Slot> slots)
    : size_(size),
      capacity_(capacity_for(size)),
      direct_(std::move(direct)),
      slots_(std::move(slots)) {
  const bool dense = size > 0 && is_dense(values);
  check_slots(direct_.size(), dense ? range_ + 1 : 0);
  check_slots(slots_.size(), dense || size == 0 ? 0 : capacity_);
  const std::size_t n = dense ? direct_.size() : slots_.size();
  std::int64_t n_used = 0;
  for (std::size_t at = 0; at < n; ++at) {
    const std::uint32_t position = dense ? direct_.data()[at] : slots_.data()[at].position;
    if (position == kEmpty) continue;
    ++n_used;
    if (position >= static_cast<std::uint64_t>(size)) throw_foreign(at);
  }
  if (n_used != size) throw_foreign(n);
}

// A direct table of 4-byte positions takes no more than the slots would.
bool IntegerVocabulary::is_dense(const std::int64_t* values) noexcept {
  const auto [smallest, largest] = std::minmax_element(values, values + size_);
  smallest_ = *smallest;
  range_ = static_cast<std::uint64_t>(*largest) - static_cast<std::uint64_t>(*smallest);
  return range_ < capacity_ * (sizeof(Slot) / sizeof(std::uint32_t));
}

void IntegerVocabulary::build_direct(const std::int64_t* values) {
  for (std::int64_t i = 0; i < size_; ++i) {
    std::uint32_t& position =
        direct_.own(static_cast<std::uint64_t>(values[i]) - static_cast<std::uint64_t>(smallest_));
    if (position != kEmpty) throw_twice(position, i);
    position = static_cast<std::uint32_t>(i);
  }
}

void IntegerVocabulary::build_hashed(const std::int64_t* values) {
  for (std::int64_t i = 0; i < size_; ++i) {
    std::uint64_t at = slot_of(mix(static_cast<std::uint64_t>(values[i]), 0), capacity_);
    for (; slots_.own(at).position != kEmpty; at = next_slot(at, capacity_)) {
      if (slots_.own(at).value == values[i]) throw_twice(slots_.own(at).position, i);
    }
    slots_.own(at) = {values[i], static_cast<std::uint32_t>(i), 0};
  }
}

void IntegerVocabulary::find(const std::int64_t* values, std::int64_t n,
                             std::int64_t* positions) const noexcept {
  const Slot* const slots = slots_.data();
  if (slots_.empty()) {
    const std::uint32_t* const direct = direct_.data();
    for (std::int64_t i = 0; i < n; ++i) {
      const std::uint64_t at =
          static_cast<std::uint64_t>(values[i]) - static_cast<std::uint64_t>(smallest_);
      const std::uint32_t position = at < direct_.size() ? direct[at] : kEmpty;
      positions[i] = position == kEmpty ? -1 : static_cast<std::int64_t>(position);
    }
    return;
  }
  std::uint64_t starts[kBatch];
  for (std::int64_t begin = 0; begin < n; begin += kBatch) {
    const std::int64_t count = std::min(kBatch, n - begin);
    for (std::int64_t i = 0; i < count; ++i) {
      starts[i] = slot_of(mix(static_cast<std::uint64_t>(values[begin + i]), 0), capacity_);
      __builtin_prefetch(&slots[starts[i]]);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t value = values[begin + i];
      std::uint64_t at = starts[i];
      while (slots[at].position != kEmpty && slots[at].value != value) {
        at = next_slot(at, capacity_);
      }
      const std::uint32_t position = slots[at].position;
      positions[begin + i] = position == kEmpty ? -1 : static_cast<std::int64_t>(position);
    }
  }
}

namespace {

bool fits_one_integer(const std::vector<std::int64_t>& limits) {
  std::int64_t product = 1;
  for (const std::int64_t limit : limits) {
    if (__builtin_mul_overflow(product, limit, &product)) return false;
  }
  return true;
}

}  // namespace

TupleVocabulary::TupleVocabulary(const std::int64_t* rows, std::int64_t size,
                                 std::vector<std::int64_t> limits)
    : rows_(rows),
      size_(size),
      limits_(std::move(limits)),
      packs_(fits_one_integer(limits_)),
      packed_(nullptr, 0) {
  check(rows);
  if (!packs_) {
    build_wide();
    return;
  }
  std::vector<std::int64_t> keys(static_cast<std::size_t>(size));
  for (std::int64_t i = 0; i < size; ++i) {
    keys[static_cast<std::size_t>(i)] = pack(rows + i * width());
  }
  packed_ = IntegerVocabulary(keys.data(), size);
}

void TupleVocabulary::check(const std::int64_t* rows) const {
  for (std::int64_t i = 0; i < size_ * width(); ++i) {
    const std::int64_t limit = limits_[static_cast<std::size_t>(i % width())];
    if (rows[i] < 0 || rows[i] >= limit) {
      throw std::invalid_argument("got the part id " + std::to_string(rows[i]) +
                                  " in a cross, expected 0 <= id < " + std::to_string(limit));
    }
  }
}

std::int64_t TupleVocabulary::pack(const std::int64_t* row) const noexcept {
  std::int64_t key = 0;
  for (std::size_t part = 0; part < limits_.size(); ++part) key = key * limits_[part] + row[part];
  return key;
}

std::int64_t TupleVocabulary::stride(std::size_t part) const noexcept {
  std::int64_t product = 1;
  for (++part; part < limits_.size(); ++part) product *= limits_[part];
  return product;
}

std::uint64_t TupleVocabulary::hash(const std::int64_t* row) const noexcept {
  std::uint64_t hash = 0;
  for (std::size_t part = 0; part < limits_.size(); ++part) {
    hash = mix(hash, static_cast<std::uint64_t>(row[part]));
  }
  return hash;
}

bool TupleVocabulary::equal(std::uint32_t position, const std::int64_t* row) const noexcept {
  return std::equal(row, row + width(), rows_ + static_cast<std::int64_t>(position) * width());
}

void TupleVocabulary::build_wide() {
  capacity_ = capacity_for(size_);
  wide_slots_ = HugeArray<std::uint32_t>(capacity_, kEmpty);
  for (std::int64_t i = 0; i < size_; ++i) {
    const std::int64_t* const row = rows_ + i * width();
    std::uint64_t at = slot_of(hash(row), capacity_);
    for (; wide_slots_[at] != kEmpty; at = next_slot(at, capacity_)) {
      if (equal(wide_slots_[at], row)) throw_twice(wide_slots_[at], i);
    }
    wide_slots_[at] = static_cast<std::uint32_t>(i);
  }
}

void TupleVocabulary::find(const std::int64_t* rows, std::int64_t n, std::int64_t* packed,
                           std::int64_t* positions) const noexcept {
  if (packs_) {
    for (std::int64_t i = 0; i < n; ++i) packed[i] = pack(rows + i * width());
    packed_.find(packed, n, positions);
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t* const row = rows + i * width();
    std::uint64_t at = slot_of(hash(row), capacity_);
    while (wide_slots_[at] != kEmpty && !equal(wide_slots_[at], row)) {
      at = next_slot(at, capacity_);
    }
    positions[i] = wide_slots_[at] == kEmpty ? -1 : static_cast<std::int64_t>(wide_slots_[at]);
  }
}

}  // namespace widedeep
