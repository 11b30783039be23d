#include "count_table.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>

#include "order.hpp"

namespace widedeep {
namespace {

constexpr std::size_t kWord = sizeof(std::uint64_t);
constexpr std::size_t kBlockWords = CountTable::kBlockBytes / kWord;
constexpr std::size_t kFirstSlots = 64;
// Keys whose memory is fetched together: their cache misses overlap.
constexpr std::size_t kGroup = 32;

template <class T>
std::uint64_t load(const std::uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

std::uint64_t fold(std::uint64_t a, std::uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

// The first eight bytes, big-endian and padded with zeros: words are ordered as the keys are, but
// for keys that agree in them.
std::uint64_t prefix(const void* key, std::size_t length) {
  std::uint64_t word = 0;
  if (length > 0) std::memcpy(&word, key, std::min<std::size_t>(length, sizeof(word)));
  if constexpr (std::endian::native == std::endian::little) word = __builtin_bswap64(word);
  return word;
}

std::size_t record_words(std::size_t length) { return 3 + (length + kWord - 1) / kWord; }

}  // namespace

// Multiplies and folds 16 bytes at a time, with odd constants from the digits of pi.
std::uint64_t hash_bytes(const std::uint8_t* data, std::size_t length) {
  constexpr std::uint64_t k0 = 0x243f6a8885a308d3U;
  constexpr std::uint64_t k1 = 0x13198a2e03707345U;
  constexpr std::uint64_t k2 = 0xa4093822299f31d1U;
  std::uint64_t state = k0 ^ length;
  std::size_t left = length;
  for (; left > 16; left -= 16, data += 16) {
    state = fold(load<std::uint64_t>(data) ^ k1, load<std::uint64_t>(data + 8) ^ state);
  }
  std::uint64_t head = 0;
  std::uint64_t tail = 0;
  if (left >= 8) {
    head = load<std::uint64_t>(data);
    tail = load<std::uint64_t>(data + left - 8);
  } else if (left >= 4) {
    head = load<std::uint32_t>(data);
    tail = load<std::uint32_t>(data + left - 4);
  } else if (left > 0) {
    head = data[0] | std::uint64_t{data[left / 2]} << 8 | std::uint64_t{data[left - 1]} << 16;
  }
  return fold(k2 ^ state, fold(head ^ k1, tail ^ state));
}

CountTable::CountTable(std::size_t limit_bytes) : limit_bytes_(limit_bytes) { clear(); }

void CountTable::clear() {
  slots_.assign(kFirstSlots, Slot{0, 0});
  slots_.shrink_to_fit();
  blocks_.clear();
  block_words_.clear();
  size_ = 0;
  used_bytes_ = 0;
}

// A reference counts words over all blocks from 1, so that 0 can stand for none.
CountTable::Record* CountTable::record(std::uint32_t reference) const {
  const std::size_t word = reference - 1;
  return reinterpret_cast<Record*>(blocks_[word / kBlockWords].get() + word % kBlockWords);
}

CountTable::Slot* CountTable::find(std::uint64_t hash, const std::uint8_t* key,
                                   std::size_t length) {
  const std::size_t mask = slots_.size() - 1;
  const auto tag = static_cast<std::uint32_t>(hash >> 32);
  for (std::size_t place = hash & mask;; place = (place + 1) & mask) {
    Slot& slot = slots_[place];
    if (slot.record == 0) return &slot;
    if (slot.tag != tag) continue;
    const Record* found = record(slot.record);
    if (found->length != length) continue;
    if (length == 0 || std::memcmp(found + 1, key, length) == 0) return &slot;
  }
}

bool CountTable::has_room(std::size_t length) const {
  const bool grows = (size_ + 1) * 8 > slots_.size() * 5;
  const std::size_t more = record_words(length) * kWord + (grows ? nbytes() - used_bytes_ : 0);
  // References count words in 32 bits.
  const bool addressable = blocks_.size() < (std::size_t{1} << 32) / kBlockWords;
  return size_ == 0 || (nbytes() + more <= limit_bytes_ && addressable);
}

std::uint32_t CountTable::append(std::uint64_t hash, const std::uint8_t* key, std::size_t length) {
  const std::size_t words = record_words(length);
  if (blocks_.empty() || block_words_.back() + words > kBlockWords) {
    blocks_.push_back(std::make_unique_for_overwrite<std::uint64_t[]>(kBlockWords));
    block_words_.push_back(0);
  }
  const std::size_t word = (blocks_.size() - 1) * kBlockWords + block_words_.back();
  block_words_.back() += static_cast<std::uint32_t>(words);
  const auto reference = static_cast<std::uint32_t>(word + 1);
  Record* added = record(reference);
  *added = {hash, 0, length};
  if (length > 0) std::memcpy(added + 1, key, length);
  used_bytes_ += words * kWord;
  ++size_;
  return reference;
}

void CountTable::grow(std::size_t n_slots) {
  slots_ = std::vector<Slot>(n_slots, Slot{0, 0});
  const std::size_t mask = slots_.size() - 1;
  for_each([&](std::uint32_t reference, const Record& held) {
    std::size_t place = held.hash & mask;
    while (slots_[place].record != 0) place = (place + 1) & mask;
    slots_[place] = {static_cast<std::uint32_t>(held.hash >> 32), reference};
  });
}

template <class Visit>
void CountTable::for_each(Visit visit) const {
  for (std::size_t block = 0; block < blocks_.size(); ++block) {
    for (std::size_t word = 0; word < block_words_[block];) {
      const auto reference = static_cast<std::uint32_t>(block * kBlockWords + word + 1);
      const Record& held = *record(reference);
      visit(reference, held);
      word += record_words(held.length);
    }
  }
}

// How many slots hold so many keys, at least twice as many as now; more than that only where room
// is left.
std::size_t CountTable::slots_for(std::size_t n_keys) const {
  std::size_t n_slots = slots_.size() * 2;
  while (n_keys * 8 > n_slots * 5 && used_bytes_ + 4 * n_slots * sizeof(Slot) < limit_bytes_) {
    n_slots *= 2;
  }
  return n_slots;
}

std::size_t CountTable::add(const CountedKeys& keys, std::size_t first) {
  std::uint64_t hashes[kGroup];
  for (std::size_t start = first; start < keys.n; start += kGroup) {
    const std::size_t end = std::min(start + kGroup, keys.n);
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t i = start; i < end; ++i) {
      const std::int64_t at = keys.offsets[i];
      hashes[i - start] = hash_bytes(keys.data + at, keys.offsets[i + 1] - at);
      __builtin_prefetch(&slots_[hashes[i - start] & mask]);
    }
    for (std::size_t i = start; i < end; ++i) {
      const Slot& slot = slots_[hashes[i - start] & mask];
      if (slot.record != 0) __builtin_prefetch(record(slot.record));
    }
    for (std::size_t i = start; i < end; ++i) {
      const std::int64_t count = keys.counts == nullptr ? 1 : keys.counts[i];
      if (count == 0) continue;
      const std::uint8_t* key = keys.data + keys.offsets[i];
      const std::size_t length = keys.offsets[i + 1] - keys.offsets[i];
      const std::uint64_t hash = hashes[i - start];
      Slot* slot = find(hash, key, length);
      if (slot->record == 0) {
        if (!has_room(length)) return i;
        if ((size_ + 1) * 8 > slots_.size() * 5) {
          // Keys with counts are different ones, most of which are new to a table of few.
          const std::size_t ahead = keys.counts == nullptr || size_ > keys.n ? 0 : keys.n - i;
          grow(slots_for(size_ + 1 + ahead));
          slot = find(hash, key, length);
        }
        *slot = {static_cast<std::uint32_t>(hash >> 32), append(hash, key, length)};
      }
      record(slot->record)->count += count;
    }
  }
  return keys.n;
}

void CountTable::partition(unsigned shift, unsigned bits, std::uint32_t* order,
                           std::int64_t* starts) const {
  const std::size_t n_partitions = std::size_t{1} << bits;
  const auto partition_of = [&](const Record& held) -> std::uint64_t {
    // Shifting by all 64 bits at once is undefined.
    return bits == 0 ? 0 : held.hash << shift >> (64 - bits);
  };
  std::fill_n(starts, n_partitions + 1, 0);
  for_each([&](std::uint32_t, const Record& held) { ++starts[partition_of(held) + 1]; });
  for (std::size_t p = 0; p < n_partitions; ++p) starts[p + 1] += starts[p];
  std::vector<std::int64_t> next(starts, starts + n_partitions);
  for_each([&](std::uint32_t reference, const Record& held) {
    order[next[partition_of(held)]++] = reference;
  });
}

std::int64_t CountTable::key_bytes(const std::uint32_t* order, std::size_t n) const {
  std::int64_t total = 0;
  for (std::size_t i = 0; i < n; ++i) total += static_cast<std::int64_t>(record(order[i])->length);
  return total;
}

void CountTable::take(const std::uint32_t* order, std::size_t n, std::uint8_t* data,
                      std::int64_t* offsets, std::int64_t* counts) const {
  std::int64_t at = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const Record* held = record(order[i]);
    offsets[i] = at;
    counts[i] = held->count;
    if (held->length > 0) std::memcpy(data + at, held + 1, held->length);
    at += static_cast<std::int64_t>(held->length);
  }
  offsets[n] = at;
}

bool CountTable::is_before(const RankedKey& a, const RankedKey& b) const {
  const Record &one = *record(a.record), &other = *record(b.record);
  if (one.count != other.count) return one.count > other.count;
  const std::size_t shared = std::min(one.length, other.length);
  const int order = shared == 0 ? 0 : std::memcmp(&one + 1, &other + 1, shared);
  return order != 0 ? order < 0 : one.length < other.length;
}

void CountTable::rank(std::vector<RankedKey>& keys) const {
  const auto before = [this](const RankedKey& a, const RankedKey& b) { return is_before(a, b); };
  const auto is_huge = [](const RankedKey& key) {
    return key.count == std::numeric_limits<std::uint32_t>::max();
  };
  if (std::any_of(keys.begin(), keys.end(), is_huge)) {
    std::sort(keys.begin(), keys.end(), before);
    return;
  }
  std::vector<RankedKey> scratch(keys.size());
  RankedKey *low = keys.data(), *high = scratch.data();
  RankedKey* sorted =
      radix_sort(low, high, keys.size(), [](const RankedKey& key) { return key.word; });
  sorted = radix_sort(sorted, sorted == low ? high : low, keys.size(),
                      [](const RankedKey& key) { return std::uint64_t{~key.count}; });
  for (std::size_t begin = 0, end = 0; begin < keys.size(); begin = end) {
    end = begin + 1;
    while (end < keys.size() && sorted[end].word == sorted[begin].word &&
           sorted[end].count == sorted[begin].count) {
      ++end;
    }
    if (end - begin > 1) std::sort(sorted + begin, sorted + end, before);
  }
  if (sorted != low) keys.swap(scratch);
}

std::vector<std::uint32_t> CountTable::ranked(const RankLimits& limits) const {
  std::vector<std::int64_t> counts;
  counts.reserve(size_);
  for_each([&](std::uint32_t, const Record& held) { counts.push_back(held.count); });
  std::int64_t n_leaders = std::count_if(
      counts.begin(), counts.end(), [&](std::int64_t count) { return count >= limits.min_count; });
  if (limits.max_size >= 0) n_leaders = std::min(n_leaders, limits.max_size);
  const std::size_t n = static_cast<std::size_t>(
      std::min<std::int64_t>(limits.tail_size, static_cast<std::int64_t>(size_) - n_leaders) +
      n_leaders);
  std::vector<std::uint32_t> leading;
  if (n == 0) return leading;
  std::int64_t floor = 0;
  if (n < size_) {
    const auto last = counts.begin() + static_cast<std::ptrdiff_t>(n) - 1;
    std::nth_element(counts.begin(), last, counts.end(), std::greater<>());
    floor = *last;
  }
  counts = {};
  std::vector<RankedKey> keys;
  for_each([&](std::uint32_t reference, const Record& held) {
    constexpr std::int64_t kMost = std::numeric_limits<std::uint32_t>::max();
    if (held.count < floor) return;
    const auto count = static_cast<std::uint32_t>(std::min(held.count, kMost));
    keys.push_back({prefix(&held + 1, held.length), reference, count});
  });
  rank(keys);
  leading.reserve(n);
  std::uint64_t tail_bytes = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (i >= static_cast<std::size_t>(n_leaders) && limits.tail_bytes >= 0) {
      tail_bytes += record(keys[i].record)->length;
      if (tail_bytes > static_cast<std::uint64_t>(limits.tail_bytes)) break;
    }
    leading.push_back(keys[i].record);
  }
  return leading;
}

}  // namespace widedeep
