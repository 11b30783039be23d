// The tower's products in float32.
#include "tower_isa.hpp"

#include <stdint.h>

#include "tower_tiles.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

struct Float32 {
  static constexpr int64_t kPerWord = 1;

  static Vec multiply_add(Vec a, Vec b, Vec sum) { return vec_multiply_add(a, b, sum); }

  static void copy_words(const float* from, int64_t count, float* to) {
    memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
  }

  // Packs `inputs` rows of one panel: `columns` of a matrix, then zeros up to `width`.
  static void pack_panel(const float* matrix, int64_t row, int64_t column, int64_t inputs,
                         int64_t columns, int64_t width, float* panel) {
    if (columns < width) memset(panel, 0, static_cast<size_t>(inputs * width) * sizeof(float));
    if (column == 1) {
      for (int64_t k = 0; k < inputs; ++k) {
        memcpy(panel + k * width, matrix + k * row, static_cast<size_t>(columns) * sizeof(float));
      }
      return;
    }
    const int64_t fours = row == 1 ? columns / 4 * 4 : 0;
    const int64_t inner = inputs / 4 * 4;
    int64_t sixteens = 0;  // columns, of whose inputs as many sixteens are there already
#if defined(WIDEDEEP_ISA_IS_avx512)
    for (; row == 1 && columns - sixteens >= 16; sixteens += 16) {
      for (int64_t k = 0; k + 16 <= inputs; k += 16) {
        transpose_16x16(matrix + sixteens * column + k, column, panel + k * width + sixteens,
                        width);
      }
    }
#endif
    for (int64_t n = 0; n < fours; n += 4) {
      const float* from = matrix + n * column;
      for (int64_t k = n < sixteens ? inputs / 16 * 16 : 0; k < inner; k += 4) {
        transpose_4x4(from + k, column, panel + k * width + n, width);
      }
    }
    for (int64_t n = 0; n < columns; ++n) {
      for (int64_t k = n < fours ? inner : 0; k < inputs; ++k) {
        panel[k * width + n] = matrix[k * row + n * column];
      }
    }
  }

  // The gradients can be read as they lie.
  static ConstRows grad_words(const ConstRows& grad, int64_t row, int64_t, float*) {
    return {grad.data + row * grad.stride, grad.stride, grad.width};
  }
};

// Sums of `V` registers of columns.
template <int V>
void sum_columns(const ConstRows& grad, int64_t rows, float* out, int64_t column, int64_t end) {
  Vec sums[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sums[v] = vec_zero();
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = grad.data + row * grad.stride + column;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      sums[v] =
          vec_add(sums[v], vec_load_first(from + v * kLanes, lanes_of(end - column, v * kLanes)));
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    vec_store_first(out + column + v * kLanes, sums[v], lanes_of(end - column, v * kLanes));
  }
}

}  // namespace

int64_t tower_panel() { return kPanel; }

int64_t tower_block() { return kTileRows; }

int64_t gradient_room(int64_t) { return 0; }

void pack_panels(const float* matrix, int64_t row, int64_t column, int64_t inputs, int64_t outputs,
                 float* panels, int64_t begin, int64_t end) {
  pack_panels_of<Float32>(matrix, row, column, inputs, outputs, panels, begin, end);
}

void product_rows(const RowProduct& request, int64_t begin, int64_t end, float* scratch) {
  product_of_rows<Float32>(request, begin, end, scratch);
}

void weight_gradient_tiles(const WeightGradient& request, int64_t begin, int64_t end,
                           float* scratch) {
  gradient_tiles<Float32>(request, begin, end, scratch);
}

void column_sums(const ConstRows& grad, int64_t rows, float* out, int64_t begin, int64_t end) {
  int64_t column = begin;
  for (; end - column >= 8 * kLanes; column += 8 * kLanes) {
    sum_columns<8>(grad, rows, out, column, end);
  }
  for (; column < end; column += kLanes) sum_columns<1>(grad, rows, out, column, end);
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
