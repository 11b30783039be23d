// Exact maps from values to their positions in a vocabulary. They are built once, then only read.
#pragma once

#include <cstdint>
#include <vector>

#include "huge_array.hpp"

namespace widedeep {

// Bytes that somebody else owns. A negative length stands for no text at all.
struct TextSpan {
  const char* data;
  std::int64_t length;
};

// Position of each of `n` values in the vocabulary, or -1. Lookups of a batch overlap their cache
// misses, so callers should hand over many values at a time.
//
// Text is compared byte by byte: two values never share a position because their hashes agree.
class TextVocabulary {
 public:
  // Value i is bytes[offsets[i] - offsets[0], offsets[i + 1] - offsets[0]); both arrays must
  // outlive the vocabulary. Throws std::invalid_argument if a value comes twice or the offsets
  // decrease.
  TextVocabulary(const std::int64_t* offsets, const char* bytes, std::int64_t size);

  std::int64_t size() const noexcept { return size_; }
  void find(const TextSpan* values, std::int64_t n, std::int64_t* positions) const noexcept;

 private:
  // Texts of up to 8 bytes lie in the slot itself: finding one costs a single cache miss.
  struct Slot {
    std::uint64_t payload;   // the text, or where it starts
    std::uint32_t tag;       // length (at most 255) in the low byte, hash bits above it
    std::uint32_t position;  // kEmpty if free
  };

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
  HugeArray<Slot> slots_;
};

class IntegerVocabulary {
 public:
  // Copies what it needs of `values`. Throws std::invalid_argument if a value comes twice.
  IntegerVocabulary(const std::int64_t* values, std::int64_t size);

  std::int64_t size() const noexcept { return size_; }
  // `positions` may be the array of the values.
  void find(const std::int64_t* values, std::int64_t n, std::int64_t* positions) const noexcept;

 private:
  struct Slot {
    std::int64_t value;
    std::uint32_t position;
  };

  void build_direct(const std::int64_t* values);
  void build_hashed(const std::int64_t* values);

  std::int64_t size_;
  std::int64_t smallest_ = 0;
  std::uint64_t capacity_ = 0;
  HugeArray<std::uint32_t> direct_;  // by value - smallest_, where the values lie close together
  HugeArray<Slot> slots_;
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
