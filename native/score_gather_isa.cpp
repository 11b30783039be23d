// The sparse half of the forward pass: wide sums, and embeddings laid out for the dense layers.
#include <stdint.h>
#include <string.h>

#include "packed_rows_isa.hpp"
#include "rows_isa.hpp"
#include "score_isa.hpp"
#include "score_vector.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int64_t kAhead = 2;     // examples whose rows are asked for before they are read
constexpr int64_t kAheadIds = 4;  // of one cell; a longer bag hides its own misses

WIDEDEEP_PREFETCHES void prefetch_cell(const CsrBatch& batch, int64_t b, const SlotTable& table) {
  const int64_t* offsets = batch.offsets + b * batch.n_features + table.slot;
  if (bad_span(batch, offsets[0], offsets[1])) return;
  const int64_t stop = offsets[1] - offsets[0] > kAheadIds ? offsets[0] + kAheadIds : offsets[1];
  const bool packed = table.packed.bytes != nullptr;
  const void* const data = packed ? static_cast<const void*>(table.packed.bytes) : table.rows.data;
  const int64_t stride = packed ? table.packed.row_bytes : table.rows.stride * 4;
  const int64_t bytes = packed ? stride : table.rows.width * 4;
  const int64_t lines = lines_of_bytes(data, bytes, stride);
  for (int64_t n = offsets[0]; n < stop; ++n) prefetch_bytes(data, stride, batch.ids[n], lines);
}

// One side's slots added up one after the other, for kWidth classes (0: as many as `classes`).
template <int kWidth>
int64_t add_side(const CsrBatch& batch, int64_t b, const SlotTable* slots, int64_t n,
                 int64_t first_class, int64_t classes, float* sum) {
  float bag[kChunk];
  for (int64_t s = 0; s < n; ++s) {
    const SlotTable& slot = slots[s];
    const int64_t cell = b * batch.n_features + slot.slot;
    const int64_t begin = batch.offsets[cell];
    const int64_t end = batch.offsets[cell + 1];
    if (bad_cell(batch, begin, end, slot.size)) return cell;
    const ConstRows part = {slot.rows.data + first_class, slot.rows.stride, classes};
    pool_bag<kWidth>(batch, begin, end, part, slot.combiner, bag);
    for (int64_t c = 0; c < (kWidth > 0 ? kWidth : classes); ++c) sum[c] += bag[c];
  }
  return kNoFault;
}

template <int kWidth>
int64_t wide_row(const WideRequest& request, int64_t b, int64_t first_class, int64_t classes) {
  float sums[2][kChunk] = {};
  if (request.kept_query != nullptr) {
    const float* kept[2] = {request.kept_query,
                            request.kept_items + request.positions[b] * request.n_classes};
    for (int side = 0; side < 2; ++side) {
      for (int64_t c = 0; c < classes; ++c) sums[side][c] = kept[side][first_class + c];
    }
  }
  const int64_t counts[2] = {request.n_query, request.n_slots - request.n_query};
  const SlotTable* slots = request.slots;
  for (int side = 0; side < 2; ++side) {
    const int64_t fault = add_side<kWidth>(request.batch.csr, b, slots, counts[side], first_class,
                                           classes, sums[side]);
    if (fault != kNoFault) return fault;
    slots += counts[side];
  }
  float* out = request.out + b * request.n_classes + first_class;
  for (int64_t c = 0; c < classes; ++c) out[c] = sums[0][c] + sums[1][c];
  return kNoFault;
}

// Whether every cell of the examples [begin, end) has exactly one id.
bool all_single(const CsrBatch& batch, int64_t begin, int64_t end) {
  const int64_t first = begin * batch.n_features;
  const int64_t n = (end - begin) * batch.n_features;
  const int64_t* const offsets = batch.offsets + first;
  bool single = offsets[0] >= 0 && offsets[0] + n <= batch.n_ids;
  for (int64_t i = 0; i <= n; ++i) single &= offsets[i] == offsets[0] + i;
  return single;
}

// One class, kept sums, one id a cell and no weights: a pair's slots are added one slot at a time,
// so that the examples' cache misses overlap. Sums are wide_row's. False if an id is outside.
bool add_single_pairs(const WideRequest& request, int64_t begin, int64_t end) {
  const CsrBatch& batch = request.batch.csr;
  float* const out = request.out;
  for (int64_t b = begin; b < end; ++b) out[b] = request.kept_items[request.positions[b]];
  bool bad = false;
  for (int64_t s = 0; s < request.n_slots; ++s) {
    const SlotTable& slot = request.slots[s];
    if (slot.size == 0) return false;
    const int64_t* const ids = batch.ids + batch.offsets[begin * batch.n_features] + slot.slot;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t id = ids[(b - begin) * batch.n_features];
      const bool outside = static_cast<uint64_t>(id) >= static_cast<uint64_t>(slot.size);
      bad |= outside;
      out[b] += 0.0f + slot.rows.data[outside ? 0 : id * slot.rows.stride];
    }
  }
  for (int64_t b = begin; b < end; ++b) out[b] = request.kept_query[0] + out[b];
  return !bad;
}

