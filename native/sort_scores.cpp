#include "sort_scores.hpp"

#include <algorithm>
#include <array>
#include <bit>

namespace widedeep {
namespace {

constexpr int kDigits = 8;
constexpr std::size_t kValues = 256;
// Fewer scores are compared faster than counted.
constexpr std::int64_t kFew = 48;

// Rises as the score falls.
std::uint64_t falling_key(double score) {
  constexpr std::uint64_t kSign = std::uint64_t{1} << 63;
  const auto bits = std::bit_cast<std::uint64_t>(score + 0.0);  // one zero only
  return (bits & kSign) != 0 ? bits : ~(bits | kSign);
}

std::size_t digit(std::uint64_t key, int place) { return key >> (8 * place) & (kValues - 1); }

}  // namespace

void sort_descending(const double* scores, std::int64_t n, SortingRoom& room, std::int64_t* order) {
  auto& keys = room.keys;
  auto& other = room.other;
  keys.resize(static_cast<std::size_t>(n));
  other.resize(keys.size());
  for (std::int64_t i = 0; i < n; ++i) {
    keys[static_cast<std::size_t>(i)] = {falling_key(scores[i]), i};
  }
  if (n < kFew) {
    std::sort(keys.begin(), keys.end());
  } else {
    std::array<std::array<std::uint32_t, kValues>, kDigits> counts{};
    for (const auto& [key, row] : keys) {
      for (int place = 0; place < kDigits; ++place) {
        ++counts[static_cast<std::size_t>(place)][digit(key, place)];
      }
    }
    for (int place = 0; place < kDigits; ++place) {
      auto& starts = counts[static_cast<std::size_t>(place)];
      if (starts[digit(keys[0].first, place)] == n) continue;  // they agree here
      std::uint32_t start = 0;
      for (std::uint32_t& count : starts) start += std::exchange(count, start);
      for (const auto& each : keys) other[starts[digit(each.first, place)]++] = each;
      keys.swap(other);
    }
  }
  for (std::int64_t i = 0; i < n; ++i) order[i] = keys[static_cast<std::size_t>(i)].second;
}

}  // namespace widedeep
