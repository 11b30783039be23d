#include "ranker.hpp"

#include <algorithm>
#include <string>

#include "ranker_isa.hpp"
#include "thread_pool.hpp"

namespace widedeep {
namespace {

// Below this many multiply-adds (about a quarter of a millisecond) a thread costs more than it
// brings.
constexpr std::int64_t kThreadCost = 16'000'000;

thread_local AlignedFloats t_room;

std::string text(std::int64_t n) { return std::to_string(n); }

[[noreturn]] void throw_fault(std::int64_t cell, std::int64_t n_slots) {
  throw BatchMismatch("row " + text(cell / n_slots) + ", slot " + text(cell % n_slots) +
                      ": got ids which the model's table does not have");
}

}  // namespace

void RankScorer::add_source(Side side, DeepSource source) {
  Part& part = at(side);
  const std::int64_t width = source_width(source);
  source.position = part.n_inputs;
  part.sources.push_back(source);
  part.n_inputs += width;
  part.widest_source = std::max(part.widest_source, source_room(source));
}

std::int64_t RankScorer::layer_inputs() const noexcept {
  if (!later_.empty()) return later_.back().outputs();
  if (n_hidden_ > 0) return n_hidden_;
  return parts_[0].n_inputs + parts_[1].n_inputs + parts_[2].n_inputs;
}

void RankScorer::add_layer(const float* weight, const float* bias, std::int64_t outputs,
                           Activation activation, Products products) {
  const std::int64_t inputs = layer_inputs();
  const LayerWeights weights{weight, inputs, bias, outputs, inputs};
  if (n_hidden_ == 0) return add_first_layer(weights, activation);
  later_.emplace_back(weights, 0, activation, products);
  tile_width_ = std::max(tile_width_, later_.back().tile_width());
  row_cost_ += inputs * outputs;
}

void RankScorer::add_first_layer(const LayerWeights& weights, Activation activation) {
  n_hidden_ = weights.outputs;
  first_activation_ = activation;
  const std::int64_t padded = round_up(weights.outputs, kChunk);
  tile_width_ = padded;
  const float* from = weights.data;
  for (const Side side : {Side::query, Side::item}) {
    Part& part = at(side);
    const LayerWeights own{from, weights.stride, nullptr, weights.outputs, part.n_inputs};
    part.first.emplace_back(own, 0, Activation::none);
    from += part.n_inputs;
  }
  first_bias_.reserve(padded);
  if (weights.bias != nullptr) copy_bias(weights.bias, weights.outputs, first_bias_.data());
  const std::int64_t n_pair = at(Side::pair).n_inputs;
  pair_weight_.reserve(n_pair * padded);
  for (std::int64_t k = 0; k < n_pair; ++k) {
    for (std::int64_t unit = 0; unit < weights.outputs; ++unit) {
      pair_weight_.data()[k * padded + unit] = from[unit * weights.stride + k];
    }
  }
  row_cost_ = weights.outputs * (n_pair + 1);
}

void RankScorer::set_program(const ScoreProgram* program) {
  for (const Side side : {Side::query, Side::item, Side::pair}) {
    if (program->input_size(side) != at(side).n_inputs) {
      throw std::invalid_argument("got a program of " + text(program->input_size(side)) +
                                  " inputs of a side, expected " + text(at(side).n_inputs));
    }
  }
  if (program->output_size() != n_classes_) {
    throw std::invalid_argument("got a program of " + text(program->output_size()) +
                                " outputs, expected " + text(n_classes_));
  }
  program_ = program;
  row_cost_ = program->pair_cost();
}

void RankScorer::check(const ScoreBatch& batch, Side side) const {
  const CsrBatch& csr = batch.csr;
  const std::int64_t last = csr.offsets[csr.n_examples * n_slots(side)];
  if (csr.offsets[0] != 0 || last != csr.n_ids) {
    throw BatchMismatch("got offsets from " + text(csr.offsets[0]) + " to " + text(last) +
                        ", expected 0 to the number of ids, " + text(csr.n_ids));
  }
}

void RankScorer::hidden_tile(const Part& part, const ScoreBatch& batch, std::int64_t begin,
                             std::int64_t end, float* hidden) const {
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  const std::int64_t blocks = round_up(end - begin, block_rows) / block_rows;
  const DenseLayer& layer = part.first.front();
  const std::int64_t width = std::max(round_up(part.n_inputs, kChunk), layer.tile_width());
  const std::int64_t stride = block_rows * width;
  t_room.reserve(2 * blocks * stride + part.widest_source);
  float* in = t_room.data();
  float* out = in + blocks * stride;
  const GatherTile gather = {
      batch, part.sources.data(),  static_cast<std::int64_t>(part.sources.size()), in, width,
      true,  out + blocks * stride};
  const std::int64_t fault = WIDEDEEP_DISPATCH(gather_tile)(gather, begin, end);
  if (fault != kNoFault) throw_fault(fault, batch.csr.n_features);
  layer.run(in, out, stride, end - begin);
  rows_of_blocks(out, stride, end - begin, n_hidden_, hidden + begin * n_hidden_);
}

// In the room of this thread, row after row.
float* RankScorer::gather_rows(const Part& part, const ScoreBatch& batch, std::int64_t begin,
                               std::int64_t end) const {
  const std::int64_t size = round_up((end - begin) * part.n_inputs, kChunk);
  t_room.reserve(size + part.widest_source);
  if (part.n_inputs == 0) return t_room.data();
  const GatherTile gather = {batch,
                             part.sources.data(),
                             static_cast<std::int64_t>(part.sources.size()),
                             t_room.data(),
                             part.n_inputs,
                             false,
                             t_room.data() + size};
  const std::int64_t fault = WIDEDEEP_DISPATCH(gather_tile)(gather, begin, end);
  if (fault != kNoFault) throw_fault(fault, batch.csr.n_features);
  return t_room.data();
}

void RankScorer::program_tile(const RankRequest& request, std::int64_t begin, std::int64_t end,
                              float* deep) const {
  const float* const inputs = gather_rows(at(Side::pair), request.pairs, begin, end);
  const ProgramRows items = {request.item_hidden, n_hidden(Side::item), request.positions + begin};
  program_->run_pair(request.query_hidden, items, inputs, end - begin, deep + begin * n_classes_);
}

void RankScorer::sums(Side side, const ScoreBatch& batch, int threads, float* wide,
                      float* hidden) const {
  check(batch, side);
  const Part& part = at(side);
  const auto n_wide = static_cast<std::int64_t>(part.wide.size());
  const WideRequest request = {batch,  part.wide.data(), side == Side::query ? n_wide : 0,
                               n_wide, n_classes_,       wide};
  const std::int64_t rows = batch.csr.n_examples;
  const std::int64_t tile_rows = has_program() ? program_->tile_rows() : kTileRows;
  const std::int64_t tiles = round_up(rows, tile_rows) / tile_rows;
  parallel_for(tiles, threads, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t tile = first; tile < last; ++tile) {
      const std::int64_t begin = tile * tile_rows;
      const std::int64_t end = std::min(begin + tile_rows, rows);
      const std::int64_t fault = WIDEDEEP_DISPATCH(wide_rows)(request, begin, end);
      if (fault != kNoFault) throw_fault(fault, batch.csr.n_features);
      if (has_layers()) hidden_tile(part, batch, begin, end, hidden);
      if (has_program()) {
        const float* const inputs = gather_rows(part, batch, begin, end);
        program_->run_side(side, inputs, end - begin, hidden + begin * n_hidden(side));
      }
    }
  });
}