// Copies `width` columns to [column, column + width) of a row of a block.
void put_columns(const float* from, int64_t width, int64_t column, float* block_row) {
  while (width > 0) {
    const int64_t within = column % kChunk;
    const int64_t n = width < kChunk - within ? width : kChunk - within;
    float* to = block_row + column / kChunk * kBlockRows * kChunk + within;
    if (n == kChunk) {
      memcpy(to, from, kChunk * sizeof(float));  // a size the compiler knows: no call
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = from[i];
    }
    from += n;
    column += n;
    width -= n;
  }
}

// Where a row of a table lies, or its numbers in `room`.
inline const float* row_of(const SlotTable& table, int64_t id, float* room) {
  if (table.packed.bytes == nullptr) return table.rows.data + id * table.rows.stride;
  unpack_row(table.packed, id, room);
  return room;
}

// A sequence in the room for a source; null for a bad cell.
const float* padded_sequence(const GatherTile& request, const DeepSource& source, int64_t begin,
                             int64_t end) {
  const CsrBatch& batch = request.batch.csr;
  const ConstRows& rows = source.table.rows;
  float* const mask = request.pooled + source.places * rows.width;
  float* const weights = mask + source.places;
  if (end - begin > source.places) return nullptr;
  memset(request.pooled, 0, source_width(source) * sizeof(float));
  for (int64_t place = 0; place < end - begin; ++place) {
    float* const to = request.pooled + place * rows.width;
    const float* const from = row_of(source.table, batch.ids[begin + place], to);
    if (from != to) memcpy(to, from, rows.width * sizeof(float));
    mask[place] = 1.0f;
    weights[place] = batch.values == nullptr ? 1.0f : batch.values[begin + place];
  }
  return request.pooled;
}

// One source of one example: where it lies, or pooled; null for a bad cell.
const float* source_row(const GatherTile& request, int64_t b, const DeepSource& source) {
  const SlotTable& table = source.table;
  if (table.slot < 0) {
    return request.batch.dense + b * request.batch.n_dense + source.dense_column;
  }
  const CsrBatch& batch = request.batch.csr;
  const int64_t cell = b * batch.n_features + table.slot;
  const int64_t begin = batch.offsets[cell];
  const int64_t end = batch.offsets[cell + 1];
  if (bad_cell(batch, begin, end, table.size)) return nullptr;
  if (source.places > 0) return padded_sequence(request, source, begin, end);
  if (end - begin == 1 && batch.values == nullptr) {
    return row_of(table, batch.ids[begin], request.pooled);
  }
  float* const room = request.pooled + table.rows.width;
  const auto row = [&](int64_t n) { return row_of(table, batch.ids[n], room); };
  pool_rows<0>(batch, begin, end, table.rows.width, row, table.combiner, request.pooled);
  return request.pooled;
}

}  // namespace

int64_t wide_rows(const WideRequest& request, int64_t begin, int64_t end) {
  const bool plain = request.kept_query != nullptr && request.n_query == 0 &&
                     request.n_classes == 1 && request.batch.csr.values == nullptr;
  if (plain && all_single(request.batch.csr, begin, end) && add_single_pairs(request, begin, end)) {
    return kNoFault;
  }
  for (int64_t b = begin; b < end; ++b) {
    for (int64_t s = 0; b + kAhead < end && s < request.n_slots; ++s) {
      prefetch_cell(request.batch.csr, b + kAhead, request.slots[s]);
    }
    for (int64_t c = 0; c < request.n_classes; c += kChunk) {
      const int64_t left = request.n_classes - c;
      const int64_t fault = request.n_classes == 1 ? wide_row<1>(request, b, 0, 1)
                            : left >= kChunk       ? wide_row<kChunk>(request, b, c, kChunk)
                                                   : wide_row<0>(request, b, c, left);
      if (fault != kNoFault) return fault;
    }
  }
  return kNoFault;
}

int64_t gather_tile(const GatherTile& request, int64_t begin, int64_t end) {
  const CsrBatch& batch = request.batch.csr;
  for (int64_t b = begin; b < end; ++b) {
    const int64_t row = b - begin;
    const int64_t block = row / kBlockRows;
    float* block_row = request.out + block * kBlockRows * request.width + row % kBlockRows * kChunk;
    float* plain_row = request.out + row * request.width;
    for (int64_t s = 0; s < request.n_sources; ++s) {
      const DeepSource& source = request.sources[s];
      if (b + kAhead < end && source.table.slot >= 0) {
        prefetch_cell(batch, b + kAhead, source.table);
      }
      const float* from = source_row(request, b, source);
      if (from == nullptr) return b * batch.n_features + source.table.slot;
      const int64_t width = source_width(source);
      if (request.in_blocks) {
        put_columns(from, width, source.position, block_row);
      } else {
        memcpy(plain_row, from, width * sizeof(float));
        plain_row += width;
      }
    }
  }
  return kNoFault;
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
