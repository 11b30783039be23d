#include "score_program.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace widedeep {
namespace {

constexpr std::int64_t kMostFloats = std::int64_t{1} << 28;  // of a value, a row
constexpr std::int64_t kTileBytes = 1 << 20;
constexpr std::int64_t kFewestRows = 6;

thread_local AlignedFloats t_arena;

std::size_t as_size(std::int64_t n) { return static_cast<std::size_t>(n); }

std::string text(std::int64_t n) { return std::to_string(n); }

void expect(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

std::int64_t product(const ProgramDims& dims, int n) {
  std::int64_t total = 1;
  for (int d = 0; d < n; ++d) {
    const std::int64_t dim = dims[as_size(d)];
    expect(dim >= 1 && dim <= kMostFloats && total <= kMostFloats / dim,
           "got the dimension " + text(dim) + ", expected a value of 1 to 2^28 numbers");
    total *= dim;
  }
  return total;
}

void copy_dims(const ProgramDims& from, std::int64_t (&to)[kProgramDims]) {
  std::copy(from.begin(), from.end(), to);
}

}  // namespace

struct ScoreProgram::Tile {
  std::int64_t rows;
  std::vector<ProgramRows>& values;  // by value
  float* arena;
};

ScoreProgram::ScoreProgram(const std::array<std::int64_t, kStages>& input_sizes) {
  for (std::int64_t stage = 0; stage < kStages; ++stage) {
    const std::int64_t size = input_sizes[as_size(stage)];
    expect(size >= 0 && size <= kMostFloats, "got the input size " + text(size));
    add_value(static_cast<Side>(stage), size);
  }
}

std::int64_t ScoreProgram::add_value(Side stage, std::int64_t size) {
  sizes_.push_back(size);
  stages_.push_back(stage);
  constants_.push_back(nullptr);
  return static_cast<std::int64_t>(sizes_.size()) - 1;
}

std::int64_t ScoreProgram::add_constant(const float* data, std::int64_t size) {
  expect(size >= 1, "got a constant without numbers");
  const std::int64_t value = add_value(Side::pair, size);
  constants_.back() = data;
  return value;
}

std::int64_t ScoreProgram::add(Operation&& operation, std::int64_t size) {
  expect(output_ < 0, "got an operation after the end");
  operation.out = add_value(operation.stage, size);
  operations_.push_back(std::move(operation));
  return operations_.back().out;
}

void ScoreProgram::check_read(Side stage, std::int64_t value) const {
  const auto known = static_cast<std::int64_t>(sizes_.size());
  expect(value >= 0 && value < known,
         "got the value " + text(value) + ", expected one of the " + text(known) + " before it");
  const bool may_read = constants_[as_size(value)] != nullptr || stage == Side::pair ||
                        stages_[as_size(value)] == stage;
  expect(may_read, "got the value " + text(value) + " of another stage");
}

void ScoreProgram::check_view(Side stage, const ProgramDims& dims, int n_dims,
                              const ProgramView& view) const {
  check_read(stage, view.value);
  const std::int64_t size = sizes_[as_size(view.value)];
  std::int64_t last = view.offset;
  expect(view.offset >= 0 && view.offset < size, "got an offset outside of its value");
  for (int d = 0; d < n_dims; ++d) {
    const std::int64_t stride = view.strides[as_size(d)];
    expect(stride >= 0 && stride <= size, "got the stride " + text(stride));
    last += stride * (dims[as_size(d)] - 1);
    expect(last < size, "got a view that ends outside of its value");
  }
}

std::int64_t ScoreProgram::add_map(Side stage, MapFunction function, const ProgramDims& dims,
                                   const std::vector<ProgramView>& inputs, float first,
                                   float second) {
  const std::int64_t size = product(dims, kProgramDims);
  const auto n = static_cast<std::int64_t>(inputs.size());
  expect(n == map_inputs(function), "got " + text(n) + " inputs, expected " +
                                        text(map_inputs(function)) + " for this function");
  for (const ProgramView& view : inputs) check_view(stage, dims, kProgramDims, view);
  if (stage == Side::pair) pair_cost_ += size;
  Operation operation{Kind::map, stage, 0, inputs, dims};
  operation.function = function;
  operation.first = first;
  operation.second = second;
  return add(std::move(operation), size);
}

std::int64_t ScoreProgram::add_reduce(Side stage, Reduction reduction, const ProgramDims& dims,
                                      const ProgramView& input) {
  const std::int64_t all = product(dims, kProgramDims);
  check_view(stage, dims, kProgramDims, input);
  if (stage == Side::pair) pair_cost_ += all;
  Operation operation{Kind::reduce, stage, 0, {input}, dims};
  operation.reduction = reduction;
  return add(std::move(operation), all / dims[kProgramDims - 1]);
}

std::int64_t ScoreProgram::add_top(Side stage, std::int64_t count, const ProgramDims& dims,
                                   const ProgramView& input) {
  const std::int64_t all = product(dims, kProgramDims);
  check_view(stage, dims, kProgramDims, input);
  const std::int64_t length = dims[kProgramDims - 1];
  expect(count >= 1 && count <= length,
         "got the " + text(count) + " largest of " + text(length) + " numbers");
  if (stage == Side::pair) pair_cost_ += all;
  Operation operation{Kind::top, stage, 0, {input}, dims};
  operation.count = count;
  return add(std::move(operation), all / length * count);
}

std::int64_t ScoreProgram::add_matmul(Side stage, const ProgramDims& dims, const ProgramView& left,
                                      const ProgramView& right) {
  const auto [b, m, k, n] = dims;
  const std::int64_t all = product(dims, kProgramDims);
  check_view(stage, {b, m, k, 1}, 3, left);
  check_view(stage, {b, k, n, 1}, 3, right);
  expect(right.strides[2] == 1 || n == 1, "expected the columns of the right factor side by side");
  if (stage == Side::pair) pair_cost_ += all;
  return add({Kind::matmul, stage, 0, {left, right}, dims}, all / k);
}

bool ScoreProgram::is_rectified(std::int64_t value) const {
  const auto source = std::find_if(operations_.begin(), operations_.end(),
                                   [&](const Operation& o) { return o.out == value; });
  if (source == operations_.end()) return false;
  if (source->kind == Kind::linear) return source->layer->is_rectified();
  return source->kind == Kind::map &&
         (source->function == MapFunction::relu || source->function == MapFunction::add_relu ||
          source->function == MapFunction::add3_relu);
}

std::int64_t ScoreProgram::add_linear(Side stage, std::int64_t input, const LayerWeights& weights,
                                      Activation activation) {
  check_read(stage, input);
  expect(stages_[as_size(input)] == stage && constants_[as_size(input)] == nullptr,
         "expected a layer's input of its own stage");
  const std::int64_t size = sizes_[as_size(input)];
  expect(weights.inputs >= 1 && weights.outputs >= 1 && size >= 1 && size % weights.inputs == 0,
         "got " + text(size) + " inputs of a layer with " + text(weights.inputs));
  Operation operation{Kind::linear, stage, 0, {{input, 0, {}}}};
  operation.lines = size / weights.inputs;
  operation.layer = std::make_unique<DenseLayer>(weights, 0, activation);
  operation.rectified = is_rectified(input);
  if (operation.rectified) {
    layer_width_ =
        std::max({layer_width_, round_up(weights.inputs, kChunk), operation.layer->tile_width()});
    most_lines_ = std::max(most_lines_, operation.lines);
  }
  if (stage == Side::pair) pair_cost_ += size * weights.outputs;
  const std::int64_t lines = operation.lines;
  return add(std::move(operation), lines * weights.outputs);
}

std::int64_t ScoreProgram::add_gather(Side stage, const std::vector<ProgramSegment>& segments) {
  std::int64_t size = 0;
  for (const auto& [value, from, length] : segments) {
    check_read(stage, value);
    expect(from >= 0 && length >= 1 && length <= sizes_[as_size(value)] &&
               from <= sizes_[as_size(value)] - length && size <= kMostFloats - length,
           "got a segment outside of its value");
    size += length;
  }
  expect(size >= 1, "got a gather without segments");
  Operation operation{Kind::gather, stage, 0, {}};
  operation.segments = segments;
  if (stage == Side::pair) pair_cost_ += size;
  return add(std::move(operation), size);
}

void ScoreProgram::finish(std::int64_t output) {
  check_read(Side::pair, output);
  expect(constants_[as_size(output)] == nullptr && output >= kStages &&
             stages_[as_size(output)] == Side::pair,
         "expected an output that is computed in the pair's stage");
  // The query's operations first, then the items', then the pair's: in the order of the stages.
  std::stable_sort(operations_.begin(), operations_.end(),
                   [](const Operation& a, const Operation& b) { return a.stage < b.stage; });
  output_ = output;
  plan_records();
  plan_arena();
}

// What the pair's stage reads of the others goes into their records.
void ScoreProgram::plan_records() {
  record_places_.assign(sizes_.size(), -1);
  const auto keep = [&](std::int64_t value) {
    const std::size_t at = as_size(value);
    const Side stage = stages_[at];
    if (constants_[at] != nullptr || stage == Side::pair || record_places_[at] >= 0) return;
    record_places_[at] = record_sizes_[static_cast<std::size_t>(stage)];
    record_sizes_[static_cast<std::size_t>(stage)] += sizes_[at];
  };
  for (const Operation& operation : operations_) {
    if (operation.stage != Side::pair) continue;
    for (const ProgramView& view : operation.inputs) keep(view.value);
    for (const ProgramSegment& segment : operation.segments) keep(segment.value);
  }
}

// Values whose lives do not overlap share a place; places are floats a row, times a tile's rows.
void ScoreProgram::plan_arena() {
  std::vector<std::size_t> last(sizes_.size(), 0);
  for (std::size_t i = 0; i < operations_.size(); ++i) {
    for (const ProgramView& view : operations_[i].inputs) last[as_size(view.value)] = i;
    for (const ProgramSegment& segment : operations_[i].segments) last[as_size(segment.value)] = i;
    last[as_size(operations_[i].out)] = i;
  }
  last[as_size(output_)] = operations_.size();
  arena_places_.assign(sizes_.size(), -1);
  std::vector<std::int64_t> live;  // values in the arena, by place
  for (std::size_t i = 0; i < operations_.size(); ++i) {
    const std::int64_t out = operations_[i].out;
    const std::int64_t size = round_up(sizes_[as_size(out)], kChunk);
    std::int64_t place = 0;
    auto before = live.begin();
    for (; before != live.end(); ++before) {
      if (arena_places_[as_size(*before)] - place >= size) break;
      place = arena_places_[as_size(*before)] + round_up(sizes_[as_size(*before)], kChunk);
    }
    arena_places_[as_size(out)] = place;
    live.insert(before, out);
    arena_size_ = std::max(arena_size_, place + size);
    live.erase(std::remove_if(live.begin(), live.end(),
                              [&](std::int64_t value) { return last[as_size(value)] <= i; }),
               live.end());
  }
  const std::int64_t row_floats = arena_size_ + 2 * most_lines_ * layer_width_;
  const std::int64_t fit = kTileBytes / static_cast<std::int64_t>(sizeof(float)) / (row_floats + 1);
  tile_rows_ = std::clamp(fit / kFewestRows * kFewestRows, kFewestRows, kTileRows);
}

RowView ScoreProgram::row_view(const Tile& tile, const ProgramView& view) const {
  const std::size_t value = as_size(view.value);
  const ProgramRows rows = constants_[value] != nullptr ? ProgramRows{constants_[value], 0, nullptr}
                                                        : tile.values[value];
  RowView out{rows.data + view.offset, rows.stride, rows.positions, {}};
  std::copy(view.strides.begin(), view.strides.end(), out.strides);
  return out;
}

void ScoreProgram::run_lines(const Operation& operation, const ProgramRows& from, std::int64_t rows,
                             float* out) const {
  const DenseLayer& layer = *operation.layer;
  if (operation.lines == 1) return layer.run_rows(from.data, from.stride, rows, out);
  if (from.stride == operation.lines * layer.inputs()) {
    return layer.run_rows(from.data, layer.inputs(), rows * operation.lines, out);
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    layer.run_rows(from.data + row * from.stride, layer.inputs(), operation.lines,
                   out + row * operation.lines * layer.outputs());
  }
}

void ScoreProgram::run_linear(const Operation& operation, Tile& tile) const {
  const DenseLayer& layer = *operation.layer;
  const ProgramRows from = tile.values[as_size(operation.inputs.front().value)];
  const std::int64_t lines = tile.rows * operation.lines;
  float* const to_rows = const_cast<float*>(tile.values[as_size(operation.out)].data);
  if (!operation.rectified) return run_lines(operation, from, tile.rows, to_rows);
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  const std::int64_t blocks = round_up(lines, block_rows) / block_rows;
  const std::int64_t width = std::max(round_up(layer.inputs(), kChunk), layer.tile_width());
  const std::int64_t stride = block_rows * width;
  float* const in = tile.arena + round_up(arena_size_ * tile.rows, kChunk);
  float* const out = in + blocks * stride;
  for (std::int64_t line = 0; line < lines; ++line) {
    const float* row =
        from.data + line / operation.lines * from.stride + line % operation.lines * layer.inputs();
    float* to = in + line / block_rows * stride + line % block_rows * kChunk;
    std::int64_t left = layer.inputs();
    for (; left >= kChunk; left -= kChunk, row += kChunk, to += block_rows * kChunk) {
      std::memcpy(to, row, kChunk * sizeof(float));
    }
    if (left == 0) continue;
    std::copy_n(row, left, to);
    std::fill(to + left, to + kChunk, 0.0f);
  }
  layer.run(in, out, stride, lines);
  rows_of_blocks(out, stride, lines, layer.outputs(), to_rows);
}

void ScoreProgram::run_gather(const Operation& operation, Tile& tile) const {
  const ProgramRows to = tile.values[as_size(operation.out)];
  for (std::int64_t row = 0; row < tile.rows; ++row) {
    float* out = const_cast<float*>(to.data) + row * to.stride;
    for (const auto& [value, from, length] : operation.segments) {
      const RowView view = row_view(tile, {value, from, {}});
      const std::int64_t at = view.positions == nullptr ? row : view.positions[row];
      std::memcpy(out, view.base + at * view.row_stride, as_size(length) * sizeof(float));
      out += length;
    }
  }
}

void ScoreProgram::run_operation(const Operation& operation, Tile& tile) const {
  const ProgramRows out = tile.values[as_size(operation.out)];
  float* const to = const_cast<float*>(out.data);
  switch (operation.kind) {
    case Kind::map: {
      MapTile map{operation.function, {}, {}, operation.first, operation.second, to, out.stride};
      copy_dims(operation.dims, map.dims);
      for (std::size_t i = 0; i < operation.inputs.size(); ++i) {
        map.inputs[i] = row_view(tile, operation.inputs[i]);
      }
      return WIDEDEEP_DISPATCH(map_rows)(map, tile.rows);
    }
    case Kind::reduce: {
      ReduceTile reduce{
          operation.reduction, row_view(tile, operation.inputs[0]), {}, to, out.stride};
      copy_dims(operation.dims, reduce.dims);
      return WIDEDEEP_DISPATCH(reduce_rows)(reduce, tile.rows);
    }
    case Kind::top: {
      TopTile top{row_view(tile, operation.inputs[0]), {}, operation.count, to, out.stride};
      copy_dims(operation.dims, top.dims);
      return WIDEDEEP_DISPATCH(top_rows)(top, tile.rows);
    }
    case Kind::matmul: {
      MatmulTile matmul{row_view(tile, operation.inputs[0]),
                        row_view(tile, operation.inputs[1]),
                        {},
                        to,
                        out.stride};
      copy_dims(operation.dims, matmul.dims);
      return WIDEDEEP_DISPATCH(matmul_rows)(matmul, tile.rows);
    }
    case Kind::linear:
      return run_linear(operation, tile);
    case Kind::gather:
      return run_gather(operation, tile);
  }
}

void ScoreProgram::run_stage(Side stage, Tile& tile) const {
  for (const Operation& operation : operations_) {
    if (operation.stage != stage) continue;
    const std::size_t out = as_size(operation.out);
    tile.values[out] = {tile.arena + arena_places_[out] * tile.rows, sizes_[out], nullptr};
    run_operation(operation, tile);
  }
}

namespace {

thread_local std::vector<ProgramRows> t_values;

}  // namespace

void ScoreProgram::run(const float* inputs, std::int64_t rows, float* out) const {
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  const std::int64_t lines = round_up(rows * most_lines_, block_rows);
  t_arena.reserve(round_up(arena_size_ * rows, kChunk) + 2 * lines * layer_width_);
  t_values.resize(std::max(t_values.size(), sizes_.size()));
  Tile tile{rows, t_values, t_arena.data()};
  const std::int64_t stride = sizes_[0] + sizes_[1] + sizes_[2];
  for (std::size_t stage = 0; stage < as_size(kStages); ++stage) {
    tile.values[stage] = {inputs, stride, nullptr};
    inputs += sizes_[stage];
  }
  for (const Side stage : {Side::query, Side::item, Side::pair}) run_stage(stage, tile);
  const std::int64_t n = output_size();
  std::copy_n(tile.values[as_size(output_)].data, rows * n, out);
}

void ScoreProgram::run_side(Side stage, const float* inputs, std::int64_t rows,
                            float* records) const {
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  const std::int64_t lines = round_up(rows * most_lines_, block_rows);
  t_arena.reserve(round_up(arena_size_ * rows, kChunk) + 2 * lines * layer_width_);
  t_values.resize(std::max(t_values.size(), sizes_.size()));
  Tile tile{rows, t_values, t_arena.data()};
  tile.values[static_cast<std::size_t>(stage)] = {inputs, input_size(stage), nullptr};
  run_stage(stage, tile);
  const std::int64_t record = record_size(stage);
  for (std::size_t value = 0; value < sizes_.size(); ++value) {
    if (stages_[value] != stage || record_places_[value] < 0) continue;
    const ProgramRows from = tile.values[value];
    for (std::int64_t row = 0; row < rows; ++row) {
      std::copy_n(from.data + row * from.stride, sizes_[value],
                  records + row * record + record_places_[value]);
    }
  }
}

void ScoreProgram::run_pair(const float* query, const ProgramRows& items, const float* inputs,
                            std::int64_t rows, float* out) const {
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  const std::int64_t lines = round_up(rows * most_lines_, block_rows);
  t_arena.reserve(round_up(arena_size_ * rows, kChunk) + 2 * lines * layer_width_);
  t_values.resize(std::max(t_values.size(), sizes_.size()));
  Tile tile{rows, t_values, t_arena.data()};
  for (std::size_t value = 0; value < sizes_.size(); ++value) {
    const std::int64_t place = record_places_[value];
    if (place < 0) continue;
    tile.values[value] = stages_[value] == Side::query
                             ? ProgramRows{query + place, 0, nullptr}
                             : ProgramRows{items.data + place, items.stride, items.positions};
  }
  tile.values[static_cast<std::size_t>(Side::pair)] = {inputs, input_size(Side::pair), nullptr};
  run_stage(Side::pair, tile);
  std::copy_n(tile.values[as_size(output_)].data, rows * output_size(), out);
}

}  // namespace widedeep
