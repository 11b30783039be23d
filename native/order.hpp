// Orders for learning a schema, and sums without rounding.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace widedeep {

constexpr unsigned kRadixBits = 11;
constexpr std::size_t kRadix = std::size_t{1} << kRadixBits;
constexpr unsigned kRadixPasses = (64 + kRadixBits - 1) / kRadixBits;

// Sorts items by a 64-bit key, lowest digit first; a digit in which all agree costs nothing.
// Returns where the result lies: `items` or `scratch`.
template <class Item, class Key>
Item* radix_sort(Item* items, Item* scratch, std::size_t n, Key key) {
  std::vector<std::array<std::uint32_t, kRadix>> counts(kRadixPasses);
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t word = key(items[i]);
    for (unsigned pass = 0; pass < kRadixPasses; ++pass) {
      ++counts[pass][word >> (pass * kRadixBits) & (kRadix - 1)];
    }
  }
  for (unsigned pass = 0; pass < kRadixPasses && n > 0; ++pass) {
    const unsigned shift = pass * kRadixBits;
    auto& next = counts[pass];
    if (next[key(items[0]) >> shift & (kRadix - 1)] == n) continue;
    std::uint32_t start = 0;
    for (std::uint32_t& count : next) start += std::exchange(count, start);
    for (std::size_t i = 0; i < n; ++i) {
      scratch[next[key(items[i]) >> shift & (kRadix - 1)]++] = items[i];
    }
    std::swap(items, scratch);
  }
  return items;
}

void sort_words(std::uint64_t* words, std::size_t n);

// Sorts numbers that are no NaN; of equal zeros both must be +0.
void sort_numbers(double* values, std::size_t n);

// Sums of numbers by the exponent of their lowest bit, without rounding.
struct NumberSums {
  struct Cell {
    std::int64_t exponent;
    std::int64_t high;  // counts 2^(exponent + 26)
    std::int64_t low;   // counts 2^exponent
  };
  std::int64_t count = 0;  // of those that are no NaN
  double minimum;          // +0 where it is zero; meaningless if count is 0
  double maximum;
  bool is_finite = true;
  std::vector<Cell> cells;  // none is zero
};
NumberSums sum_numbers(const double* values, std::size_t n);

}  // namespace widedeep
