// The order of candidates by their scores.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace widedeep {

// What sorting uses; it grows to the largest request and stays.
struct SortingRoom {
  std::vector<std::pair<std::uint64_t, std::int64_t>> keys;
  std::vector<std::pair<std::uint64_t, std::int64_t>> other;
};

// The rows of `n` scores, the largest first; equal ones in their order. None may be NaN.
void sort_descending(const double* scores, std::int64_t n, SortingRoom& room, std::int64_t* order);

}  // namespace widedeep
