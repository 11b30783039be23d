#include "transform.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <set>
#include <tuple>

#include "flush_to_zero.hpp"
#include "thread_pool.hpp"

namespace widedeep::transform {
namespace {

// Rows that go through all features together: their ids stay in the second-level cache.
constexpr std::int64_t kBlockRows = 512;

std::size_t as_size(std::int64_t n) { return static_cast<std::size_t>(n); }

struct Block {
  const InputBatch* batch;
  std::size_t batch_index;
  std::int64_t row_begin;
  std::int64_t row_end;
  std::int64_t first_row;       // of row_begin, in the whole input
  std::int64_t out_row;         // where row_begin is written
  std::int64_t first_of_batch;  // of the batch's row 0
  std::int64_t most_ids;        // at most this many ids

  std::int64_t n_rows() const noexcept { return row_end - row_begin; }
};

// What a program runs: the parts and crosses that its slots need, directly or as parts of crosses.
struct Active {
  std::vector<int> parts;
  std::vector<int> crosses;
};

Active active_features(const Program& program) {
  std::set<int> parts;
  std::set<int> crosses;
  const auto add_cross = [&](int index) {
    crosses.insert(index);
    for (const int part : program.plan->crosses[as_size(index)]->parts) parts.insert(part);
  };
  for (const Slot& slot : program.slots) {
    if (slot.kind == Slot::Kind::part) parts.insert(slot.index);
    if (slot.kind == Slot::Kind::cross) add_cross(slot.index);
  }
  for (const auto& number : program.plan->numbers) {
    if (!program.dense || !number->is_count()) continue;
    if (number->counts_cross) {
      add_cross(number->counted);
    } else {
      parts.insert(number->counted);
    }
  }
  return {{parts.begin(), parts.end()}, {crosses.begin(), crosses.end()}};
}

bool uses_numbers(const Program& program) {
  return program.dense || std::any_of(program.slots.begin(), program.slots.end(),
                                      [](const Slot& s) { return s.kind == Slot::Kind::number; });
}

bool is_fixed(const Program& program, const Part& part) {
  return program.fixed && part.fixed != nullptr;
}

bool is_fixed(const Program& program, const NumericFeature& number) {
  return program.fixed && !number.fixed.empty();
}

// One row, n times.
void repeat_cells(const Cells& row, std::int64_t n, Cells& out) {
  out.clear();
  const auto count = static_cast<std::int64_t>(row.ids.size());
  for (std::int64_t i = 0; i < n; ++i) {
    out.ids.insert(out.ids.end(), row.ids.begin(), row.ids.end());
    out.values.insert(out.values.end(), row.values.begin(), row.values.end());
    if (count != 1) out.ends.push_back((i + 1) * count);
  }
}

std::int64_t most_elements(const Column& column, std::int64_t row) {
  if (column.list == ListLayer::none) return 1;
  const ElementRange range = elements_of(column, row);
  return std::max<std::int64_t>(1, range.end - range.begin);  // a null list has one id
}

// Encodes programs over blocks; shared by all threads.
class Run {
 public:
  Run(const Program& program, const std::vector<InputBatch>& batches, const Origin& origin)
      : program_(program),
        plan_(*program.plan),
        origin_(origin),
        active_(active_features(program)),
        dense_starts_(plan_.dense_starts()),
        with_numbers_(uses_numbers(program)) {
    std::int64_t first_row = 0;
    for (std::size_t b = 0; b < batches.size(); ++b) {
      add_blocks(batches[b], b, first_row);
      first_row += batches[b].n_rows;
    }
    n_rows_ = first_row;
  }

  Encoded encode(int threads);
  Packed pack(int threads, std::vector<std::uint8_t> widths);

 private:
  // What one thread works with.
  struct Room {
    explicit Room(const Plan& plan) : parts(plan.parts.size()), crosses(plan.crosses.size()) {}

    Scratch scratch;
    std::vector<PartCells> parts;
    std::vector<Cells> crosses;
    std::vector<CrossInput> cross_inputs;
    std::vector<const Cells*> slots;
    std::vector<const std::int64_t*> columns;  // ids of each slot
    std::vector<float> dense;                  // where numbers are only weights in the wide part
  };

