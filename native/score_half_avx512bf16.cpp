// Dense layers in bfloat16: blocks of rows times panels of units, two inputs at a time.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "score_half.hpp"
#include "score_vector.hpp"

namespace widedeep::avx512bf16 {
namespace {

constexpr int kPanel = kPanelVecs * kLanes;
constexpr int64_t kChunkFloats = kBlockRows * kChunk;

// A block's inputs that are not zero in all rows, made even by a last one that is.
struct LiveInputs {
  uint32_t* n;
  uint32_t* inputs;
  uint16_t* values;  // a row after another, each in pairs: of two inputs the later one first
  int64_t row_stride;
};

LiveInputs live_inputs(uint32_t* room, int64_t inputs) {
  uint32_t* const rows = room + half_list_words(inputs);
  return {room, room + 1, reinterpret_cast<uint16_t*>(rows), 2 * half_row_words(inputs)};
}

// The inputs [k, k + 32) of a row, rounded; those from `inputs` on are zero.
inline __m512i rounded(const float* row, int64_t k, int64_t inputs) {
  const auto mask_of = [](int64_t left) {
    return static_cast<__mmask16>(left >= 16 ? 0xffff : left <= 0 ? 0 : (1 << left) - 1);
  };
  const float* const low = row + k / kChunk * kChunkFloats;
  const __m512 first = _mm512_maskz_loadu_ps(mask_of(inputs - k), low);
  const __m512 second = _mm512_maskz_loadu_ps(mask_of(inputs - k - 16), low + kChunkFloats);
  return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

inline void append_inputs(uint32_t mask, int64_t first, uint32_t* to) {
  const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto low = static_cast<__mmask16>(mask);
  const auto high = static_cast<__mmask16>(mask >> 16);
  const __m512i at = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)), steps);
  const __m512i next = _mm512_add_epi32(at, _mm512_set1_epi32(16));
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(low, at));
  to += __builtin_popcount(mask & 0xffff);
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(high, next));
}

// Each pair's later input first: the instruction begins with the upper half.
void swap_pairs(const LiveInputs& live, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    uint16_t* const row = live.values + r * live.row_stride;
    for (int64_t i = 0; i < *live.n; i += kHalfStep) {
      _mm512_storeu_si512(row + i, _mm512_maskz_rol_epi32(0xffff, _mm512_loadu_si512(row + i), 16));
    }
  }
}

void gather_live(const float* in, int64_t rows, const PackedHalfLayer& layer, uint32_t* room) {
  const LiveInputs live = live_inputs(room, layer.inputs);
  const __m512i all_but_sign = _mm512_set1_epi16(0x7fff);
  uint32_t n = 0;
  for (int64_t k = 0; k < layer.inputs; k += kHalfStep) {
    const int64_t left = layer.inputs - k;
    __m512i values[kBlockRows];
    __m512i seen = _mm512_setzero_si512();
    for (int64_t r = 0; r < rows; ++r) {
      values[r] = rounded(in + r * kChunk, k, layer.inputs);
      seen = _mm512_or_si512(seen, values[r]);
    }
    uint32_t mask = _mm512_test_epi16_mask(seen, all_but_sign);
    if (!layer.skips_zeros) mask = left >= kHalfStep ? ~0u : (1u << left) - 1;
    for (int64_t r = 0; r < rows; ++r) {
      _mm512_storeu_si512(live.values + r * live.row_stride + n,
                          _mm512_maskz_compress_epi16(mask, values[r]));
    }
    append_inputs(mask, k, live.inputs + n);
    n += static_cast<uint32_t>(__builtin_popcount(mask));
  }
  if (n % 2 == 1) {
    for (int64_t r = 0; r < rows; ++r) live.values[r * live.row_stride + n] = 0;
    live.inputs[n] = live.inputs[n - 1];
    ++n;
  }
  *live.n = n;
  swap_pairs(live, rows);
}

inline float* output_at(float* out, int64_t row, int64_t column) {
  return out + column / kChunk * kChunkFloats + row * kChunk + column % kChunk;
}

// The units [column, column + V * kLanes) of R rows.
template <int R, int V>
void half_panel(const LiveInputs& live, const PackedHalfLayer& layer, const uint16_t* panel,
                int64_t column, float* out) {
  __m512 sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = vec_zero();
  }
  const int64_t n = *live.n;
  for (int64_t i = 0; i < n; i += 2) {
    const uint16_t* const earlier = panel + static_cast<uint64_t>(live.inputs[i]) * (V * kLanes);
    const uint16_t* const later = panel + static_cast<uint64_t>(live.inputs[i + 1]) * (V * kLanes);
    __m512i weights[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v += 2) {
      const __m512i low = _mm512_loadu_si512(later + v * kLanes);
      const __m512i high = _mm512_loadu_si512(earlier + v * kLanes);
      weights[v] = _mm512_unpacklo_epi16(low, high);
      weights[v + 1] = _mm512_unpackhi_epi16(low, high);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      uint32_t pair;
      memcpy(&pair, live.values + r * live.row_stride + i, sizeof pair);
      const auto inputs = (__m512bh)_mm512_set1_epi32(static_cast<int>(pair));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], inputs, (__m512bh)weights[v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const Vec bias = vec_load(layer.bias + column + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec sum = vec_add(sums[r][v], bias);
      vec_store(output_at(out, r, column + v * kLanes),
                layer.relu ? vec_max(vec_zero(), sum) : sum);
    }
  }
}

using PanelFunction = void (*)(const LiveInputs&, const PackedHalfLayer&, const uint16_t*, int64_t,
                               float*);

template <int V, int R>
PanelFunction panel_function(int64_t rows) {
  if constexpr (R == 1) {
    return &half_panel<1, V>;
  } else {
    return rows == R ? &half_panel<R, V> : panel_function<V, R - 1>(rows);
  }
}

inline int64_t rows_of_block(int64_t rows, int64_t block) {
  const int64_t left = rows - block * kBlockRows;
  return left < kBlockRows ? left : kBlockRows;
}

}  // namespace

void half_blocks(const float* in, int64_t in_stride, int64_t rows, const PackedHalfLayer& layer,
                 uint32_t* room, float* out, int64_t out_stride) {
  const int64_t room_stride = half_room(layer.inputs, kBlockRows);
  for (int64_t block = 0; block * kBlockRows < rows; ++block) {
    gather_live(in + block * in_stride, rows_of_block(rows, block), layer,
                room + block * room_stride);
  }
  const uint16_t* panel = layer.panels;
  for (int64_t column = 0; column < layer.outputs; column += kPanel) {
    const bool narrow = layer.outputs - column <= kHalfStep;
    for (int64_t block = 0; block * kBlockRows < rows; ++block) {
      const int64_t block_rows = rows_of_block(rows, block);
      const PanelFunction function = narrow ? panel_function<kPanelVecs / 2, kBlockRows>(block_rows)
                                            : panel_function<kPanelVecs, kBlockRows>(block_rows);
      function(live_inputs(room + block * room_stride, layer.inputs), layer, panel, column,
               out + block * out_stride);
    }
    panel += layer.inputs * kPanel;
  }
}

}  // namespace widedeep::avx512bf16
