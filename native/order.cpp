#include "order.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <memory>
#include <numeric>

namespace widedeep {
namespace {

constexpr std::uint64_t kSignBit = std::uint64_t{1} << 63;

}  // namespace

void sort_words(std::uint64_t* words, std::size_t n) {
  const std::unique_ptr<std::uint64_t[]> scratch(new std::uint64_t[n]);
  const std::uint64_t* const sorted =
      radix_sort(words, scratch.get(), n, [](std::uint64_t word) { return word; });
  if (sorted != words) std::copy_n(sorted, n, words);
}

void sort_numbers(double* values, std::size_t n) {
  const std::unique_ptr<std::uint64_t[]> words(new std::uint64_t[2 * n]);
  for (std::size_t i = 0; i < n; ++i) {
    const auto bits = std::bit_cast<std::uint64_t>(values[i]);
    words[i] = (bits & kSignBit) != 0 ? ~bits : bits | kSignBit;
  }
  const std::uint64_t* const sorted =
      radix_sort(words.get(), words.get() + n, n, [](std::uint64_t word) { return word; });
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t word = sorted[i];
    values[i] = std::bit_cast<double>((word & kSignBit) != 0 ? word ^ kSignBit : ~word);
  }
}

NumberSums sum_numbers(const double* values, std::size_t n) {
  constexpr std::size_t kExponents = 2048;
  constexpr std::size_t kLanes = 4;
  constexpr unsigned kMantissaBits = 52;
  constexpr unsigned kHalfBits = 26;
  constexpr std::uint64_t kMantissa = (std::uint64_t{1} << kMantissaBits) - 1;
  // Neighbours often share an exponent: in lanes of their own no sum waits for the one before it.
  struct Cell {
    std::int64_t high[kLanes];
    std::int64_t low[kLanes];
  };
  std::vector<Cell> cells(kExponents);
  NumberSums sums;
  double minimum[kLanes], maximum[kLanes];
  std::fill_n(minimum, kLanes, std::numeric_limits<double>::infinity());
  std::fill_n(maximum, kLanes, -std::numeric_limits<double>::infinity());
  const auto add = [&](std::size_t i, std::size_t lane) {
    const double value = values[i] + 0.0;  // -0 becomes +0
    sums.count += value == value;
    minimum[lane] = value < minimum[lane] ? value : minimum[lane];
    maximum[lane] = value > maximum[lane] ? value : maximum[lane];
    const auto bits = std::bit_cast<std::uint64_t>(value);
    const std::size_t exponent = bits >> kMantissaBits & (kExponents - 1);
    const std::uint64_t hidden = std::uint64_t{exponent != 0} << kMantissaBits;
    const auto mantissa = static_cast<std::int64_t>((bits & kMantissa) | hidden);
    const std::int64_t sign = static_cast<std::int64_t>(bits) >> 63;
    // NaN have an exponent of their own, which is left out below.
    cells[exponent].high[lane] += ((mantissa >> kHalfBits) ^ sign) - sign;
    cells[exponent].low[lane] += ((mantissa & ((std::int64_t{1} << kHalfBits) - 1)) ^ sign) - sign;
  };
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (; i < n; ++i) add(i, 0);
  sums.minimum = *std::min_element(minimum, minimum + kLanes);
  sums.maximum = *std::max_element(maximum, maximum + kLanes);
  constexpr double kLargest = std::numeric_limits<double>::max();
  sums.is_finite = sums.count == 0 || (sums.minimum >= -kLargest && sums.maximum <= kLargest);
  for (std::size_t exponent = 0; exponent + 1 < kExponents; ++exponent) {
    const auto total = [](const std::int64_t* lanes) {
      return std::accumulate(lanes, lanes + kLanes, std::int64_t{0});
    };
    const std::int64_t high = total(cells[exponent].high), low = total(cells[exponent].low);
    if (high == 0 && low == 0) continue;
    // Subnormal numbers have the exponent of the smallest normal ones.
    const auto power = static_cast<std::int64_t>(std::max<std::size_t>(exponent, 1)) - 1075;
    sums.cells.push_back({power, high, low});
  }
  return sums;
}

}  // namespace widedeep
