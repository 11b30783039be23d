// Towers as a program: operations over values of fixed size a row (float32).
//
// A value belongs to a stage. What the query alone decides is computed in the query's stage, once a
// request; what the item alone decides in the item's, once a catalogue; the rest, which may read
// the values of all stages, a candidate. A batch of examples runs all three on every row, so a
// ranking has the same bits: each operation computes a row by itself, whatever lies beside it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "score_layers.hpp"
#include "score_program_isa.hpp"

namespace widedeep {

// Whose a value is: the query's, the item's, or of both.
enum class Side : int { query, item, pair };
constexpr std::int64_t kStages = 3;

// The numbers offset + sum of strides x indices of a value, over an operation's dimensions.
struct ProgramView {
  std::int64_t value;
  std::int64_t offset;
  std::array<std::int64_t, kProgramDims> strides;
};

// `length` numbers of a value, from `from` on.
struct ProgramSegment {
  std::int64_t value;
  std::int64_t from;
  std::int64_t length;
};

using ProgramDims = std::array<std::int64_t, kProgramDims>;

// Where the rows of a tile lie. Rows are `stride` floats apart; by `positions` where it is given.
struct ProgramRows {
  const float* data = nullptr;
  std::int64_t stride = 0;
  const std::int64_t* positions = nullptr;
};

// Built by one thread with the add_ functions, in the order of computation, then finish(); after
// that any number may run it. What does not fit is a std::invalid_argument. Values are numbered:
// the inputs of the three stages, then whatever is added. Memory of constants is the caller's.
class ScoreProgram {
 public:
  explicit ScoreProgram(const std::array<std::int64_t, kStages>& input_sizes);
  ScoreProgram(const ScoreProgram&) = delete;
  ScoreProgram& operator=(const ScoreProgram&) = delete;

  std::int64_t add_constant(const float* data, std::int64_t size);
  std::int64_t add_map(Side stage, MapFunction function, const ProgramDims& dims,
                       const std::vector<ProgramView>& inputs, float first, float second);
  // Over the last dimension.
  std::int64_t add_reduce(Side stage, Reduction reduction, const ProgramDims& dims,
                          const ProgramView& input);
  // The `count` largest of the last dimension.
  std::int64_t add_top(Side stage, std::int64_t count, const ProgramDims& dims,
                       const ProgramView& input);
  // dims: b, m, k, n.
  std::int64_t add_matmul(Side stage, const ProgramDims& dims, const ProgramView& left,
                          const ProgramView& right);
  // A dense layer over a whole value of its stage, as one or several lines of weights.inputs.
  std::int64_t add_linear(Side stage, std::int64_t input, const LayerWeights& weights,
                          Activation activation);
  std::int64_t add_gather(Side stage, const std::vector<ProgramSegment>& segments);
  // The pair's value that the program is for.
  void finish(std::int64_t output);

  std::int64_t input_size(Side stage) const { return sizes_[static_cast<std::size_t>(stage)]; }
  std::int64_t size(std::int64_t value) const { return sizes_.at(static_cast<std::size_t>(value)); }
  std::int64_t output_size() const { return output_ < 0 ? 0 : size(output_); }
  // Floats of a stage's values that the pair's stage reads, side by side.
  std::int64_t record_size(Side stage) const {
    return record_sizes_[static_cast<std::size_t>(stage)];
  }
  // Multiply-adds of one row in the pair's stage, about.
  std::int64_t pair_cost() const noexcept { return pair_cost_; }
  // Rows of a tile that stay in the second-level cache.
  std::int64_t tile_rows() const noexcept { return tile_rows_; }

  // All stages on rows of inputs (the query's, the item's, the pair's columns); at most
  // tile_rows().
  void run(const float* inputs, std::int64_t rows, float* out) const;
  // One side's stage on rows of its inputs, into records.
  void run_side(Side stage, const float* inputs, std::int64_t rows, float* records) const;
  // The pair's stage; the query has one record, which all rows share.
  void run_pair(const float* query, const ProgramRows& items, const float* inputs,
                std::int64_t rows, float* out) const;

 private:
  enum class Kind : int { map, reduce, top, matmul, linear, gather };

  struct Operation {
    Kind kind;
    Side stage;
    std::int64_t out;
    std::vector<ProgramView> inputs{};
    ProgramDims dims{};
    MapFunction function = MapFunction::copy;
    Reduction reduction = Reduction::sum;
    float first = 0;
    float second = 0;
    std::vector<ProgramSegment> segments{};
    std::unique_ptr<DenseLayer> layer{};
    std::int64_t lines = 1;
    bool rectified = false;  // the input of a linear operation, so that many numbers are zero
    std::int64_t count = 0;
  };

  struct Tile;  // where all values are, while a tile runs

  std::int64_t add_value(Side stage, std::int64_t size);
  std::int64_t add(Operation&& operation, std::int64_t size);
  bool is_rectified(std::int64_t value) const;
  void check_view(Side stage, const ProgramDims& dims, int n_dims, const ProgramView& view) const;
  void check_read(Side stage, std::int64_t value) const;
  void plan_records();
  void plan_arena();
  RowView row_view(const Tile& tile, const ProgramView& view) const;
  void run_operation(const Operation& operation, Tile& tile) const;
  void run_lines(const Operation& operation, const ProgramRows& from, std::int64_t rows,
                 float* out) const;
  void run_linear(const Operation& operation, Tile& tile) const;
  void run_gather(const Operation& operation, Tile& tile) const;
  void run_stage(Side stage, Tile& tile) const;

  std::vector<std::int64_t> sizes_;
  std::vector<Side> stages_;
  std::vector<const float*> constants_;  // null for what is computed
  std::vector<Operation> operations_;
  std::int64_t output_ = -1;
  // By value: its place among the floats of a row, in a record (-1: in none), and in the arena.
  std::vector<std::int64_t> record_places_;
  std::vector<std::int64_t> arena_places_;
  std::array<std::int64_t, kStages> record_sizes_{};
  std::int64_t arena_size_ = 0;
  std::int64_t layer_width_ = 0;  // floats a line that linear operations need beside the arena
  std::int64_t most_lines_ = 1;
  std::int64_t tile_rows_ = kTileRows;
  std::int64_t pair_cost_ = 0;
};

}  // namespace widedeep
