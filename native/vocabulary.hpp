// Exact maps from values to their positions in a vocabulary. They are built once, then only read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "huge_array.hpp"

namespace widedeep {

// Bytes that somebody else owns. A negative length stands for no text at all.
struct TextSpan {
  const char* data;
  std::int64_t length;
};

// The slots of a hash table: its own, or those of a file that is mapped, which somebody else owns.
template <class T>
class SlotArray {
 public:
  SlotArray() = default;
  SlotArray(std::size_t size, const T& value) : own_(size, value), size_(size) {}
  SlotArray(const T* mapped, std::size_t size) : mapped_(mapped), size_(size) {}

  std::size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  const T* data() const noexcept { return mapped_ != nullptr ? mapped_ : own_.data(); }
  T& own(std::size_t i) noexcept { return own_[i]; }

 private:
  HugeArray<T> own_;
  const T* mapped_ = nullptr;
  std::size_t size_ = 0;
};

// Position of each of `n` values in the vocabulary, or -1. Lookups of a batch overlap their cache
// misses, so callers should hand over many values at a time.
//
// Text is compared byte by byte: two values never share a position because their hashes agree.
class TextVocabulary {
 public:
  // Texts of up to 8 bytes lie in the slot itself: finding one costs a single cache miss.
  struct Slot {
    std::uint64_t payload;   // the text, or where it starts
    std::uint32_t tag;       // length (at most 255) in the low byte, hash bits above it
    std::uint32_t position;  // kEmpty if free
  };

  // Value i is bytes[offsets[i] - offsets[0], offsets[i + 1] - offsets[0]); both arrays must
  // outlive the vocabulary. Throws std::invalid_argument if a value comes twice or the offsets
  // decrease.
  TextVocabulary(const std::int64_t* offsets, const char* bytes, std::int64_t size);
  // The same from the slots that `slots` gave for these texts; they must outlive the vocabulary.
  // Throws std::invalid_argument if following them would leave the texts.
  TextVocabulary(const std::int64_t* offsets, const char* bytes, std::int64_t size,
                 const Slot* slots, std::size_t n_slots);

  std::int64_t size() const noexcept { return size_; }
  const SlotArray<Slot>& slots() const noexcept { return table_; }
  void find(const TextSpan* values, std::int64_t n, std::int64_t* positions) const noexcept;

 private:
  std::int64_t find_one(const TextSpan& value, std::uint64_t payload,
                        std::uint64_t hash) const noexcept;
  std::int64_t find_short(std::uint64_t payload, std::uint32_t tag,
                          std::uint64_t at) const noexcept;
  bool holds(const Slot& slot, const TextSpan& value, std::uint64_t payload,
             std::uint32_t tag) const noexcept;
  TextSpan value(std::int64_t position) const noexcept;

  const std::int64_t* offsets_;
  const char* bytes_;
  std::int64_t size_;
  std::uint64_t capacity_;
  SlotArray<Slot> table_;
  const Slot* slots_;
};

class IntegerVocabulary {
 public:
  struct Slot {
    std::int64_t value;
    std::uint32_t position;
    std::uint32_t unused;  // 0: slots are written to files
  };

  // Copies what it needs of `values`. Throws std::invalid_argument if a value comes twice.
  IntegerVocabulary(const std::int64_t* values, std::int64_t size);
  // The same from what `direct` or `slots` gave for these values, whichever is not empty; it must
  // outlive the vocabulary. Throws std::invalid_argument if it does not fit the values.
  IntegerVocabulary(const std::int64_t* values, std::int64_t size, SlotArray<std::uint32_t> direct,
                    SlotArray<Slot> slots);

  std::int64_t size() const noexcept { return size_; }
  const SlotArray<std::uint32_t>& direct() const noexcept { return direct_; }
  const SlotArray<Slot>& slots() const noexcept { return slots_; }
  // `positions` may be the array of the values.
  void find(const std::int64_t* values, std::int64_t n, std::int64_t* positions) const noexcept;

 private:
  bool is_dense(const std::int64_t* values) noexcept;
  void build_direct(const std::int64_t* values);
  void build_hashed(const std::int64_t* values);

  std::int64_t size_;
  std::int64_t smallest_ = 0;
  std::uint64_t capacity_ = 0;
  std::uint64_t range_ = 0;
  SlotArray<std::uint32_t> direct_;  // by value - smallest_, where the values lie close together
  SlotArray<Slot> slots_;
};

// Rows of `width` ids, 0 <= id < limits[part]. A row is packed into one integer where the product
// of the limits allows; else rows are compared id by id.
class TupleVocabulary {
 public:
  // `rows` (size x width, row-major) must outlive the vocabulary. Throws std::invalid_argument if
  // an id is outside its limit or a row comes twice.
  TupleVocabulary(const std::int64_t* rows, std::int64_t size, std::vector<std::int64_t> limits);

  std::int64_t size() const noexcept { return size_; }
  std::int64_t width() const noexcept { return static_cast<std::int64_t>(limits_.size()); }
  // `rows` is n x width; `packed` is scratch of n.
  void find(const std::int64_t* rows, std::int64_t n, std::int64_t* packed,
            std::int64_t* positions) const noexcept;

  // Whether rows are packed: a row's integer is the sum of its ids times their strides.
  bool packs() const noexcept { return packs_; }
  std::int64_t stride(std::size_t part) const noexcept;
  void find_packed(const std::int64_t* packed, std::int64_t n,
                   std::int64_t* positions) const noexcept {
    packed_.find(packed, n, positions);
  }

 private:
  void check(const std::int64_t* rows) const;
  std::int64_t pack(const std::int64_t* row) const noexcept;
  std::uint64_t hash(const std::int64_t* row) const noexcept;
  bool equal(std::uint32_t position, const std::int64_t* row) const noexcept;
  void build_wide();

  const std::int64_t* rows_;
  std::int64_t size_;
  std::vector<std::int64_t> limits_;
  bool packs_;
  IntegerVocabulary packed_;
  std::uint64_t capacity_ = 0;
  HugeArray<std::uint32_t> wide_slots_;
};

}  // namespace widedeep