void RankScorer::deep_tile(const RankRequest& request, std::int64_t begin, std::int64_t end,
                           float* deep) const {
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  const std::int64_t rows = end - begin;
  const std::int64_t blocks = round_up(rows, block_rows) / block_rows;
  const std::int64_t stride = block_rows * tile_width_;
  const std::int64_t padded = round_up(n_hidden_, kChunk);
  const Part& pair = at(Side::pair);
  t_room.reserve(2 * blocks * stride + 2 * padded + rows * pair.n_inputs + pair.widest_source);
  float* in = t_room.data();
  float* out = in + blocks * stride;
  float* query = out + blocks * stride;
  float* pair_inputs = query + 2 * padded;
  std::copy_n(request.query_hidden, n_hidden_, query);
  std::fill(query + n_hidden_, query + padded, 0.0f);
  if (pair.n_inputs > 0) {
    const GatherTile gather = {request.pairs,
                               pair.sources.data(),
                               static_cast<std::int64_t>(pair.sources.size()),
                               pair_inputs,
                               pair.n_inputs,
                               false,
                               pair_inputs + rows * pair.n_inputs};
    const std::int64_t fault = WIDEDEEP_DISPATCH(gather_tile)(gather, begin, end);
    if (fault != kNoFault) throw_fault(fault, request.pairs.csr.n_features);
  }
  const FirstLayer first = {query,
                            first_bias_.data(),
                            request.item_hidden,
                            request.item_hidden_bfloat16,
                            request.positions + begin,
                            n_hidden_,
                            pair_weight_.data(),
                            pair_inputs,
                            pair.n_inputs,
                            first_activation_ == Activation::relu,
                            query + padded};
  WIDEDEEP_DISPATCH(first_layer_blocks)(first, rows, in, stride);
  for (std::int64_t b = 0; b < blocks; ++b) {
    activate(first_activation_, in + b * stride, padded * block_rows);
  }
  for (const DenseLayer& layer : later_) {
    layer.run(in, out, stride, rows);
    std::swap(in, out);
  }
  rows_of_blocks(in, stride, rows, n_classes_, deep + begin * n_classes_);
}

