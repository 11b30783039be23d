// The transform of a request, taken apart: the query's features once, the items' once a catalogue,
// and of each candidate only the crosses of both. Gives the very ids of transform.hpp.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "transform.hpp"

namespace widedeep::transform {

// What one side computes of its own rows.
struct SideProgram {
  SideProgram() = default;
  // `crossed` are the parts that crosses with the other side read.
  SideProgram(const Plan& of, std::vector<Slot> own_slots, std::vector<int> own_numbers,
              std::vector<int> crossed);

  // Which columns of the plan must be given.
  std::vector<int> columns() const;

  const Plan* plan = nullptr;
  std::vector<Slot> slots;
  std::vector<int> numbers;  // in the plan's list of numbers
  std::vector<int> pair_parts;
  std::vector<int> crosses;       // those of the slots, and those that numbers count
  std::vector<int> active_parts;  // those of the slots and numbers, of the crosses, and of pairs
};

// The parts of some rows that crosses with the other side read; by place in the plan.
struct SideParts {
  std::int64_t n_rows = 0;
  std::vector<PartCells> cells;
};

// Rows of one side: cells of its slots, all dense columns (zero where they are not the side's).
struct SideRows {
  SideParts parts;
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> offsets;
  std::vector<float> values;  // a weight an id; empty where the side has none
  std::vector<float> dense;

  // As a batch of `n_slots` slots.
  CsrBatch csr(std::int64_t n_slots) const {
    return {ids.data(),
            offsets.data(),
            values.empty() ? nullptr : values.data(),
            static_cast<std::int64_t>(ids.size()),
            parts.n_rows,
            n_slots};
  }
};

// A request's rows may have max_values of the plan; a catalogue as many as it likes.
SideRows encode_side(const SideProgram& program, const std::vector<InputBatch>& batches,
                     const Origin& origin, bool is_request);

// One cell a candidate and cross, in the order of `crosses`.
struct PairCells {
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> offsets;
};

// Crosses the query's one row with the items at `positions`. Each part of a cross is in the
// pair_parts of one of the two. Throws for more ids than max_values of the plan, as a fault of the
// request; for more than most_values, as more than the caller takes on.
PairCells cross_pairs(const Plan& plan, const std::vector<int>& crosses,
                      const std::vector<bool>& is_item_part, const SideParts& query,
                      const SideParts& items, const std::int64_t* positions, std::int64_t n,
                      std::int64_t most_values = std::numeric_limits<std::int64_t>::max());

}  // namespace widedeep::transform
