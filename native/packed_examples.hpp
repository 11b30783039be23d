// Encoded rows as byte strings, each id in as few bytes as its feature's ids need.
//
// A row is its cells in the order of the slots, then its numbers, labels, weight and group. A cell
// of one id is that id; any other one is a mark (all bits set, which no id is), the number of its
// ids in four bytes, and the ids. Where ids have weights, four bytes follow each id.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sparse.hpp"

namespace widedeep {

struct ExampleLayout {
  std::vector<std::uint8_t> widths;  // bytes of an id, by slot: 1, 2, 3, 4 or 8
  std::int64_t n_dense = 0;
  std::int64_t n_labels = 0;
  bool has_values = false;
  bool has_weight = false;
  bool has_group = false;

  std::int64_t n_slots() const noexcept { return static_cast<std::int64_t>(widths.size()); }
  // Bytes of numbers, labels, weight and group.
  std::int64_t fixed_bytes() const noexcept {
    return 4 * (n_dense + n_labels) + (has_weight ? 4 : 0) + (has_group ? 8 : 0);
  }
};

// Rows as arrays. Those that the layout has not are not read or written; ids, offsets and values of
// rows that are unpacked are in vectors.
struct ExampleArrays {
  const std::int64_t* ids;
  const std::int64_t* offsets;  // n * n_slots + 1
  const float* values;
  const float* dense;
  const float* labels;
  const float* weight;
  const std::int64_t* group;
  std::int64_t n_ids;
};

// Writes the rows one behind the other; starts has n + 1 places. Returns the first cell whose
// offsets are wrong or that holds an id below 0 or too large for its slot, or -1.
std::int64_t pack_examples(const ExampleLayout& layout, const ExampleArrays& rows, std::int64_t n,
                           std::vector<std::uint8_t>& bytes, std::int64_t* starts);

// Where a packed row begins and ends.
struct ExampleSpan {
  const std::uint8_t* begin;
  const std::uint8_t* end;
};

struct UnpackedExamples {
  std::int64_t* offsets;  // n * n_slots + 1
  float* dense;
  float* labels;
  float* weight;
  std::int64_t* group;
  std::vector<std::int64_t> ids;
  std::vector<float> values;
};

// Returns the first row that is not what the layout says, or -1. It never reads beyond a span.
std::int64_t unpack_examples(const ExampleLayout& layout, const ExampleSpan* spans, std::int64_t n,
                             UnpackedExamples& rows);

}  // namespace widedeep
