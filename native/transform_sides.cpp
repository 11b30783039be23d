#include "transform_sides.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>
#include <utility>

#include "flush_to_zero.hpp"

namespace widedeep::transform {
namespace {

// Rows that go through all features together: their ids stay in the second-level cache.
constexpr std::int64_t kBlockRows = 512;

std::size_t as_size(std::int64_t n) { return static_cast<std::size_t>(n); }

// Adds `n` rows of `from` after the `before` rows of `to`. Weights are of no use to crosses.
void append_cells(const Cells& from, std::int64_t n, std::int64_t before, Cells& to) {
  const bool single = from.single() && to.ends.empty();
  if (!single && to.ends.empty()) {
    for (std::int64_t row = 0; row < before; ++row) to.ends.push_back(row + 1);
  }
  const auto shift = static_cast<std::int64_t>(to.ids.size());
  to.ids.insert(to.ids.end(), from.ids.begin(), from.ids.begin() + from.begin(n));
  for (std::int64_t row = 0; !single && row < n; ++row) to.ends.push_back(shift + from.end(row));
}

// One row, n times.
void repeat_cells(const Cells& row, std::int64_t n, Cells& out) {
  out.clear();
  const auto count = static_cast<std::int64_t>(row.ids.size());
  out.ids.reserve(as_size(n * count));
  if (count == 1) out.ids.assign(as_size(n), row.ids[0]);
  for (std::int64_t i = 0; count != 1 && i < n; ++i) {
    out.ids.insert(out.ids.end(), row.ids.begin(), row.ids.end());
    out.ends.push_back((i + 1) * count);
  }
  for (std::int64_t i = 0; !row.values.empty() && i < n; ++i) {
    out.values.insert(out.values.end(), row.values.begin(), row.values.end());
  }
}

class SideEncoder {
 public:
  SideEncoder(const SideProgram& program, const Origin& origin, bool is_request, SideRows& out)
      : program_(program),
        plan_(*program.plan),
        origin_(origin),
        out_(out),
        dense_starts_(plan_.dense_starts()),
        parts_(plan_.parts.size()),
        crosses_(plan_.crosses.size()),
        is_request_(is_request) {
    out_.offsets.push_back(0);
    out_.parts.cells.resize(plan_.parts.size());
    has_values_ = std::any_of(program.slots.begin(), program.slots.end(), [&](const Slot& slot) {
      return slot.kind == Slot::Kind::number ||
             (slot.kind == Slot::Kind::part && plan_.parts[as_size(slot.index)]->has_values());
    });
  }

  void encode(const InputBatch& batch) {
    const std::int64_t first_of_batch = out_.parts.n_rows;
    for (std::int64_t begin = 0; begin < batch.n_rows; begin += kBlockRows) {
      encode_block(batch, begin, std::min(begin + kBlockRows, batch.n_rows), first_of_batch);
    }
  }

 private:
  std::int64_t n_values() const {
    return static_cast<std::int64_t>(out_.ids.size() + out_.dense.size());
  }

  void encode_block(const InputBatch& batch, std::int64_t begin, std::int64_t end,
                    std::int64_t first_of_batch) {
    const Where where{origin_, first_of_batch};
    const std::int64_t n = end - begin;
    const std::int64_t stride = dense_starts_.back();
    if (is_request_) plan_.check_values(n_values() + n * stride);
    const std::size_t dense_at = out_.dense.size();
    out_.dense.resize(dense_at + as_size(n * stride));
    for (const int index : program_.numbers) {
      encode_number(batch, index, begin, end, where, out_.dense.data() + dense_at);
    }
    for (const int index : program_.active_parts) encode_part(batch, index, begin, end, where);
    for (const int index : program_.crosses) encode_cross(index, n);
    for (const int index : program_.numbers) {
      count(index, n, out_.dense.data() + dense_at + dense_starts_[as_size(index)]);
    }
    for (std::int64_t row = 0; row < n; ++row) {
      assemble(row, out_.dense.data() + dense_at + row * stride);
    }
    for (const int index : program_.pair_parts) {
      PartCells& kept = out_.parts.cells[as_size(index)];
      append_cells(parts_[as_size(index)].ids, n, out_.parts.n_rows, kept.ids);
      if (!plan_.parts[as_size(index)]->wants_keys) continue;
      append_cells(parts_[as_size(index)].keys, n, out_.parts.n_rows, kept.keys);
    }
    out_.parts.n_rows += n;
  }

