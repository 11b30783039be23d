// The dense layers of the forward pass: blocks of rows times panels of units, in registers.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of what its own header leaves undefined on purpose (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <stdint.h>
#include <string.h>

#include "score_isa.hpp"
#include "score_vector.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int kPanel = kPanelVecs * kLanes;
constexpr int64_t kChunkFloats = kBlockRows * kChunk;

// The inputs of a partial sum that are not zero in all rows.
struct Live {
  const uint32_t* inputs;
  int64_t n;
};

// Appends those of the inputs [first, first + count) with a bit set; writes up to kChunk beyond.
inline uint32_t* append_live(const uint32_t* bits, int64_t first, int64_t count, uint32_t* live) {
#if defined(WIDEDEEP_ISA_IS_avx512)
  const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i inputs = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)), steps);
  const __m512i seen = _mm512_loadu_si512(bits);
  const uint32_t mask = _mm512_test_epi32_mask(seen, seen) & ((1u << count) - 1);
  _mm512_storeu_si512(live, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), inputs));
  return live + __builtin_popcount(mask);
#else
  for (int64_t c = 0; c < count; ++c) {
    *live = static_cast<uint32_t>(first + c);
    live += bits[c] != 0;
  }
  return live;
#endif
}

// Lists the live inputs among `count` of a block's rows.
uint32_t* list_live(const float* in, int64_t rows, int64_t count, bool all, uint32_t* live) {
  constexpr uint32_t kAllButSign = 0x7fffffff;
  for (int64_t first = 0; first < count; first += kChunk, in += kChunkFloats) {
    uint32_t bits[kChunk];
    for (int64_t c = 0; c < kChunk; ++c) bits[c] = all ? 1 : 0;
    for (int64_t r = 0; r < rows; ++r) {
      uint32_t row[kChunk];
      memcpy(row, in + r * kChunk, sizeof row);
      for (int64_t c = 0; c < kChunk; ++c) bits[c] |= row[c] & kAllButSign;
    }
    live = append_live(bits, first, count - first < kChunk ? count - first : kChunk, live);
  }
  return live;
}

// A block's lists: the length of the first one, of both, then the inputs.
void list_block(const float* in, int64_t rows, const PackedLayer& layer, uint32_t* live) {
  const bool two_sums = layer.split > 0 && layer.split < layer.inputs;
  const int64_t first = two_sums ? layer.split : layer.inputs;
  uint32_t* const inputs = live + 2;
  uint32_t* end = list_live(in, rows, first, !layer.skips_zeros, inputs);
  live[0] = static_cast<uint32_t>(end - inputs);
  if (two_sums) {
    const float* const rest = in + round_up(first, kChunk) / kChunk * kChunkFloats;
    end = list_live(rest, rows, layer.inputs - first, !layer.skips_zeros, end);
  }
  live[1] = static_cast<uint32_t>(end - inputs);
}

// sums[r][v] = in[r][k] * panel[k][v] added up over the live inputs k, one after the other.
template <int R, int V>
inline void partial_sum(const float* in, const Live& live, const float* panel, Vec (&sums)[R][V]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = vec_zero();
  }
  for (int64_t i = 0; i < live.n; ++i) {
    const uint64_t k = live.inputs[i];
    const float* const inputs = in + k / kChunk * kChunkFloats + k % kChunk;
    const float* const from = panel + k * (V * kLanes);
    Vec weights[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) weights[v] = vec_load(from + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec input = vec_all(inputs[r * kChunk]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = vec_multiply_add(input, weights[v], sums[r][v]);
    }
  }
}

inline float* output_at(float* out, int64_t row, int64_t column) {
  return out + column / kChunk * kChunkFloats + row * kChunk + column % kChunk;
}

// The units [column, column + V * kLanes) of R rows: both partial sums, bias, rectifier.
template <int R, int V>
void dense_panel(const float* in, const PackedLayer& layer, const uint32_t* live,
                 const float* panel, int64_t column, float* out) {
  Vec sums[R][V];
  const bool two_sums = layer.split > 0 && layer.split < layer.inputs;
  const Live first = {live + 2, live[0]};
  partial_sum<R, V>(in, first, panel, sums);
  if (two_sums) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) vec_store(output_at(out, r, column + v * kLanes), sums[r][v]);
    }
    const Live second = {live + 2 + live[0], static_cast<int64_t>(live[1]) - live[0]};
    partial_sum<R, V>(in + round_up(layer.split, kChunk) / kChunk * kChunkFloats, second,
                      panel + layer.split * V * kLanes, sums);
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const Vec bias = vec_load(layer.bias + column + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* at = output_at(out, r, column + v * kLanes);
      Vec sum = two_sums ? vec_add(vec_load(at), sums[r][v]) : sums[r][v];
      sum = vec_add(sum, bias);
      vec_store(at, layer.relu ? vec_max(vec_zero(), sum) : sum);
    }
  }
}

