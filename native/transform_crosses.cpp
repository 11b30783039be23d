#include "transform_crosses.hpp"

#include <algorithm>
#include <limits>

#include "fingerprint.hpp"

namespace widedeep::transform {
namespace {

// Combinations that are looked up together, where they have to be laid out.
constexpr std::size_t kTuplesAtOnce = 4096;

std::size_t as_size(std::int64_t n) { return static_cast<std::size_t>(n); }

std::int64_t known_or_unseen(std::int64_t place) {
  return place < 0 ? kUnseenId : kFirstKnownId + place;
}

std::int64_t bucket_id(std::uint64_t hash, std::int64_t buckets) {
  return kFirstKnownId + static_cast<std::int64_t>(hash % static_cast<std::uint64_t>(buckets));
}

std::int64_t append_key(std::int64_t hash, std::int64_t key) {
  return static_cast<std::int64_t>(
      fingerprint_cat64(static_cast<std::uint64_t>(hash), static_cast<std::uint64_t>(key)));
}

std::int64_t product(std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  const bool over = __builtin_mul_overflow(a, b, &result);
  return over ? std::numeric_limits<std::int64_t>::max() : result;
}

// The values of one part in one row; a null has none. Among ids it is the missing id, alone in its
// row; among keys, which may take any value, it is no entry at all.
struct Values {
  const std::int64_t* data;
  std::int64_t n;
};

Values values_of(const Cells& cells, std::int64_t row, bool are_keys) {
  const std::int64_t begin = cells.begin(row);
  const std::int64_t n = cells.end(row) - begin;
  const std::int64_t* const data = cells.ids.data() + begin;
  const bool null = !are_keys && n == 1 && data[0] == kMissingId;
  return {data, null ? 0 : n};
}

// Each of `prefixes` followed by each value; the values vary fastest.
template <class Append>
void extend(std::vector<std::int64_t>& prefixes, const Values& values, Append&& append) {
  const std::size_t n = prefixes.size();
  const std::size_t m = as_size(values.n);
  prefixes.resize(n * m);
  for (std::size_t i = n; i-- > 0;) {
    const std::int64_t prefix = prefixes[i];
    for (std::size_t j = m; j-- > 0;) prefixes[i * m + j] = append(prefix, values.data[j]);
  }
}

}  // namespace

CrossFeature::Columns CrossFeature::columns(const std::vector<CrossInput>& inputs) const {
  Columns cells;
  for (const CrossInput& part : inputs) {
    cells.push_back(hashed() ? &part.cells->keys : &part.cells->ids);
  }
  return cells;
}

// Every part has one value in every row, and no null is among them: nothing need be laid out. False
// if it is otherwise; `out` is to be written again then.
bool CrossFeature::encode_single(const std::vector<CrossInput>& inputs, std::int64_t n_examples,
                                 Cells& out) const {
  if (!hashed() && !vocabulary->packs()) return false;
  const Columns cells = columns(inputs);
  const auto is_single = [](const Cells* part) { return part->single(); };
  if (!std::all_of(cells.begin(), cells.end(), is_single)) return false;
  out.ids.assign(as_size(n_examples), hashed() ? static_cast<std::int64_t>(hash_key) : 0);
  std::int64_t* const ids = out.ids.data();
  for (std::size_t p = 0; p < cells.size(); ++p) {
    const std::int64_t* const from = cells[p]->ids.data();
    const CrossInput& input = inputs[p];
    const std::int64_t stride = hashed() ? 0 : vocabulary->stride(p);
    bool missing = false;
    const auto add = [&](auto&& row_of) {
      for (std::int64_t i = 0; hashed() && i < n_examples; ++i) {
        ids[i] = append_key(ids[i], from[row_of(i)]);
      }
      for (std::int64_t i = 0; !hashed() && i < n_examples; ++i) {
        const std::int64_t id = from[row_of(i)];
        missing |= id == kMissingId;
        ids[i] += id * stride;
      }
    };
    if (input.rows != nullptr) {
      add([&](std::int64_t i) { return input.rows[i]; });
    } else if (input.repeated) {
      add([](std::int64_t) { return std::int64_t{0}; });
    } else {
      add([](std::int64_t i) { return i; });
    }
    if (missing) return false;
  }
  if (hashed()) {
    for (std::int64_t i = 0; i < n_examples; ++i) {
      ids[i] = bucket_id(static_cast<std::uint64_t>(ids[i]), buckets);
    }
    return true;
  }
  vocabulary->find_packed(ids, n_examples, ids);
  for (std::int64_t i = 0; i < n_examples; ++i) ids[i] = known_or_unseen(ids[i]);
  return true;
}

// Looks up the combinations laid out, and forgets them.
void CrossFeature::find_tuples(Scratch& scratch, Cells& out) const {
  const auto n = static_cast<std::int64_t>(scratch.tuples.size()) / vocabulary->width();
  const std::size_t start = out.ids.size();
  out.ids.resize(start + as_size(n));
  scratch.packed.resize(std::max(scratch.packed.size(), as_size(n)));
  vocabulary->find(scratch.tuples.data(), n, scratch.packed.data(), out.ids.data() + start);
  for (std::size_t i = start; i < out.ids.size(); ++i) out.ids[i] = known_or_unseen(out.ids[i]);
  scratch.tuples.clear();
}

// All combinations of one example: hashed, packed for the look-up that follows, or laid out.
void CrossFeature::append_row(const std::vector<CrossInput>& inputs, const Columns& cells,
                              std::int64_t example, Scratch& scratch, Cells& out) const {
  const std::size_t width = cells.size();
  if (hashed() || vocabulary->packs()) {
    std::vector<std::int64_t>& prefixes = scratch.packed;
    prefixes.assign(1, hashed() ? static_cast<std::int64_t>(hash_key) : 0);
    for (std::size_t p = 0; p < width; ++p) {
      const Values values = values_of(*cells[p], inputs[p].row(example), hashed());
      if (hashed()) {
        extend(prefixes, values, append_key);
      } else {
        const std::int64_t stride = vocabulary->stride(p);
        extend(prefixes, values,
               [stride](std::int64_t sum, std::int64_t id) { return sum + id * stride; });
      }
    }
    if (hashed()) {
      for (std::int64_t& hash : prefixes)
        hash = bucket_id(static_cast<std::uint64_t>(hash), buckets);
    }
    out.ids.insert(out.ids.end(), prefixes.begin(), prefixes.end());
    return;
  }
  std::int64_t count = 1;
  for (std::size_t p = 0; p < width; ++p) {
    count *= values_of(*cells[p], inputs[p].row(example), false).n;
  }
  const std::size_t start = scratch.tuples.size();
  scratch.tuples.resize(start + as_size(count) * width);
  std::int64_t repeat = count;
  for (std::size_t p = 0; count > 0 && p < width; ++p) {
    const Values values = values_of(*cells[p], inputs[p].row(example), false);
    repeat /= values.n;
    for (std::int64_t i = 0; i < count; ++i) {
      scratch.tuples[start + as_size(i) * width + p] = values.data[i / repeat % values.n];
    }
  }
}

void CrossFeature::encode(const std::vector<CrossInput>& inputs, std::int64_t n_examples,
                          const Where& where, Scratch& scratch, Cells& out) const {
  out.clear();
  if (encode_single(inputs, n_examples, out)) return;
  out.clear();
  scratch.tuples.clear();
  const Columns cells = columns(inputs);
  std::int64_t total = 0;
  for (std::int64_t i = 0; i < n_examples; ++i) {
    std::int64_t n = 1;
    for (std::size_t p = 0; p < cells.size(); ++p) {
      n = product(n, values_of(*cells[p], inputs[p].row(i), hashed()).n);
    }
    if (n > max_combinations) throw_too_many(inputs, cells, i, where);
    if (n > 0) append_row(inputs, cells, i, scratch, out);
    total += n;
    out.ends.push_back(total);
    if (scratch.tuples.size() >= kTuplesAtOnce * cells.size()) find_tuples(scratch, out);
  }
  if (hashed()) return;
  if (!vocabulary->packs()) {
    find_tuples(scratch, out);
    return;
  }
  vocabulary->find_packed(out.ids.data(), total, out.ids.data());
  for (std::int64_t& id : out.ids) id = known_or_unseen(id);
}

std::int64_t CrossFeature::count(const std::vector<CrossInput>& inputs,
                                 std::int64_t n_examples) const {
  const Columns cells = columns(inputs);
  const auto is_single = [](const Cells* part) { return part->single(); };
  if (std::all_of(cells.begin(), cells.end(), is_single)) return n_examples;
  std::int64_t total = 0;
  for (std::int64_t i = 0; i < n_examples; ++i) {
    std::int64_t n = 1;
    for (std::size_t p = 0; p < cells.size(); ++p) {
      n = product(n, values_of(*cells[p], inputs[p].row(i), hashed()).n);
    }
    if (__builtin_add_overflow(total, n, &total)) return std::numeric_limits<std::int64_t>::max();
  }
  return total;
}

void CrossFeature::throw_too_many(const std::vector<CrossInput>& inputs, const Columns& cells,
                                  std::int64_t example, const Where& where) const {
  std::string lengths;
  std::int64_t n = 1;
  for (std::size_t p = 0; p < cells.size(); ++p) {
    const std::int64_t length = values_of(*cells[p], inputs[p].row(example), hashed()).n;
    n = product(n, length);
    lengths += (p == 0 ? "" : " x ") + std::to_string(length);
  }
  throw InputError(
      InputError::Kind::limit,
      "feature " + quoted(name) + " (" + row_text(where.origin, where.batch_row + example) +
          "): got " + lengths + " values of its parts, which make " + grouped(n) +
          " combinations, expected at most max_combinations=" + grouped(max_combinations) +
          " in a row; shorten the lists, or declare the cross with a larger "
          "max_combinations");
}

}  // namespace widedeep::transform
