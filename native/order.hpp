// Orders for learning a schema: numbers ascending, keys by how often they were counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "count_table.hpp"

namespace widedeep {

void sort_words(std::uint64_t* words, std::size_t n);

// Sorts numbers that are no NaN; of equal zeros both must be +0.
void sort_numbers(double* values, std::size_t n);

// Writes the places of keys by count, the largest first, and of equal counts by their bytes. Keys
// differ from each other, and `keys.counts` are given and not negative.
void order_by_count(const CountedKeys& keys, std::uint32_t* order);

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
