#include "transform_crosses.hpp"

#include <algorithm>

#include "fingerprint.hpp"

namespace widedeep::transform {
namespace {

std::size_t as_size(std::int64_t n) { return static_cast<std::size_t>(n); }

bool all_single(const std::vector<const Cells*>& parts) {
  for (const Cells* part : parts) {
    if (!part->single()) return false;
  }
  return true;
}

// Among ids a null is the missing id; among keys, which may take any value, it is no entry at all.
enum class Nulls : std::uint8_t { missing_id, no_entry };

bool is_null(std::int64_t id, Nulls nulls) {
  return nulls == Nulls::missing_id && id == kMissingId;
}

// Appends every combination of row `row`'s ids to `tuples`; returns how many.
std::int64_t append_product(const std::vector<const Cells*>& parts, std::int64_t row, Nulls nulls,
                            std::vector<std::int64_t>& tuples) {
  std::int64_t count = 1;
  for (const Cells* part : parts) {
    const std::int64_t begin = part->begin(row);
    const std::int64_t n = part->end(row) - begin;
    const bool null = n == 1 && is_null(part->ids[as_size(begin)], nulls);
    count *= null ? 0 : n;
  }
  const std::size_t width = parts.size();
  const std::size_t start = tuples.size();
  tuples.resize(start + as_size(count) * width);
  std::int64_t repeat = count;
  for (std::size_t p = 0; count > 0 && p < width; ++p) {
    const std::int64_t begin = parts[p]->begin(row);
    const std::int64_t n = parts[p]->end(row) - begin;
    repeat /= n;
    for (std::int64_t i = 0; i < count; ++i) {
      tuples[start + as_size(i) * width + p] = parts[p]->ids[as_size(begin + i / repeat % n)];
    }
  }
  return count;
}

// All combinations of all rows; `ends` stays empty if each row has exactly one.
void collect_tuples(const std::vector<const Cells*>& parts, std::int64_t n_rows, Nulls nulls,
                    std::vector<std::int64_t>& tuples, std::vector<std::int64_t>& ends) {
  const std::size_t width = parts.size();
  tuples.clear();
  if (all_single(parts)) {
    tuples.resize(as_size(n_rows) * width);
    bool missing = false;
    for (std::size_t p = 0; p < width; ++p) {
      const std::int64_t* const ids = parts[p]->ids.data();
      for (std::int64_t row = 0; row < n_rows; ++row) {
        missing |= is_null(ids[row], nulls);
        tuples[as_size(row) * width + p] = ids[row];
      }
    }
    if (!missing) return;
    tuples.clear();
  }
  std::int64_t total = 0;
  for (std::int64_t row = 0; row < n_rows; ++row) {
    total += append_product(parts, row, nulls, tuples);
    ends.push_back(total);
  }
}

std::int64_t known_or_unseen(std::int64_t place) {
  return place < 0 ? kUnseenId : kFirstKnownId + place;
}

void hash_tuples(const std::vector<std::int64_t>& tuples, std::size_t width, std::int64_t buckets,
                 std::vector<std::int64_t>& ids) {
  ids.resize(tuples.size() / width);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::uint64_t hash = kCrossKey;
    for (std::size_t p = 0; p < width; ++p) {
      hash = fingerprint_cat64(hash, static_cast<std::uint64_t>(tuples[i * width + p]));
    }
    ids[i] = kFirstKnownId + static_cast<std::int64_t>(hash % static_cast<std::uint64_t>(buckets));
  }
}

}  // namespace

void CrossFeature::encode(const std::vector<const PartCells*>& inputs, std::int64_t n_rows,
                          Scratch& scratch, Cells& out) const {
  std::vector<const Cells*> cells;
  cells.reserve(inputs.size());
  for (const PartCells* part : inputs) cells.push_back(hashed() ? &part->keys : &part->ids);
  out.clear();
  const Nulls nulls = hashed() ? Nulls::no_entry : Nulls::missing_id;
  collect_tuples(cells, n_rows, nulls, scratch.tuples, out.ends);
  if (hashed()) {
    hash_tuples(scratch.tuples, cells.size(), buckets, out.ids);
    return;
  }
  const auto n = static_cast<std::int64_t>(scratch.tuples.size() / cells.size());
  out.ids.resize(as_size(n));
  scratch.packed.resize(std::max(scratch.packed.size(), as_size(n)));
  vocabulary->find(scratch.tuples.data(), n, scratch.packed.data(), out.ids.data());
  for (std::int64_t& id : out.ids) id = known_or_unseen(id);
}

void CrossFeature::encode_packed(std::int64_t* packed_to_ids, std::int64_t n) const {
  vocabulary->find_packed(packed_to_ids, n, packed_to_ids);
  for (std::int64_t i = 0; i < n; ++i) packed_to_ids[i] = known_or_unseen(packed_to_ids[i]);
}

}  // namespace widedeep::transform
