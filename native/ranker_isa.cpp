// The first layer of candidates, from what was kept of the query and of the items.
#include "ranker_isa.hpp"

#include <stdint.h>
#include <string.h>

#include "score_isa.hpp"
#include "score_vector.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kAheadBytes = 6 * 1024;  // of items' sums asked for before they are read

// A function that only prefetches looks to GCC as if it did nothing, unless it is inlined.
__attribute__((always_inline)) inline void prefetch_item(const FirstLayer& layer, int64_t item) {
  const bool half = layer.items == nullptr;
  const int64_t bytes = layer.units * (half ? 2 : 4);
  const char* row = half ? reinterpret_cast<const char*>(layer.items_bfloat16)
                         : reinterpret_cast<const char*>(layer.items);
  row += item * bytes;
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(row + at, 0, 2);
}

void widen(const uint16_t* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
    memcpy(to + i, &bits, sizeof bits);
  }
}

// The item's sums in the room, whole chunks of them, gone on over the pair's inputs.
const float* sums_in_room(const FirstLayer& layer, int64_t row) {
  const int64_t item = layer.positions[row];
  const int64_t padded = round_up(layer.units, kChunk);
  if (layer.items == nullptr) {
    widen(layer.items_bfloat16 + item * layer.units, layer.units, layer.room);
  } else {
    memcpy(layer.room, layer.items + item * layer.units, layer.units * sizeof(float));
  }
  for (int64_t c = layer.units; c < padded; ++c) layer.room[c] = 0.0f;
  for (int64_t k = 0; k < layer.n_pair; ++k) {
    const Vec input = vec_all(layer.pair_inputs[row * layer.n_pair + k]);
    const float* weight = layer.pair_weight + k * padded;
    for (int64_t c = 0; c < padded; c += kLanes) {
      const Vec sum = vec_load(layer.room + c);
      vec_store(layer.room + c, vec_multiply_add(input, vec_load(weight + c), sum));
    }
  }
  return layer.room;
}

inline Vec item_vec(const float* sums) { return vec_load(sums); }
inline Vec item_vec(const uint16_t* sums) { return vec_load_bfloat16(sums); }

// One candidate, whole chunks of units.
template <class T>
inline void first_layer_row(const FirstLayer& layer, const T* item, int64_t padded, float* to) {
  for (int64_t c = 0; c < padded; c += kChunk, to += kBlockRows * kChunk) {
    for (int64_t v = 0; v < kChunk; v += kLanes) {
      Vec sum = vec_add(vec_load(layer.query + c + v), item_vec(item + c + v));
      sum = vec_add(sum, vec_load(layer.bias + c + v));
      vec_store(to + v, layer.relu ? vec_max(vec_zero(), sum) : sum);
    }
  }
}

}  // namespace

void first_layer_blocks(const FirstLayer& layer, int64_t rows, float* out, int64_t out_stride) {
  const int64_t padded = round_up(layer.units, kChunk);
  const bool as_it_is = layer.n_pair == 0 && padded == layer.units;
  const int64_t row_bytes = layer.units * (layer.items == nullptr ? 2 : 4);
  const int64_t ahead = 1 + kAheadBytes / row_bytes;
  for (int64_t row = 0; row < ahead && row < rows; ++row) {
    prefetch_item(layer, layer.positions[row]);
  }
  for (int64_t row = 0; row < rows; ++row) {
    if (row + ahead < rows) prefetch_item(layer, layer.positions[row + ahead]);
    float* const to = out + row / kBlockRows * out_stride + row % kBlockRows * kChunk;
    const int64_t start = layer.positions[row] * layer.units;
    if (!as_it_is) {
      first_layer_row(layer, sums_in_room(layer, row), padded, to);
    } else if (layer.items != nullptr) {
      first_layer_row(layer, layer.items + start, padded, to);
    } else {
      first_layer_row(layer, layer.items_bfloat16 + start, padded, to);
    }
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