  void add_blocks(const InputBatch& batch, std::size_t batch_index, std::int64_t first_row);
  std::int64_t most_ids(const InputBatch& batch, std::int64_t row_begin,
                        std::int64_t row_end) const;
  std::int64_t most_ids_of_part(const InputBatch& batch, int part, std::int64_t row) const;
  std::int64_t most_ids_of_slot(const InputBatch& batch, const Slot& slot, std::int64_t row) const;
  bool has_lists(const InputBatch& batch) const;
  Encoded allocated(std::int64_t n_rows, std::int64_t most_ids) const;
  int n_parts(int threads) const;
  template <class Fn>
  void over_blocks(int n_parts, Fn&& fn) const;
  void prepare_tables(int threads);
  PartInput part_input(const Block& block, int part) const;
  void encode_parts(const Block& block, Room& room) const;
  void encode_crosses(const Block& block, Room& room) const;
  void encode_numbers(const Block& block, Room& room, float* dense) const;
  void encode_counts(const Block& block, const Room& room, float* dense) const;
  void encode_targets(const Block& block, Room& room, Encoded& out) const;
  std::int64_t assemble(const Block& block, Room& room, const float* dense, std::int64_t at,
                        Encoded& out) const;
  std::int64_t assemble_single(const Block& block, Room& room, std::int64_t at, Encoded& out) const;
  std::int64_t encode_block(const Block& block, Room& room, std::int64_t at, Encoded& out) const;
  std::int64_t encode_blocks(std::int64_t begin, std::int64_t end, std::int64_t at,
                             Encoded& out) const;
  bool pack_blocks(std::int64_t begin, std::int64_t end, Packed& out,
                   std::vector<std::uint8_t>& bytes) const;
  std::int64_t close_gaps(const std::vector<std::int64_t>& starts,
                          const std::vector<std::int64_t>& counts,
                          const std::vector<std::int64_t>& first_blocks, Encoded& out) const;

