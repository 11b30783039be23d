// The forward pass of a Wide & Deep model: ids, offsets and dense numbers in, logits out (float32).
//
// The order of every sum is fixed, so a row's logits do not depend on the rows beside it, on tiles
// or on threads:
//   wide   a slot: its ids in order, then its combiner. Query slots are added up one after the
//          other from 0, item slots likewise, then the two sums are added.
//   layer  a unit of the first layer: query inputs from 0, one fused multiply-add an input (a
//          multiply and an add in the baseline build), item inputs likewise, the two sums added,
//          then the bias. A unit of a later layer: all inputs from 0 in order, then the bias.
// So the item's sums may be kept for a whole catalogue, and the query's for a request.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "score_isa.hpp"
#include "score_layers.hpp"
#include "score_program.hpp"

namespace widedeep {

// A batch that does not fit the model: it was made with another schema.
class BatchMismatch : public std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// A model ready to score: tables stay where they are (in mapped files), dense layers are packed.
// One thread builds it with the add_ functions; after that any number may use it.
class Scorer {
 public:
  Scorer(std::int64_t n_slots, std::int64_t n_dense, std::int64_t n_classes)
      : n_slots_(n_slots), n_dense_(n_dense), n_classes_(n_classes) {}

  // A slot of the wide part, with weights of n_classes columns. All query slots come first.
  void add_wide(const SlotTable& slot, bool item);

  // The next inputs of the deep part: a slot's pooled rows, or `width` columns of dense numbers.
  void add_embedding(const SlotTable& slot) { add_source({slot, 0, 0}); }
  void add_sequence(const SlotTable& slot, std::int64_t places) {
    add_source({slot, 0, 0, places});
  }
  void add_dense(std::int64_t column, std::int64_t width) {
    add_source({{-1, {nullptr, 0, width}, 0, kSum}, column, 0});
  }

  // Says that the inputs added so far are the query's, and those that follow the item's.
  void start_item_inputs() { n_query_inputs_ = n_inputs_; }

  // A dense layer with weight (outputs, inputs) and bias (outputs), or null for none.
  void add_layer(const float* weight, const float* bias, std::int64_t outputs,
                 Activation activation);

  // Towers as a program over the inputs, instead of layers: the inputs added are those of its
  // stages, one after the other. It must outlive the scorer.
  void set_program(const ScoreProgram* program);

  // Writes the wide part, and the deep part if there is one, each (rows, n_classes).
  void forward(const ScoreBatch& batch, int threads, float* wide, float* deep) const;

  // Writes the inputs of the deep part, (rows, n_inputs()).
  void concat(const ScoreBatch& batch, int threads, float* out) const;

  std::int64_t n_slots() const noexcept { return n_slots_; }
  std::int64_t n_dense() const noexcept { return n_dense_; }
  std::int64_t n_classes() const noexcept { return n_classes_; }
  std::int64_t n_inputs() const noexcept { return n_inputs_; }
  bool has_layers() const noexcept { return !layers_.empty(); }
  bool has_deep() const noexcept { return has_layers() || program_ != nullptr; }
  // Inputs of the next layer to add; once all are there, units of the last one.
  std::int64_t layer_inputs() const noexcept {
    return layers_.empty() ? n_inputs_ : layers_.back().outputs();
  }

 private:
  void add_source(DeepSource source);
  void deep_tile(const ScoreBatch& batch, std::int64_t begin, std::int64_t end, float* deep) const;
  void program_tile(const ScoreBatch& batch, std::int64_t begin, std::int64_t end,
                    float* deep) const;
  void gather_rows(const ScoreBatch& batch, std::int64_t begin, std::int64_t end, float* out,
                   float* pooled) const;
  void check_offsets(const CsrBatch& batch) const;

  std::int64_t n_slots_;
  std::int64_t n_dense_;
  std::int64_t n_classes_;
  std::int64_t n_query_slots_ = 0;
  std::int64_t n_inputs_ = 0;
  std::int64_t n_query_inputs_ = -1;  // -1: no item inputs (yet)
  std::int64_t widest_source_ = 0;
  std::int64_t tile_width_ = 0;  // columns of the widest layer, whole chunks
  std::vector<SlotTable> wide_slots_;
  std::vector<DeepSource> sources_;
  std::vector<DenseLayer> layers_;
  const ScoreProgram* program_ = nullptr;
};

}  // namespace widedeep