  void encode_number(const InputBatch& batch, int index, std::int64_t begin, std::int64_t end,
                     const Where& where, float* dense) {
    const NumericFeature& number = *plan_.numbers[as_size(index)];
    if (number.is_count()) return;
    const std::int64_t stride = dense_starts_.back();
    float* const out = dense + dense_starts_[as_size(index)];
    if (number.fixed.empty()) {
      number.encode(*batch.columns[as_size(number.column)], begin, end, where, scratch_, out,
                    stride);
      return;
    }
    for (std::int64_t row = 0; row < end - begin; ++row) {
      std::copy(number.fixed.begin(), number.fixed.end(), out + row * stride);
    }
  }

  void encode_part(const InputBatch& batch, int index, std::int64_t begin, std::int64_t end,
                   const Where& where) {
    const Part& part = *plan_.parts[as_size(index)];
    PartCells& cells = parts_[as_size(index)];
    if (part.fixed != nullptr) {
      repeat_cells(part.fixed->ids, end - begin, cells.ids);
      repeat_cells(part.fixed->keys, end - begin, cells.keys);
      return;
    }
    PartInput input;
    input.column = batch.columns[as_size(part.column)];
    if (part.weights >= 0) input.weights = batch.columns[as_size(part.weights)];
    if (part.parallel >= 0) input.parallel = batch.columns[as_size(part.parallel)];
    part.encode(input, begin, end, where, scratch_, cells);
  }

  void encode_cross(int index, std::int64_t n) {
    const CrossFeature& cross = *plan_.crosses[as_size(index)];
    cross_inputs_.clear();
    for (const int part : cross.parts) cross_inputs_.push_back({&parts_[as_size(part)]});
    if (is_request_) plan_.check_values(n_values() + cross.count(cross_inputs_, n));
    cross.encode(cross_inputs_, n, {origin_, out_.parts.n_rows}, scratch_,
                 crosses_[as_size(index)]);
  }

  void count(int index, std::int64_t n, float* out) {
    const NumericFeature& number = *plan_.numbers[as_size(index)];
    if (!number.is_count()) return;
    const auto source = as_size(number.counted);
    number.count(number.counts_cross ? crosses_[source] : parts_[source].ids, n, out,
                 dense_starts_.back());
  }

  void assemble(std::int64_t row, const float* dense) {
    for (const Slot& slot : program_.slots) {
      if (slot.kind == Slot::Kind::number) {
        assemble_number(as_size(slot.index), dense);
      } else {
        assemble_cell(slot.kind == Slot::Kind::part ? parts_[as_size(slot.index)].ids
                                                    : crosses_[as_size(slot.index)],
                      row);
      }
      out_.offsets.push_back(static_cast<std::int64_t>(out_.ids.size()));
    }
  }

  void assemble_number(std::size_t number, const float* dense) {
    const std::int64_t start = dense_starts_[number];
    for (std::int64_t j = 0; j < dense_starts_[number + 1] - start; ++j) {
      out_.ids.push_back(kFirstKnownId + j);
      out_.values.push_back(dense[start + j]);
    }
  }

  void assemble_cell(const Cells& cells, std::int64_t row) {
    for (std::int64_t i = cells.begin(row); i < cells.end(row); ++i) {
      out_.ids.push_back(cells.ids[as_size(i)]);
      if (has_values_)
        out_.values.push_back(cells.values.empty() ? 1.0F : cells.values[as_size(i)]);
    }
  }