  const Program& program_;
  const Plan& plan_;
  const Origin& origin_;
  Active active_;
  std::vector<std::int64_t> dense_starts_;
  bool with_numbers_;
  std::vector<Block> blocks_;
  std::int64_t n_rows_ = 0;
  // By batch and part; tables of one dictionary are made once, however many batches share it.
  std::vector<std::vector<const DictionaryTable*>> tables_;
  std::vector<std::unique_ptr<DictionaryTable>> owned_tables_;
};

bool Run::has_lists(const InputBatch& batch) const {
  return std::any_of(active_.parts.begin(), active_.parts.end(), [&](int part) {
    const Part& p = *plan_.parts[as_size(part)];
    return !is_fixed(program_, p) && batch.columns[as_size(p.column)]->list != ListLayer::none;
  });
}

std::int64_t Run::most_ids_of_part(const InputBatch& batch, int index, std::int64_t row) const {
  const Part& part = *plan_.parts[as_size(index)];
  if (is_fixed(program_, part)) return static_cast<std::int64_t>(part.fixed->ids.ids.size());
  const std::int64_t values = most_elements(*batch.columns[as_size(part.column)], row);
  return std::min(values * part.ids_per_value(), part.most_ids());
}

std::int64_t Run::most_ids_of_slot(const InputBatch& batch, const Slot& slot,
                                   std::int64_t row) const {
  if (slot.kind == Slot::Kind::number) return plan_.numbers[as_size(slot.index)]->width();
  if (slot.kind == Slot::Kind::part) return most_ids_of_part(batch, slot.index, row);
  const CrossFeature& cross = *plan_.crosses[as_size(slot.index)];
  std::int64_t product = 1;
  for (const int part : cross.parts) {
    // A dropped value has no id of its own but still a key, so a fixed part counts as one at least.
    const std::int64_t n = std::max<std::int64_t>(1, most_ids_of_part(batch, part, row));
    if (__builtin_mul_overflow(product, n, &product)) return cross.max_combinations;
  }
  return std::min(product, cross.max_combinations);  // of more it throws
}

std::int64_t Run::most_ids(const InputBatch& batch, std::int64_t row_begin,
                           std::int64_t row_end) const {
  const std::int64_t rows = has_lists(batch) ? row_end - row_begin : 1;
  const std::int64_t times = (row_end - row_begin) / rows;
  std::int64_t total = 0;
  for (std::int64_t row = row_begin; row < row_begin + rows; ++row) {
    for (const Slot& slot : program_.slots) total += most_ids_of_slot(batch, slot, row);
  }
  return total * times;
}

void Run::add_blocks(const InputBatch& batch, std::size_t batch_index, std::int64_t first_row) {
  for (std::int64_t begin = 0; begin < batch.n_rows; begin += kBlockRows) {
    const std::int64_t end = std::min(begin + kBlockRows, batch.n_rows);
    blocks_.push_back({&batch, batch_index, begin, end, first_row + begin, first_row + begin,
                       first_row, most_ids(batch, begin, end)});
  }
}

void Run::prepare_tables(int threads) {
  struct Task {
    int part;
    const Column* column;
    DictionaryTable* table;
  };
  std::vector<Task> tasks;
  std::map<std::tuple<int, const void*, const void*, std::int64_t, std::int64_t>, DictionaryTable*>
      known;
  for (const Block& block : blocks_) {
    if (tables_.size() <= block.batch_index) tables_.resize(block.batch_index + 1);
    auto& tables = tables_[block.batch_index];
    if (!tables.empty()) continue;
    tables.assign(plan_.parts.size(), nullptr);
    for (const int part : active_.parts) {
      if (is_fixed(program_, *plan_.parts[as_size(part)])) continue;
      const Column& column = *part_input(block, part).column;
      if (!column.has_dictionary) continue;
      const Scalars& values = column.values;
      auto& table = known[{part, values.data, values.text, values.offset, values.length}];
      if (table == nullptr) {
        owned_tables_.push_back(std::make_unique<DictionaryTable>());
        table = owned_tables_.back().get();
        tasks.push_back({part, &column, table});
      }
      tables[as_size(part)] = table;
    }
  }
  parallel_for(static_cast<std::int64_t>(tasks.size()), threads,
               [&](std::int64_t begin, std::int64_t end, int) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   const Task& task = tasks[as_size(i)];
                   *task.table = plan_.parts[as_size(task.part)]->dictionary_table(*task.column);
                 }
               });
}

PartInput Run::part_input(const Block& block, int index) const {
  const Part& part = *plan_.parts[as_size(index)];
  const auto& columns = block.batch->columns;
  PartInput input;
  input.column = columns[as_size(part.column)];
  if (part.weights >= 0) input.weights = columns[as_size(part.weights)];
  if (part.parallel >= 0) input.parallel = columns[as_size(part.parallel)];
  if (block.batch_index < tables_.size() && !tables_[block.batch_index].empty()) {
    input.table = tables_[block.batch_index][as_size(index)];
  }
  return input;
}

void Run::encode_parts(const Block& block, Room& room) const {
  const Where where{origin_, block.first_of_batch};
  for (const int index : active_.parts) {
    const Part& part = *plan_.parts[as_size(index)];
    PartCells& cells = room.parts[as_size(index)];
    if (is_fixed(program_, part)) {
      repeat_cells(part.fixed->ids, block.n_rows(), cells.ids);
      repeat_cells(part.fixed->keys, block.n_rows(), cells.keys);
      continue;
    }
    part.encode(part_input(block, index), block.row_begin, block.row_end, where, room.scratch,
                cells);
  }
}

void Run::encode_crosses(const Block& block, Room& room) const {
  for (const int index : active_.crosses) {
    const CrossFeature& cross = *plan_.crosses[as_size(index)];
    room.cross_inputs.clear();
    for (const int part : cross.parts) room.cross_inputs.push_back({&room.parts[as_size(part)]});
    const Where where{origin_, block.first_row};
    cross.encode(room.cross_inputs, block.n_rows(), where, room.scratch,
                 room.crosses[as_size(index)]);
  }
}

