#include "score.hpp"

#include <algorithm>
#include <string>

#include "thread_pool.hpp"

namespace widedeep {
namespace {

// Grows to the largest tile and stays: a fresh allocation a request would cost its page faults.
thread_local AlignedFloats t_scratch;

std::string text(std::int64_t n) { return std::to_string(n); }

// Says what is wrong with a cell that a kernel refused.
[[noreturn]] void throw_fault(const CsrBatch& batch, std::int64_t cell) {
  const std::int64_t begin = batch.offsets[cell];
  const std::int64_t end = batch.offsets[cell + 1];
  std::string message =
      "row " + text(cell / batch.n_features) + ", slot " + text(cell % batch.n_features) + ": got ";
  if (begin < 0 || begin > end || end > batch.n_ids) {
    throw BatchMismatch(message + "offsets " + text(begin) + " to " + text(end) +
                        ", expected rising offsets within " + text(batch.n_ids) + " ids");
  }
  for (std::int64_t n = begin; n < end; ++n)
    message += (n == begin ? "id " : ", ") + text(batch.ids[n]);
  throw BatchMismatch(message + ", which the model's table does not have");
}

}  // namespace

void Scorer::add_wide(const SlotTable& slot, bool item) {
  wide_slots_.push_back(slot);
  if (!item) n_query_slots_ = static_cast<std::int64_t>(wide_slots_.size());
}

void Scorer::add_source(DeepSource source) {
  const bool item = n_query_inputs_ >= 0;
  const std::int64_t width = source_width(source);
  // In a tile, the item's inputs start on a chunk of their own.
  source.position =
      item ? round_up(n_query_inputs_, kChunk) + n_inputs_ - n_query_inputs_ : n_inputs_;
  sources_.push_back(source);
  n_inputs_ += width;
  widest_source_ = std::max(widest_source_, source_room(source));
  tile_width_ = std::max(tile_width_, round_up(source.position + width, kChunk));
}

void Scorer::add_layer(const float* weight, const float* bias, std::int64_t outputs,
                       Activation activation) {
  const std::int64_t inputs = layer_inputs();
  const std::int64_t split = layers_.empty() ? std::max<std::int64_t>(n_query_inputs_, 0) : 0;
  layers_.emplace_back(LayerWeights{weight, inputs, bias, outputs, inputs}, split, activation);
  tile_width_ = std::max(tile_width_, layers_.back().tile_width());
}

void Scorer::deep_tile(const ScoreBatch& batch, std::int64_t begin, std::int64_t end,
                       float* deep) const {
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  const std::int64_t blocks = round_up(end - begin, block_rows) / block_rows;
  const std::int64_t stride = block_rows * tile_width_;
  t_scratch.reserve(2 * blocks * stride + widest_source_);
  float* in = t_scratch.data();
  float* out = in + blocks * stride;
  const GatherTile gather = {
      batch, sources_.data(),      static_cast<std::int64_t>(sources_.size()), in, tile_width_,
      true,  out + blocks * stride};
  const std::int64_t fault = WIDEDEEP_DISPATCH(gather_tile)(gather, begin, end);
  if (fault != kNoFault) throw_fault(batch.csr, fault);
  for (const DenseLayer& layer : layers_) {
    layer.run(in, out, stride, end - begin);
    std::swap(in, out);
  }
  rows_of_blocks(in, stride, end - begin, n_classes_, deep + begin * n_classes_);
}

void Scorer::set_program(const ScoreProgram* program) {
  std::int64_t inputs = 0;
  for (const Side stage : {Side::query, Side::item, Side::pair}) {
    inputs += program->input_size(stage);
  }
  if (inputs != n_inputs_ || program->output_size() != n_classes_) {
    throw std::invalid_argument("got a program of " + text(inputs) + " inputs and " +
                                text(program->output_size()) + " outputs, expected " +
                                text(n_inputs_) + " and " + text(n_classes_));
  }
  program_ = program;
}

void Scorer::gather_rows(const ScoreBatch& batch, std::int64_t begin, std::int64_t end, float* out,
                         float* pooled) const {
  const GatherTile gather = {batch, sources_.data(), static_cast<std::int64_t>(sources_.size()),
                             out,   n_inputs_,       false,
                             pooled};
  const std::int64_t fault = WIDEDEEP_DISPATCH(gather_tile)(gather, begin, end);
  if (fault != kNoFault) throw_fault(batch.csr, fault);
}

void Scorer::program_tile(const ScoreBatch& batch, std::int64_t begin, std::int64_t end,
                          float* deep) const {
  const std::int64_t size = round_up((end - begin) * n_inputs_, kChunk);
  t_scratch.reserve(size + widest_source_);
  float* const inputs = t_scratch.data();
  gather_rows(batch, begin, end, inputs, inputs + size);
  program_->run(inputs, end - begin, deep + begin * n_classes_);
}

void Scorer::check_offsets(const CsrBatch& batch) const {
  const std::int64_t last = batch.offsets[batch.n_examples * n_slots_];
  if (batch.offsets[0] != 0 || last != batch.n_ids) {
    throw BatchMismatch("got offsets from " + text(batch.offsets[0]) + " to " + text(last) +
                        ", expected 0 to the number of ids, " + text(batch.n_ids));
  }
}

void Scorer::forward(const ScoreBatch& batch, int threads, float* wide, float* deep) const {
  check_offsets(batch.csr);
  const WideRequest request = {batch,          wide_slots_.data(),
                               n_query_slots_, static_cast<std::int64_t>(wide_slots_.size()),
                               n_classes_,     wide};
  const std::int64_t rows = batch.csr.n_examples;
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  const std::int64_t tile_rows =
      program_ != nullptr ? program_->tile_rows() : kTileRows / block_rows * block_rows;
  const std::int64_t blocks = round_up(rows, block_rows) / block_rows;
  parallel_for(blocks, threads, [&](std::int64_t first, std::int64_t last, int) {
    const std::int64_t begin = first * block_rows;
    const std::int64_t end = std::min(last * block_rows, rows);
    const std::int64_t fault = WIDEDEEP_DISPATCH(wide_rows)(request, begin, end);
    if (fault != kNoFault) throw_fault(batch.csr, fault);
    if (!has_deep()) return;
    for (std::int64_t row = begin; row < end; row += tile_rows) {
      const std::int64_t stop = std::min(row + tile_rows, end);
      program_ != nullptr ? program_tile(batch, row, stop, deep)
                          : deep_tile(batch, row, stop, deep);
    }
  });
}

void Scorer::concat(const ScoreBatch& batch, int threads, float* out) const {
  check_offsets(batch.csr);
  parallel_for(batch.csr.n_examples, threads, [&](std::int64_t begin, std::int64_t end, int) {
    t_scratch.reserve(widest_source_);
    gather_rows(batch, begin, end, out + begin * n_inputs_, t_scratch.data());
  });
}

}  // namespace widedeep
