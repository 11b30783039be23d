#include "order.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

namespace widedeep {
namespace {

constexpr unsigned kDigitBits = 11;
constexpr std::size_t kDigits = std::size_t{1} << kDigitBits;
constexpr unsigned kPasses = (64 + kDigitBits - 1) / kDigitBits;

// Sorts items by a 64-bit key, lowest digit first; a digit in which all agree costs nothing.
// Returns where the result lies: `items` or `scratch`.
template <class Item, class Key>
Item* radix_sort(Item* items, Item* scratch, std::size_t n, Key key) {
  std::vector<std::array<std::uint32_t, kDigits>> counts(kPasses);
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t word = key(items[i]);
    for (unsigned pass = 0; pass < kPasses; ++pass) {
      ++counts[pass][word >> (pass * kDigitBits) & (kDigits - 1)];
    }
  }
  for (unsigned pass = 0; pass < kPasses && n > 0; ++pass) {
    const unsigned shift = pass * kDigitBits;
    auto& next = counts[pass];
    if (next[key(items[0]) >> shift & (kDigits - 1)] == n) continue;
    std::uint32_t start = 0;
    for (std::uint32_t& count : next) start += std::exchange(count, start);
    for (std::size_t i = 0; i < n; ++i) {
      scratch[next[key(items[i]) >> shift & (kDigits - 1)]++] = items[i];
    }
    std::swap(items, scratch);
  }
  return items;
}

constexpr std::uint64_t kSignBit = std::uint64_t{1} << 63;

struct Entry {
  std::uint64_t word;
  std::uint32_t place;
};

// The first eight bytes, big-endian and padded with zeros: words are ordered as the keys are, but
// for keys that agree in them.
std::uint64_t prefix(const std::uint8_t* key, std::int64_t length) {
  std::uint64_t word = 0;
  if (length > 0)
    std::memcpy(&word, key, static_cast<std::size_t>(std::min<std::int64_t>(length, 8)));
  if constexpr (std::endian::native == std::endian::little) word = __builtin_bswap64(word);
  return word;
}

// Orders a run of keys that agree in their counts and first bytes.
void order_run(const CountedKeys& keys, Entry* begin, Entry* end) {
  std::sort(begin, end, [&](const Entry& a, const Entry& b) {
    const std::int64_t a_length = keys.offsets[a.place + 1] - keys.offsets[a.place];
    const std::int64_t b_length = keys.offsets[b.place + 1] - keys.offsets[b.place];
    const auto shared = static_cast<std::size_t>(std::min(a_length, b_length));
    const int order = shared == 0 ? 0
                                  : std::memcmp(keys.data + keys.offsets[a.place],
                                                keys.data + keys.offsets[b.place], shared);
    return order != 0 ? order < 0 : a_length < b_length;
  });
}

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

void order_by_count(const CountedKeys& keys, std::uint32_t* order) {
  const std::unique_ptr<Entry[]> entries(new Entry[2 * keys.n]);
  for (std::size_t i = 0; i < keys.n; ++i) {
    const std::int64_t start = keys.offsets[i];
    entries[i] = {prefix(keys.data + start, keys.offsets[i + 1] - start),
                  static_cast<std::uint32_t>(i)};
  }
  const auto word_of = [](const Entry& entry) { return entry.word; };
  const auto count_of = [&](const Entry& entry) {
    return ~static_cast<std::uint64_t>(keys.counts[entry.place]);
  };
  Entry* const low = entries.get();
  Entry* const high = low + keys.n;
  Entry* sorted = radix_sort(low, high, keys.n, word_of);
  sorted = radix_sort(sorted, sorted == low ? high : low, keys.n, count_of);
  for (std::size_t begin = 0, end = 0; begin < keys.n; begin = end) {
    end = begin + 1;
    while (end < keys.n && sorted[end].word == sorted[begin].word &&
           keys.counts[sorted[end].place] == keys.counts[sorted[begin].place]) {
      ++end;
    }
    if (end - begin > 1) order_run(keys, sorted + begin, sorted + end);
  }
  for (std::size_t i = 0; i < keys.n; ++i) order[i] = sorted[i].place;
}

NumberSums sum_numbers(const double* values, std::size_t n) {
  constexpr std::size_t kExponents = 2048;
  constexpr unsigned kMantissaBits = 52;
  constexpr unsigned kHalfBits = 26;
  constexpr std::uint64_t kMantissa = (std::uint64_t{1} << kMantissaBits) - 1;
  std::array<std::int64_t, kExponents> high{};
  std::array<std::int64_t, kExponents> low{};
  NumberSums sums;
  sums.minimum = std::numeric_limits<double>::infinity();
  sums.maximum = -sums.minimum;
  for (std::size_t i = 0; i < n; ++i) {
    const double value = values[i] + 0.0;  // -0 becomes +0
    if (value != value) continue;
    ++sums.count;
    sums.minimum = std::min(sums.minimum, value);
    sums.maximum = std::max(sums.maximum, value);
    const auto bits = std::bit_cast<std::uint64_t>(value);
    const std::size_t exponent = bits >> kMantissaBits & (kExponents - 1);
    const std::uint64_t hidden = std::uint64_t{exponent != 0} << kMantissaBits;
    const auto mantissa = static_cast<std::int64_t>((bits & kMantissa) | hidden);
    const std::int64_t sign = static_cast<std::int64_t>(bits) >> 63 | 1;
    high[exponent] += sign * (mantissa >> kHalfBits);
    low[exponent] += sign * (mantissa & ((std::int64_t{1} << kHalfBits) - 1));
  }
  constexpr double kLargest = std::numeric_limits<double>::max();
  sums.is_finite = sums.count == 0 || (sums.minimum >= -kLargest && sums.maximum <= kLargest);
  for (std::size_t exponent = 0; exponent < kExponents; ++exponent) {
    if (high[exponent] == 0 && low[exponent] == 0) continue;
    // Subnormal numbers have the exponent of the smallest normal ones.
    const auto power = static_cast<std::int64_t>(std::max<std::size_t>(exponent, 1)) - 1075;
    sums.cells.push_back({power, high[exponent], low[exponent]});
  }
  return sums;
}

}  // namespace widedeep