void Run::encode_numbers(const Block& block, Room& room, float* dense) const {
  const Where where{origin_, block.first_of_batch};
  const std::int64_t stride = dense_starts_.back();
  for (std::size_t k = 0; k < plan_.numbers.size(); ++k) {
    const NumericFeature& number = *plan_.numbers[k];
    if (number.is_count()) continue;
    float* const out = dense + dense_starts_[k];
    if (!is_fixed(program_, number)) {
      number.encode(*block.batch->columns[as_size(number.column)], block.row_begin, block.row_end,
                    where, room.scratch, out, stride);
      continue;
    }
    for (std::int64_t row = 0; row < block.n_rows(); ++row) {
      std::copy(number.fixed.begin(), number.fixed.end(), out + row * stride);
    }
  }
}

// After the parts and crosses, whose ids are counted.
void Run::encode_counts(const Block& block, const Room& room, float* dense) const {
  for (std::size_t k = 0; k < plan_.numbers.size(); ++k) {
    const NumericFeature& number = *plan_.numbers[k];
    if (!number.is_count()) continue;
    const Cells& cells = number.counts_cross ? room.crosses[as_size(number.counted)]
                                             : room.parts[as_size(number.counted)].ids;
    number.count(cells, block.n_rows(), dense + dense_starts_[k], dense_starts_.back());
  }
}

void Run::encode_targets(const Block& block, Room& room, Encoded& out) const {
  const Where where{origin_, block.first_of_batch};
  const auto& columns = block.batch->columns;
  float* labels = out.labels.get() + block.out_row * out.n_labels;
  for (const auto& label : plan_.labels) {
    label->encode(*columns[as_size(label->column)], block.row_begin, block.row_end, where,
                  room.scratch, labels, out.n_labels);
    labels += label->width();
  }
  if (plan_.weight_column >= 0) {
    const auto at = as_size(plan_.weight_column);
    encode_weights(*columns[at], plan_.columns[at], block.row_begin, block.row_end, where,
                   room.scratch, out.weight.get() + block.out_row);
  }
  if (plan_.group_column >= 0) {
    const auto at = as_size(plan_.group_column);
    encode_groups(*columns[at], plan_.columns[at], block.row_begin, block.row_end, where,
                  room.scratch, out.group.get() + block.out_row);
  }
}

// The common case: one id a cell, no weights.
std::int64_t Run::assemble_single(const Block& block, Room& room, std::int64_t at,
                                  Encoded& out) const {
  const std::size_t n_slots = program_.slots.size();
  std::int64_t* ids = out.ids.get() + at;
  std::int64_t* ends = out.offsets.get() + block.out_row * static_cast<std::int64_t>(n_slots) + 1;
  room.columns.clear();
  for (const Cells* const cells : room.slots) room.columns.push_back(cells->ids.data());
  const std::int64_t* const* const columns = room.columns.data();
  for (std::int64_t row = 0; row < block.n_rows(); ++row, ids += n_slots) {
    for (std::size_t f = 0; f < n_slots; ++f) ids[f] = columns[f][row];
  }
  const std::int64_t n = block.n_rows() * static_cast<std::int64_t>(n_slots);
  for (std::int64_t i = 0; i < n; ++i) ends[i] = at + i + 1;
  return n;
}