  const SideProgram& program_;
  const Plan& plan_;
  const Origin& origin_;
  SideRows& out_;
  std::vector<std::int64_t> dense_starts_;
  bool has_values_ = false;
  Scratch scratch_;
  std::vector<PartCells> parts_;
  std::vector<Cells> crosses_;
  std::vector<CrossInput> cross_inputs_;
  bool is_request_;
};

// What a thread crosses with; it grows to the largest request and stays.
struct PairRoom {
  Scratch scratch;
  std::vector<std::vector<CrossInput>> inputs;  // of each cross
  std::vector<Cells> found;
};

// As side_by_side, where each candidate has one id of each cross.
PairCells singles_side_by_side(const Cells* found, std::size_t n_crosses, std::int64_t n) {
  PairCells out;
  out.ids.resize(as_size(n) * n_crosses);
  out.offsets.resize(as_size(n) * n_crosses + 1);
  for (std::size_t c = 0; c < n_crosses; ++c) {
    const std::int64_t* const ids = found[c].ids.data();
    for (std::size_t row = 0; row < as_size(n); ++row) out.ids[row * n_crosses + c] = ids[row];
  }
  std::iota(out.offsets.begin(), out.offsets.end(), 0);
  return out;
}

PairCells side_by_side(const Cells* found, std::size_t n_crosses, std::int64_t n) {
  const auto is_single = [](const Cells& cells) { return cells.single(); };
  if (std::all_of(found, found + n_crosses, is_single)) {
    return singles_side_by_side(found, n_crosses, n);
  }
  PairCells out;
  std::size_t total = 0;
  for (std::size_t c = 0; c < n_crosses; ++c) total += found[c].ids.size();
  out.ids.resize(total);
  out.offsets.resize(as_size(n) * n_crosses + 1);
  std::int64_t* id = out.ids.data();
  std::int64_t* end = out.offsets.data();
  *end++ = 0;
  for (std::int64_t row = 0; row < n; ++row) {
    for (std::size_t c = 0; c < n_crosses; ++c) {
      const Cells& cells = found[c];
      for (std::int64_t i = cells.begin(row); i < cells.end(row); ++i) {
        *id++ = cells.ids[as_size(i)];
      }
      *end++ = id - out.ids.data();
    }
  }
  return out;
}

}  // namespace

SideProgram::SideProgram(const Plan& of, std::vector<Slot> own_slots, std::vector<int> own_numbers,
                         std::vector<int> crossed)
    : plan(&of),
      slots(std::move(own_slots)),
      numbers(std::move(own_numbers)),
      pair_parts(std::move(crossed)) {
  std::set<int> parts(pair_parts.begin(), pair_parts.end());
  std::set<int> own_crosses;
  for (const Slot& slot : slots) {
    if (slot.kind == Slot::Kind::part) parts.insert(slot.index);
    if (slot.kind == Slot::Kind::cross) own_crosses.insert(slot.index);
  }
  for (const int index : numbers) {
    const NumericFeature& number = *plan->numbers[as_size(index)];
    if (number.is_count()) (number.counts_cross ? own_crosses : parts).insert(number.counted);
  }
  for (const int cross : own_crosses) {
    for (const int part : plan->crosses[as_size(cross)]->parts) parts.insert(part);
  }
  crosses.assign(own_crosses.begin(), own_crosses.end());
  active_parts.assign(parts.begin(), parts.end());
}

std::vector<int> SideProgram::columns() const {
  std::set<int> needed;
  for (const int index : active_parts) {
    const Part& part = *plan->parts[as_size(index)];
    if (part.fixed != nullptr) continue;
    needed.insert(part.column);
    if (part.weights >= 0) needed.insert(part.weights);
    if (part.parallel >= 0) needed.insert(part.parallel);
  }
  for (const int index : numbers) {
    const NumericFeature& number = *plan->numbers[as_size(index)];
    if (number.fixed.empty() && !number.is_count()) needed.insert(number.column);
  }
  return {needed.begin(), needed.end()};
}

SideRows encode_side(const SideProgram& program, const std::vector<InputBatch>& batches,
                     const Origin& origin, bool is_request) {
  const ScopedKeepDenormals keep;
  SideRows out;
  SideEncoder encoder(program, origin, is_request, out);
  for (const InputBatch& batch : batches) encoder.encode(batch);
  return out;
}

PairCells cross_pairs(const Plan& plan, const std::vector<int>& crosses,
                      const std::vector<bool>& is_item_part, const SideParts& query,
                      const SideParts& items, const std::int64_t* positions, std::int64_t n,
                      std::int64_t most_values) {
  thread_local PairRoom room;
  static const Origin kCandidates{"the candidates", 0};
  room.inputs.resize(std::max(room.inputs.size(), crosses.size()));
  room.found.resize(std::max(room.found.size(), crosses.size()));
  std::int64_t total = 0;
  for (std::size_t c = 0; c < crosses.size(); ++c) {
    const CrossFeature& cross = *plan.crosses[as_size(crosses[c])];
    room.inputs[c].clear();
    for (const int index : cross.parts) {
      const bool is_item = is_item_part[as_size(index)];
      const SideParts& side = is_item ? items : query;
      room.inputs[c].push_back({&side.cells[as_size(index)], is_item ? positions : nullptr, true});
    }
    const std::int64_t count = cross.count(room.inputs[c], n);
    if (__builtin_add_overflow(total, count, &total))
      total = std::numeric_limits<std::int64_t>::max();
  }
  plan.check_values(total);
  if (total > most_values) throw std::length_error("more values than this thread takes on");
  for (std::size_t c = 0; c < crosses.size(); ++c) {
    const CrossFeature& cross = *plan.crosses[as_size(crosses[c])];
    cross.encode(room.inputs[c], n, {kCandidates, 0}, room.scratch, room.found[c]);
  }
  return side_by_side(room.found.data(), crosses.size(), n);
}

}  // namespace widedeep::transform
