// The forward pass of a request: the query's sums once, the items' sums once a catalogue, and for
// each candidate only what the two have in common.
//
// Every sum runs in the order that score.hpp tells, so the logits are the scorer's, bit for bit.
// A side has slots of its own, numbered from 0; its batches hold these slots alone.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "score.hpp"

namespace widedeep {

// "Hidden" is what is kept of a side: its part of the first layer, or its record of a program.
struct RankRequest {
  const float* query_wide;    // n_classes
  const float* query_hidden;  // n_hidden(query)
  const float* item_wide;     // n_classes an item
  const float* item_hidden;   // n_hidden(item) an item; null where they are bfloat16
  const std::uint16_t* item_hidden_bfloat16;
  std::int64_t n_items;
  const std::int64_t* positions;  // the item of each candidate
  ScoreBatch pairs;               // the pair's slots of each candidate
};

// Built by one thread with the add_ functions, the sides in their order; then any number may use
// it.
class RankScorer {
 public:
  RankScorer(std::array<std::int64_t, 3> n_slots, std::int64_t n_dense, std::int64_t n_classes)
      : n_slots_(n_slots), n_dense_(n_dense), n_classes_(n_classes) {}

  void add_wide(Side side, const SlotTable& slot) { at(side).wide.push_back(slot); }
  // The next inputs of the side's part of the first layer.
  void add_embedding(Side side, const SlotTable& slot) { add_source(side, {slot, 0, 0}); }
  void add_sequence(Side side, const SlotTable& slot, std::int64_t places) {
    add_source(side, {slot, 0, 0, places});
  }
  void add_dense(Side side, std::int64_t column, std::int64_t width) {
    add_source(side, {{-1, {nullptr, 0, width}, 0, kSum}, column, 0});
  }
  // As Scorer::add_layer; the first layer takes the sides' inputs one after the other.
  // Products are of layers after the first.
  void add_layer(const float* weight, const float* bias, std::int64_t outputs,
                 Activation activation, Products products = Products::float32);

  // Towers as a program, instead of layers: the inputs of a side are those of its stage. It must
  // outlive the scorer.
  void set_program(const ScoreProgram* program);

  // The wide sums (n_classes) and what is kept of the deep part (n_hidden) of queries or of items.
  void sums(Side side, const ScoreBatch& batch, int threads, float* wide, float* hidden) const;

  // The wide part of each candidate, and the deep part if there is one. Uses fewer threads
  // where there is little to do.
  void rank(const RankRequest& request, int threads, float* wide, float* deep) const;

  // Both parts and the bias (n_classes) added up, in this order.
  void logits(const RankRequest& request, const float* bias, int threads, float* out) const;

  std::int64_t n_slots(Side side) const noexcept { return n_slots_[static_cast<int>(side)]; }
  std::int64_t n_dense() const noexcept { return n_dense_; }
  std::int64_t n_classes() const noexcept { return n_classes_; }
  // Numbers kept of a query or of an item; 0 without a deep part.
  std::int64_t n_hidden(Side side) const noexcept {
    return program_ == nullptr ? n_hidden_ : program_->record_size(side);
  }
  bool has_program() const noexcept { return program_ != nullptr; }
  bool has_layers() const noexcept { return n_hidden_ > 0; }
  bool has_deep() const noexcept { return has_layers() || has_program(); }
  std::int64_t layer_inputs() const noexcept;

 private:
  struct Part {
    std::vector<SlotTable> wide;
    std::vector<DeepSource> sources;
    std::int64_t n_inputs = 0;
    std::int64_t widest_source = 0;
    std::vector<DenseLayer> first;  // the query's and the item's part of the first layer
  };

  Part& at(Side side) noexcept { return parts_[static_cast<std::size_t>(side)]; }
  const Part& at(Side side) const noexcept { return parts_[static_cast<std::size_t>(side)]; }
  void add_source(Side side, DeepSource source);
  void add_first_layer(const LayerWeights& weights, Activation activation);
  void hidden_tile(const Part& part, const ScoreBatch& batch, std::int64_t begin, std::int64_t end,
                   float* hidden) const;
  void deep_tile(const RankRequest& request, std::int64_t begin, std::int64_t end,
                 float* deep) const;
  float* gather_rows(const Part& part, const ScoreBatch& batch, std::int64_t begin,
                     std::int64_t end) const;
  void program_tile(const RankRequest& request, std::int64_t begin, std::int64_t end,
                    float* deep) const;
  void check(const ScoreBatch& batch, Side side) const;
  int useful_threads(std::int64_t rows, int threads) const;

  std::array<std::int64_t, 3> n_slots_;
  std::int64_t n_dense_;
  std::int64_t n_classes_;
  std::array<Part, 3> parts_;
  std::int64_t n_hidden_ = 0;
  Activation first_activation_ = Activation::none;
  AlignedFloats first_bias_;   // whole chunks
  AlignedFloats pair_weight_;  // a row of whole chunks of units an input
  std::vector<DenseLayer> later_;
  std::int64_t tile_width_ = 0;
  std::int64_t row_cost_ = 0;  // multiply-adds a candidate
  const ScoreProgram* program_ = nullptr;
};

}  // namespace widedeep