// Writes the block's cells from id `at` on, in the order of examples; returns how many ids.
std::int64_t Run::assemble(const Block& block, Room& room, const float* dense, std::int64_t at,
                           Encoded& out) const {
  room.slots.clear();
  bool single = !out.has_values;
  for (const Slot& slot : program_.slots) {
    const Cells* const cells = slot.kind == Slot::Kind::part ? &room.parts[as_size(slot.index)].ids
                               : slot.kind == Slot::Kind::cross ? &room.crosses[as_size(slot.index)]
                                                                : nullptr;
    room.slots.push_back(cells);
    single = single && cells != nullptr && cells->single();
  }
  if (single) return assemble_single(block, room, at, out);
  const std::int64_t start = at;
  const auto n_slots = static_cast<std::int64_t>(program_.slots.size());
  std::int64_t* end = out.offsets.get() + block.out_row * n_slots + 1;
  for (std::int64_t row = 0; row < block.n_rows(); ++row) {
    for (std::size_t f = 0; f < program_.slots.size(); ++f, *end++ = at) {
      if (room.slots[f] == nullptr) {
        const auto k = as_size(program_.slots[f].index);
        const std::int64_t width = dense_starts_[k + 1] - dense_starts_[k];
        const float* const values = dense + row * dense_starts_.back() + dense_starts_[k];
        for (std::int64_t j = 0; j < width; ++j, ++at) {
          out.ids.get()[at] = kFirstKnownId + j;
          out.values.get()[at] = values[j];
        }
        continue;
      }
      const Cells& cells = *room.slots[f];
      for (std::int64_t i = cells.begin(row); i < cells.end(row); ++i, ++at) {
        out.ids.get()[at] = cells.ids[as_size(i)];
        if (!out.has_values) continue;
        out.values.get()[at] = cells.values.empty() ? 1.0F : cells.values[as_size(i)];
      }
    }
  }
  return at - start;
}

// Writes a block's rows, its ids from `at` on; returns how many ids.
std::int64_t Run::encode_block(const Block& block, Room& room, std::int64_t at,
                               Encoded& out) const {
  float* dense = out.dense.get() + block.out_row * out.n_dense;
  if (with_numbers_) {
    if (!program_.dense) {
      room.dense.resize(as_size(block.n_rows() * dense_starts_.back()));
      dense = room.dense.data();
    }
    encode_numbers(block, room, dense);
  }
  encode_parts(block, room);
  encode_crosses(block, room);
  if (program_.dense) encode_counts(block, room, dense);
  if (program_.targets) encode_targets(block, room, out);
  return assemble(block, room, dense, at, out);
}

std::int64_t Run::encode_blocks(std::int64_t begin, std::int64_t end, std::int64_t at,
                                Encoded& out) const {
  Room room(plan_);
  const std::int64_t start = at;
  for (std::int64_t b = begin; b < end; ++b) {
    at += encode_block(blocks_[as_size(b)], room, at, out);
  }
  return at - start;
}

// False if an id does not fit into its width.
bool Run::pack_blocks(std::int64_t begin, std::int64_t end, Packed& out,
                      std::vector<std::uint8_t>& bytes) const {
  Room room(plan_);
  std::int64_t most = 0, rows = 0, row_bytes = out.layout.fixed_bytes();
  for (std::int64_t b = begin; b < end; ++b) {
    most = std::max(most, blocks_[as_size(b)].most_ids);
    rows += blocks_[as_size(b)].n_rows();
  }
  for (const int width : out.layout.widths) row_bytes += width;
  bytes.reserve(as_size(rows * row_bytes + kBlockRows));
  Encoded encoded = allocated(kBlockRows, most);
  std::int64_t starts[kBlockRows + 1];
  for (std::int64_t b = begin; b < end; ++b) {
    Block block = blocks_[as_size(b)];
    block.out_row = 0;
    const std::int64_t n_ids = encode_block(block, room, 0, encoded);
    const ExampleArrays arrays = {
        encoded.ids.get(),    encoded.offsets.get(), encoded.values.get(), encoded.dense.get(),
        encoded.labels.get(), encoded.weight.get(),  encoded.group.get(),  n_ids};
    if (pack_examples(out.layout, arrays, block.n_rows(), bytes, starts) >= 0) return false;
    std::copy_n(starts, block.n_rows(), out.starts.begin() + block.first_row);
  }
  return true;
}