using PanelFunction = void (*)(const float*, const PackedLayer&, const uint32_t*, const float*,
                               int64_t, float*);

template <int V, int R>
PanelFunction function_of_rows(int64_t rows) {
  if constexpr (R == 1) {
    return &dense_panel<1, V>;
  } else {
    return rows == R ? &dense_panel<R, V> : function_of_rows<V, R - 1>(rows);
  }
}

template <int V>
PanelFunction panel_function(int64_t vecs, int64_t rows) {
  if constexpr (V == 1) {
    return function_of_rows<1, kBlockRows>(rows);
  } else {
    return vecs == V ? function_of_rows<V, kBlockRows>(rows) : panel_function<V - 1>(vecs, rows);
  }
}

#if defined(WIDEDEEP_ISA_IS_avx512)

constexpr int64_t kNarrow = 4;       // units of a layer for which rows, not units, fill registers
constexpr int64_t kNarrowRows = 32;  // two registers, so that one's additions hide the other's

inline void transpose(__m512 (&rows)[16]) {
  __m512 t[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i], rows[i + 1]));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i], rows[i + 1]));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i + 2], rows[i + 3]));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i + 2], rows[i + 3]));
    t[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
    t[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
    t[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
    t[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
  }
  // Now t[4 * i + j] holds, in its 128 bits q, column 4 * q + j of rows 4 * i to 4 * i + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 even01 = _mm512_shuffle_f32x4(t[j], t[j + 4], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(t[j], t[j + 4], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(t[j + 8], t[j + 12], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(t[j + 8], t[j + 12], 0xdd);
    rows[j] = _mm512_shuffle_f32x4(even01, even23, 0x88);
    rows[j + 8] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    rows[j + 4] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    rows[j + 12] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
}

// The units of kNarrowRows rows; `in` and `out` are where each of them starts.
template <int U>
void narrow_units(const float* const (&in)[kNarrowRows], const PackedLayer& layer,
                  float* const (&out)[kNarrowRows]) {
  __m512 sums[2][U];
  for (auto& half : sums) {
    for (auto& sum : half) sum = vec_zero();
  }
  for (int64_t first = 0; first < layer.inputs; first += kChunk) {
    const float* const weights = layer.panels + first * kLanes;
    const int64_t left = layer.inputs - first;
    for (int half = 0; half < 2; ++half) {
      __m512 inputs[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) {
        inputs[r] = vec_load(in[16 * half + r] + first * kBlockRows);
      }
      transpose(inputs);
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) {
        if (k >= left) break;
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
          const Vec weight = vec_all(weights[k * kLanes + u]);
          sums[half][u] = vec_multiply_add(inputs[k], weight, sums[half][u]);
        }
      }
    }
  }
  for (int half = 0; half < 2; ++half) {
    for (int u = 0; u < U; ++u) {
      float units[16];
      const Vec sum = vec_add(sums[half][u], vec_all(layer.bias[u]));
      vec_store(units, layer.relu ? vec_max(vec_zero(), sum) : sum);
      for (int r = 0; r < 16; ++r) out[16 * half + r][u] = units[r];
    }
  }
}

// As dense_blocks, for up to kNarrow units of one partial sum; with the same bits.
void narrow_blocks(const float* in, int64_t in_stride, int64_t rows, const PackedLayer& layer,
                   float* out, int64_t out_stride) {
  for (int64_t first = 0; first < rows; first += kNarrowRows) {
    const float* from[kNarrowRows];
    float* to[kNarrowRows];
    for (int64_t r = 0; r < kNarrowRows; ++r) {
      const int64_t row = first + r < rows ? first + r : rows - 1;  // the last one, again and again
      from[r] = in + row / kBlockRows * in_stride + row % kBlockRows * kChunk;
      to[r] = out + row / kBlockRows * out_stride + row % kBlockRows * kChunk;
    }
    if (layer.outputs == 1) {
      narrow_units<1>(from, layer, to);
    } else if (layer.outputs == 2) {
      narrow_units<2>(from, layer, to);
    } else if (layer.outputs == 3) {
      narrow_units<3>(from, layer, to);
    } else {
      narrow_units<4>(from, layer, to);
    }
  }
}

