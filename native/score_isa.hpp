// What of the forward pass is compiled for each instruction set. See score.hpp for its contract.
//
// Activations lie in blocks of block_rows() rows. A block holds its columns in chunks of kChunk,
// and a chunk its rows one after the other: element (row, column) of a block is at
//   (column / kChunk) * block_rows() * kChunk + row * kChunk + column % kChunk
// so that the inner loop reaches every row by a constant displacement, and a register of sums is
// stored as it is. Weights lie in panels of panel_width() units, input by input; the last panel is
// as wide as its units need, in steps of panel_step().
//
// An input that is zero in every row of a block is left out of the block's products: it adds
// nothing to a sum, unless its weight is infinite or no number. Rectified units that the query
// turns off, with whatever candidate, thus cost nothing.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"
#include "packed_rows.hpp"
#include "sparse.hpp"

namespace widedeep {

constexpr int64_t kChunk = 16;

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

struct PackedLayer {
  const float* panels;
  const float* bias;  // padded with zeros to round_up(outputs, panel_width())
  int64_t outputs;
  int64_t inputs;
  int64_t split;  // inputs of the first partial sum; those of the second start on the next chunk
  bool relu;
  bool skips_zeros;  // all weights are finite
};

// Rows of one slot's table (ids 0 to size - 1): `rows`, or where its bytes are given `packed`.
struct SlotTable {
  int64_t slot;
  ConstRows rows;
  int64_t size;
  int8_t combiner;
  PackedRows packed{};
};

// Columns of the deep part's input: a slot's pooled rows, or dense numbers (slot -1), or
// the slot as a sequence of `places` rows, zeros in those that it leaves free, then 1 or 0 for each
// place, then the weights of its ids.
struct DeepSource {
  SlotTable table;
  int64_t dense_column;
  int64_t position;    // its first column in a block
  int64_t places = 0;  // of a sequence
};

constexpr int64_t source_width(const DeepSource& source) {
  const int64_t width = source.table.rows.width;
  return source.places == 0 ? width : source.places * (width + 2);
}

// Room that a source takes where it is pooled: packed rows are unpacked beside their sum.
constexpr int64_t source_room(const DeepSource& source) {
  const bool packed = source.table.packed.bytes != nullptr && source.places == 0;
  return source_width(source) * (packed ? 2 : 1);
}

// Examples to score: ids, and dense numbers in rows of n_dense.
struct ScoreBatch {
  CsrBatch csr;
  const float* dense;
  int64_t n_dense;
};

struct WideRequest {
  ScoreBatch batch;
  const SlotTable* slots;  // the query's, then the item's
  int64_t n_query;
  int64_t n_slots;
  int64_t n_classes;
  float* out;  // n_classes an example
  // Sums that were kept, to go on from: the query's, and the item's by positions[example]. Or null.
  const float* kept_query = nullptr;
  const float* kept_items = nullptr;
  const int64_t* positions = nullptr;
};

struct GatherTile {
  ScoreBatch batch;
  const DeepSource* sources;
  int64_t n_sources;
  float* out;
  int64_t width;   // of a row of `out`, in columns
  bool in_blocks;  // as above; else row after row, source after source
  float* pooled;   // source_room() of any source
};

// wide_rows and gather_tile return the first bad cell, or kNoFault; they check before they read.
// dense_blocks keeps in `live`, with live_words() for each block, which inputs count. dense_rows
// takes rows of `in_stride` and gives rows of layer.outputs, with the same bits: for inputs that
// are hardly ever zero, and layers without a split.
WIDEDEEP_DECLARE_ISA(int64_t block_rows(); int64_t panel_width(); int64_t panel_step();
                     int64_t wide_rows(const WideRequest& request, int64_t begin, int64_t end);
                     int64_t gather_tile(const GatherTile& request, int64_t begin, int64_t end);
                     int64_t live_words(int64_t inputs);
                     void dense_rows(const float* in, int64_t in_stride, int64_t rows,
                                     const PackedLayer& layer, float* out);
                     void dense_blocks(const float* in, int64_t in_stride, int64_t rows,
                                       const PackedLayer& layer, uint32_t* live, float* out,
                                       int64_t out_stride))

}  // namespace widedeep