int RankScorer::useful_threads(std::int64_t rows, int threads) const {
  const std::int64_t worth = rows * row_cost_ / kThreadCost + 1;
  return static_cast<int>(std::min<std::int64_t>(threads, worth));
}

void RankScorer::rank(const RankRequest& request, int threads, float* wide, float* deep) const {
  check(request.pairs, Side::pair);
  const Part& pair = at(Side::pair);
  const std::int64_t rows = request.pairs.csr.n_examples;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (request.positions[row] < 0 || request.positions[row] >= request.n_items) {
      throw BatchMismatch("candidate " + text(row) + ": got item " + text(request.positions[row]) +
                          " of " + text(request.n_items));
    }
  }
  const WideRequest wide_request = {request.pairs,
                                    pair.wide.data(),
                                    0,
                                    static_cast<std::int64_t>(pair.wide.size()),
                                    n_classes_,
                                    wide,
                                    request.query_wide,
                                    request.item_wide,
                                    request.positions};
  const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
  const std::int64_t tile_rows =
      has_program() ? program_->tile_rows() : kTileRows / block_rows * block_rows;
  const std::int64_t blocks = round_up(rows, block_rows) / block_rows;
  const int used = useful_threads(rows, threads);
  parallel_for(blocks, used, [&](std::int64_t first, std::int64_t last, int) {
    const std::int64_t begin = first * block_rows;
    const std::int64_t end = std::min(last * block_rows, rows);
    const std::int64_t fault = WIDEDEEP_DISPATCH(wide_rows)(wide_request, begin, end);
    if (fault != kNoFault) throw_fault(fault, request.pairs.csr.n_features);
    if (!has_deep()) return;
    for (std::int64_t row = begin; row < end; row += tile_rows) {
      const std::int64_t stop = std::min(row + tile_rows, end);
      has_program() ? program_tile(request, row, stop, deep) : deep_tile(request, row, stop, deep);
    }
  });
}

void RankScorer::logits(const RankRequest& request, const float* bias, int threads,
                        float* out) const {
  thread_local std::vector<float> deep;
  const std::int64_t rows = request.pairs.csr.n_examples;
  const auto size = static_cast<std::size_t>(rows * n_classes_);
  if (has_deep()) deep.resize(std::max(deep.size(), size));
  rank(request, threads, out, deep.data());
  for (std::size_t i = 0; i < size; ++i) {
    if (has_deep()) out[i] += deep[i];
    out[i] += bias[i % static_cast<std::size_t>(n_classes_)];
  }
}

}  // namespace widedeep