// Room for rows and their ids.
Encoded Run::allocated(std::int64_t n_rows, std::int64_t most_ids) const {
  Encoded out;
  out.n_rows = n_rows;
  out.n_offsets = n_rows * static_cast<std::int64_t>(program_.slots.size()) + 1;
  out.n_dense = program_.dense ? dense_starts_.back() : 0;
  out.n_labels = 0;
  if (program_.targets) {
    for (const auto& label : plan_.labels) out.n_labels += label->width();
  }
  out.has_values = std::any_of(program_.slots.begin(), program_.slots.end(), [&](const Slot& s) {
    return s.kind == Slot::Kind::number ||
           (s.kind == Slot::Kind::part && plan_.parts[as_size(s.index)]->has_values());
  });
  out.has_weight = program_.targets && plan_.weight_column >= 0;
  out.has_group = program_.targets && plan_.group_column >= 0;
  out.ids = Buffer<std::int64_t>(most_ids);
  out.offsets = Buffer<std::int64_t>(out.n_offsets);
  out.dense = Buffer<float>(n_rows * out.n_dense);
  out.labels = Buffer<float>(n_rows * out.n_labels);
  if (out.has_values) out.values = Buffer<float>(most_ids);
  if (out.has_weight) out.weight = Buffer<float>(n_rows);
  if (out.has_group) out.group = Buffer<std::int64_t>(n_rows);
  out.offsets.get()[0] = 0;
  return out;
}

// Runs fn(begin, end, part) over ranges of blocks; of several that throw the first is told.
template <class Fn>
void Run::over_blocks(int n_parts, Fn&& fn) const {
  std::vector<std::exception_ptr> errors(as_size(n_parts));
  const auto n_blocks = static_cast<std::int64_t>(blocks_.size());
  parallel_for(n_blocks, n_parts, [&](std::int64_t begin, std::int64_t end, int part) {
    const ScopedKeepDenormals keep;
    try {
      fn(begin, end, as_size(part));
    } catch (...) {
      errors[as_size(part)] = std::current_exception();
    }
  });
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

// Each thread wrote where its ids would start if all before it had as many as they may; where some
// had fewer (a null in a cross, a dropped value), moves what follows down.
std::int64_t Run::close_gaps(const std::vector<std::int64_t>& starts,
                             const std::vector<std::int64_t>& counts,
                             const std::vector<std::int64_t>& first_blocks, Encoded& out) const {
  const auto n_slots = static_cast<std::int64_t>(program_.slots.size());
  std::int64_t at = counts[0];
  for (std::size_t part = 1; part < counts.size(); ++part) {
    const std::int64_t shift = starts[part] - at;
    if (shift != 0) {
      const std::size_t n = as_size(counts[part]);
      std::memmove(out.ids.get() + at, out.ids.get() + starts[part], n * sizeof(std::int64_t));
      if (out.has_values) {
        std::memmove(out.values.get() + at, out.values.get() + starts[part], n * sizeof(float));
      }
      const bool last = part + 1 == counts.size();
      const std::int64_t rows_end =
          last ? n_rows_ : blocks_[as_size(first_blocks[part + 1])].first_row;
      const std::int64_t rows_begin = blocks_[as_size(first_blocks[part])].first_row;
      for (std::int64_t i = rows_begin * n_slots + 1; i <= rows_end * n_slots; ++i) {
        out.offsets.get()[i] -= shift;
      }
    }
    at += counts[part];
  }
  return at;
}

int Run::n_parts(int threads) const {
  return static_cast<int>(std::min(as_size(std::max(threads, 1)), blocks_.size()));
}

Encoded Run::encode(int threads) {
  std::int64_t most = 0;
  for (const Block& block : blocks_) most += block.most_ids;
  plan_.check_values(most + (program_.dense ? n_rows_ * dense_starts_.back() : 0));
  Encoded out = allocated(n_rows_, most);
  if (blocks_.empty()) return out;
  prepare_tables(threads);
  const auto n_blocks = static_cast<std::int64_t>(blocks_.size());
  const int parts = n_parts(threads);
  std::vector<std::int64_t> starts(as_size(parts), 0);
  std::vector<std::int64_t> counts(as_size(parts), 0);
  std::vector<std::int64_t> first_blocks(as_size(parts), 0);
  for (int part = 1; part < parts; ++part) {
    const TaskRange before = task_range(n_blocks, parts, part - 1);
    first_blocks[as_size(part)] = before.end;
    starts[as_size(part)] = starts[as_size(part - 1)];
    for (std::int64_t b = before.begin; b < before.end; ++b) {
      starts[as_size(part)] += blocks_[as_size(b)].most_ids;
    }
  }
  over_blocks(parts, [&](std::int64_t begin, std::int64_t end, std::size_t part) {
    counts[part] = encode_blocks(begin, end, starts[part], out);
  });
  out.n_ids = close_gaps(starts, counts, first_blocks, out);
  return out;
}

Packed Run::pack(int threads, std::vector<std::uint8_t> widths) {
  Packed out;
  const Encoded like = allocated(0, 0);
  out.layout = {std::move(widths), like.n_dense,    like.n_labels,
                like.has_values,   like.has_weight, like.has_group};
  out.starts.resize(as_size(n_rows_ + 1));
  if (blocks_.empty()) return out;
  prepare_tables(threads);
  const auto parts = as_size(n_parts(threads));
  std::vector<std::vector<std::uint8_t>> bytes(parts);
  std::vector<char> fits(parts, 1);
  over_blocks(static_cast<int>(parts), [&](std::int64_t begin, std::int64_t end, std::size_t part) {
    fits[part] = pack_blocks(begin, end, out, bytes[part]);
  });
  out.fits = std::find(fits.begin(), fits.end(), 0) == fits.end();
  if (!out.fits) return out;
  out.bytes = std::move(bytes[0]);
  const auto n_blocks = static_cast<std::int64_t>(blocks_.size());
  for (std::size_t part = 1; part < parts; ++part) {
    const TaskRange range = task_range(n_blocks, static_cast<int>(parts), static_cast<int>(part));
    const bool is_last = part + 1 == parts;
    const auto first = out.starts.begin() + blocks_[as_size(range.begin)].first_row;
    const auto stop =
        is_last ? out.starts.end() : out.starts.begin() + blocks_[as_size(range.end)].first_row;
    const auto before = static_cast<std::int64_t>(out.bytes.size());
    std::for_each(first, stop, [before](std::int64_t& start) { start += before; });
    out.bytes.insert(out.bytes.end(), bytes[part].begin(), bytes[part].end());
  }
  out.starts.back() = static_cast<std::int64_t>(out.bytes.size());
  return out;
}

}  // namespace

