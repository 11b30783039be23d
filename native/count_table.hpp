// How often each key occurred: a hash table of byte strings in an arena, compared byte by byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace widedeep {

// Keys `offsets[i]` to `offsets[i + 1]` of `data`; each counts `counts[i]`, or 1 without counts.
// A key that counts 0 is passed over.
struct CountedKeys {
  const std::uint8_t* data;
  const std::int64_t* offsets;
  const std::int64_t* counts;
  std::size_t n;
};

// Which keys lead: those that were counted `min_count` times, `max_size` of them (-1: all), and a
// tail behind them of `tail_size` keys whose bytes are at most `tail_bytes` (-1: any number).
struct RankLimits {
  std::int64_t min_count;
  std::int64_t max_size;
  std::int64_t tail_size;
  std::int64_t tail_bytes;
};

class CountTable {
 public:
  static constexpr std::size_t kBlockBytes = std::size_t{1} << 20;
  static constexpr std::size_t kMaxKeyBytes = kBlockBytes / 2;

  explicit CountTable(std::size_t limit_bytes);
  CountTable(const CountTable&) = delete;
  CountTable& operator=(const CountTable&) = delete;

  // Adds keys from `first` on until all are in or the table would pass its limit; an empty table
  // takes at least one. Returns the first key that is not in.
  std::size_t add(const CountedKeys& keys, std::size_t first);

  std::size_t size() const { return size_; }
  // Bytes in use, without what is reserved ahead.
  std::size_t nbytes() const { return used_bytes_ + slots_.size() * sizeof(Slot); }

  // Writes a reference to each record into `order` (size() of them), grouped by `bits` bits of the
  // keys' hashes, those below the top `shift`; partition p is order[starts[p]] to
  // order[starts[p + 1]].
  void partition(unsigned shift, unsigned bits, std::uint32_t* order, std::int64_t* starts) const;
  // Bytes of the keys of these records.
  std::int64_t key_bytes(const std::uint32_t* order, std::size_t n) const;
  // Copies these records' keys and counts out; `offsets` has n + 1 places.
  void take(const std::uint32_t* order, std::size_t n, std::uint8_t* data, std::int64_t* offsets,
            std::int64_t* counts) const;
  // References to the leading keys, the most frequent first and equally frequent ones by bytes.
  std::vector<std::uint32_t> ranked(const RankLimits& limits) const;
  void clear();

 private:
  struct Record {
    std::uint64_t hash;
    std::int64_t count;
    std::uint64_t length;
    // The key follows.
  };
  struct Slot {
    std::uint32_t tag;
    std::uint32_t record;  // a reference, 0 where the slot is empty
  };
  struct RankedKey {
    std::uint64_t word;
    std::uint32_t record;
    std::uint32_t count;  // at most 2^32 - 1
  };

  Record* record(std::uint32_t reference) const;
  Slot* find(std::uint64_t hash, const std::uint8_t* key, std::size_t length);
  bool has_room(std::size_t length) const;
  std::uint32_t append(std::uint64_t hash, const std::uint8_t* key, std::size_t length);
  std::size_t slots_for(std::size_t n_keys) const;
  void grow(std::size_t n_slots);
  void rank(std::vector<RankedKey>& keys) const;
  bool is_before(const RankedKey& a, const RankedKey& b) const;
  template <class Visit>
  void for_each(Visit visit) const;

  std::size_t limit_bytes_;
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<std::uint64_t[]>> blocks_;
  std::vector<std::uint32_t> block_words_;  // words in use
  std::size_t size_ = 0;
  std::size_t used_bytes_ = 0;
};

std::uint64_t hash_bytes(const std::uint8_t* data, std::size_t length);

}  // namespace widedeep