#endif

// The units [column, column + n) of R rows that lie one after the other.
template <int R, int V>
void dense_rows_panel(const float* in, int64_t in_stride, const PackedLayer& layer,
                      const float* panel, int64_t column, int64_t n, float* out) {
  Vec sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = vec_zero();
  }
  for (int64_t k = 0; k < layer.inputs; ++k, panel += V * kLanes) {
    Vec weights[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) weights[v] = vec_load(panel + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec input = vec_all(in[r * in_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = vec_multiply_add(input, weights[v], sums[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const Vec bias = vec_load(layer.bias + column + v * kLanes);
    const int64_t left = n - v * kLanes;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* const at = out + r * layer.outputs + column + v * kLanes;
      const Vec sum = vec_add(sums[r][v], bias);
      const Vec unit = layer.relu ? vec_max(vec_zero(), sum) : sum;
      if (left >= kLanes) {
        vec_store(at, unit);
      } else {
        float units[kLanes];
        vec_store(units, unit);
        for (int64_t i = 0; i < left; ++i) at[i] = units[i];
      }
    }
  }
}

using RowsPanelFunction = void (*)(const float*, int64_t, const PackedLayer&, const float*, int64_t,
                                   int64_t, float*);

template <int V, int R>
RowsPanelFunction rows_function_of_rows(int64_t rows) {
  if constexpr (R == 1) {
    return &dense_rows_panel<1, V>;
  } else {
    return rows == R ? &dense_rows_panel<R, V> : rows_function_of_rows<V, R - 1>(rows);
  }
}

template <int V>
RowsPanelFunction rows_panel_function(int64_t vecs, int64_t rows) {
  if constexpr (V == 1) {
    return rows_function_of_rows<1, kBlockRows>(rows);
  } else {
    return vecs == V ? rows_function_of_rows<V, kBlockRows>(rows)
                     : rows_panel_function<V - 1>(vecs, rows);
  }
}

inline int64_t rows_of_block(int64_t rows, int64_t block) {
  const int64_t left = rows - block * kBlockRows;
  return left < kBlockRows ? left : kBlockRows;
}

}  // namespace

int64_t block_rows() { return kBlockRows; }

int64_t panel_width() { return kPanel; }

int64_t panel_step() { return kLanes; }

int64_t live_words(int64_t inputs) { return inputs + 2 + kChunk; }

void dense_rows(const float* in, int64_t in_stride, int64_t rows, const PackedLayer& layer,
                float* out) {
  const float* panel = layer.panels;
  for (int64_t column = 0; column < layer.outputs; column += kPanel) {
    const int64_t left = layer.outputs - column;
    const int64_t vecs = left < kPanel ? (left + kLanes - 1) / kLanes : kPanelVecs;
    for (int64_t block = 0; block * kBlockRows < rows; ++block) {
      const auto function = rows_panel_function<kPanelVecs>(vecs, rows_of_block(rows, block));
      function(in + block * kBlockRows * in_stride, in_stride, layer, panel, column,
               left < kPanel ? left : kPanel, out + block * kBlockRows * layer.outputs);
    }
    panel += layer.inputs * kPanel;
  }
}

void dense_blocks(const float* in, int64_t in_stride, int64_t rows, const PackedLayer& layer,
                  uint32_t* live, float* out, int64_t out_stride) {
#if defined(WIDEDEEP_ISA_IS_avx512)
  const bool two_sums = layer.split > 0 && layer.split < layer.inputs;
  if (layer.outputs <= kNarrow && !two_sums) {
    return narrow_blocks(in, in_stride, rows, layer, out, out_stride);
  }
#endif
  const int64_t live_stride = live_words(layer.inputs);
  for (int64_t block = 0; block * kBlockRows < rows; ++block) {
    list_block(in + block * in_stride, rows_of_block(rows, block), layer,
               live + block * live_stride);
  }
  const float* panel = layer.panels;
  for (int64_t column = 0; column < layer.outputs; column += kPanel) {
    const int64_t left = layer.outputs - column;
    const int64_t vecs = left < kPanel ? (left + kLanes - 1) / kLanes : kPanelVecs;
    for (int64_t block = 0; block * kBlockRows < rows; ++block) {
      const PanelFunction function = panel_function<kPanelVecs>(vecs, rows_of_block(rows, block));
      function(in + block * in_stride, layer, live + block * live_stride, panel, column,
               out + block * out_stride);
    }
    panel += layer.inputs * kPanel;
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