int Plan::column_index(const std::string& name) {
  const auto found = std::find(columns.begin(), columns.end(), name);
  if (found != columns.end()) return static_cast<int>(found - columns.begin());
  columns.push_back(name);
  return static_cast<int>(columns.size()) - 1;
}

void Plan::check_values(std::int64_t n) const {
  if (n <= max_values) return;
  throw InputError(
      InputError::Kind::limit,
      "the request: got " + grouped(n) +
          " values (ids, their combinations and numbers of all rows), expected at most " +
          grouped(max_values) +
          " (--max-request-values); send fewer rows or candidates,"
          " or shorter lists");
}

std::vector<std::int64_t> Plan::dense_starts() const {
  std::vector<std::int64_t> starts{0};
  for (const auto& number : numbers) starts.push_back(starts.back() + number->width());
  return starts;
}

std::vector<int> Program::columns() const {
  std::set<int> needed;
  for (const int index : active_features(*this).parts) {
    const Part& part = *plan->parts[as_size(index)];
    if (is_fixed(*this, part)) continue;
    needed.insert(part.column);
    if (part.weights >= 0) needed.insert(part.weights);
    if (part.parallel >= 0) needed.insert(part.parallel);
  }
  if (uses_numbers(*this)) {
    for (const auto& number : plan->numbers) {
      if (!is_fixed(*this, *number) && !number->is_count()) needed.insert(number->column);
    }
  }
  if (targets) {
    for (const auto& label : plan->labels) needed.insert(label->column);
    if (plan->weight_column >= 0) needed.insert(plan->weight_column);
    if (plan->group_column >= 0) needed.insert(plan->group_column);
  }
  return {needed.begin(), needed.end()};
}

Encoded run(const Program& program, const std::vector<InputBatch>& batches, const Origin& origin,
            int threads) {
  return Run(program, batches, origin).encode(threads);
}

Packed run_packed(const Program& program, const std::vector<InputBatch>& batches,
                  const Origin& origin, int threads, std::vector<std::uint8_t> widths) {
  return Run(program, batches, origin).pack(threads, std::move(widths));
}

}  // namespace widedeep::transform
