// The tower's products in bfloat16: factors are rounded, sums are float32.
#if defined(__x86_64__)

#include <stdint.h>

#include "tower_isa.hpp"
#include "tower_tiles.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

// Two numbers that follow each other along the sum, the first in the lower half.
struct BFloat16Pairs {
  static constexpr int64_t kPerWord = 2;

  static Vec multiply_add(Vec a, Vec b, Vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }

  // Up to 32 numbers of a row.
  static void copy_words(const float* from, int64_t count, float* to) {
    const Vec low = vec_load_first(from, count < kLanes ? count : kLanes);
    const Vec high = count > kLanes ? vec_load_first(from + kLanes, count - kLanes) : vec_zero();
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }

  static void pack_panel(const float* matrix, int64_t row, int64_t column, int64_t inputs,
                         int64_t columns, int64_t width, float* panel) {
    if (column == 1) {
      for (int64_t k = 0; k < inputs; k += 2) {
        const float* first = matrix + k * row;
        pair_rows(first, k + 1 < inputs ? first + row : nullptr, columns, width, panel);
        panel += width;
      }
      return;
    }
    if (columns < width) {
      memset(panel, 0, static_cast<size_t>((inputs + 1) / 2 * width) * sizeof(float));
    }
    for (int64_t n = 0; n < columns; n += 4) {
      pack_four(matrix + n * column, column, inputs, columns - n < 4 ? columns - n : 4, panel + n,
                width);
    }
  }

  static ConstRows grad_words(const ConstRows& grad, int64_t row, int64_t rows, float* scratch) {
    const int64_t width = (grad.width + kLanes - 1) / kLanes * kLanes;
    pack_panel(grad.data + row * grad.stride, grad.stride, 1, rows, grad.width, width, scratch);
    return {scratch, width, grad.width};
  }

 private:
  // Words of two rows' numbers, and zeros up to `width`.
  static void pair_rows(const float* first, const float* second, int64_t columns, int64_t width,
                        float* to) {
    const __m512i interleaved =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t n = 0; n < width; n += kLanes) {
      const int64_t lanes = lanes_of(columns, n);
      const Vec low = vec_load_first(first + n, lanes);
      const Vec high = second == nullptr ? vec_zero() : vec_load_first(second + n, lanes);
      const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(high, low);
      _mm512_storeu_si512(to + n, _mm512_permutexvar_epi16(interleaved, halves));
    }
  }

  // Up to four columns of a panel, whose numbers follow each other in memory.
  static void pack_four(const float* matrix, int64_t column, int64_t inputs, int64_t columns,
                        float* panel, int64_t width) {
    float words[4][kChunk];
    for (int64_t k = 0; k < inputs; k += 2 * kChunk) {
      const int64_t count = inputs - k < 2 * kChunk ? inputs - k : 2 * kChunk;
      for (int64_t n = 0; n < columns; ++n) copy_words(matrix + n * column + k, count, words[n]);
      const int64_t pairs = (count + 1) / 2;
      const int64_t fours = columns == 4 ? pairs / 4 * 4 : 0;
      float* const to = panel + k / 2 * width;
      for (int64_t p = 0; p < fours; p += 4) {
        transpose_4x4(&words[0][p], kChunk, to + p * width, width);
      }
      for (int64_t p = fours; p < pairs; ++p) {
        for (int64_t n = 0; n < columns; ++n) to[p * width + n] = words[n][p];
      }
    }
  }
};

}  // namespace

int64_t tower_panel() { return kPanel; }

int64_t tower_block() { return kTileRows; }

int64_t gradient_room(int64_t outputs) {
  return kGradientRows / 2 * ((outputs + kLanes - 1) / kLanes * kLanes);
}

void pack_panels(const float* matrix, int64_t row, int64_t column, int64_t inputs, int64_t outputs,
                 float* panels, int64_t begin, int64_t end) {
  pack_panels_of<BFloat16Pairs>(matrix, row, column, inputs, outputs, panels, begin, end);
}

void product_rows(const RowProduct& request, int64_t begin, int64_t end, float* scratch) {
  product_of_rows<BFloat16Pairs>(request, begin, end, scratch);
}

void weight_gradient_tiles(const WeightGradient& request, int64_t begin, int64_t end,
                           float* scratch) {
  gradient_tiles<BFloat16Pairs>(request, begin, end, scratch);
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE

#endif
