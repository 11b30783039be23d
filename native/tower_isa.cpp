// Matrix products for the shapes of a tower: few thousand rows, weights that fit into a cache.
//
// A tile of sums stays in registers: up to kBlockRows rows times kPanelVecs registers of columns.
#include "tower_isa.hpp"

#include <stdint.h>

#include "tower_vector.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int kPanelVecs = 2;
constexpr int64_t kPanel = kPanelVecs * kLanes;
constexpr int64_t kChunk = 16;          // columns of a block of rows that lie together
constexpr int64_t kGradientRows = 192;  // rows of the batch whose panel stays in the first cache

// sums[r][v] += left[r * kLeft + k * step] * panel[k][v], one k after the other.
template <int R, int V, int64_t kLeft>
inline void add_products(const float* left, int64_t step, const float* panel, int64_t count,
                         Vec (&sums)[R][V]) {
  for (int64_t k = 0; k < count; ++k) {
    Vec right[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) right[v] = vec_load(panel + k * (V * kLanes) + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec all = vec_all(left[r * kLeft + k * step]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[r][v] = vec_multiply_add(all, right[v], sums[r][v]);
    }
  }
}

template <int R, int V>
inline void clear(Vec (&sums)[R][V]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sums[r][v] = vec_zero();
  }
}

// Columns of a panel's register that exist.
inline int64_t lanes_of(int64_t columns, int64_t first) {
  const int64_t left = columns - first;
  return left >= kLanes ? kLanes : left > 0 ? left : 0;
}

// A block of R rows (in chunks, see copy_block) times one panel.
template <int R, int V>
void product_tile(const RowProduct& request, const float* block, const float* panel, int64_t row,
                  int64_t column) {
  Vec sums[R][V];
  clear(sums);
  int64_t left = request.in.width;
  for (; left >= kChunk; left -= kChunk) {
    add_products<R, V, kChunk>(block, 1, panel, kChunk, sums);
    block += R * kChunk;
    panel += kChunk * V * kLanes;
  }
  add_products<R, V, kChunk>(block, 1, panel, left, sums);
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const int64_t first = column + v * kLanes;
    const int64_t lanes = lanes_of(request.outputs, first);
    if (lanes == 0) continue;
    const Vec bias = request.bias == nullptr ? vec_zero() : vec_load(request.bias + first);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      Vec sum = sums[r][v];
      if (request.bias != nullptr) sum = vec_add(sum, bias);
      if (request.relu) sum = vec_max(vec_zero(), sum);
      if (request.mask.data != nullptr) {
        const float* mask = request.mask.data + (row + r) * request.mask.stride + first;
        sum = vec_where_positive(sum, vec_load_first(mask, lanes));
      }
      float* out = request.out.data + (row + r) * request.out.stride + first;
      if (lanes == kLanes) {
        vec_store(out, sum);
      } else {
        vec_store_first(out, sum, lanes);
      }
    }
  }
}

// A tile of R outputs times one panel of inputs, over `count` rows of the batch.
template <int R, int V>
void gradient_tile(const float* grad, int64_t stride, const float* panel, int64_t count, float* out,
                   int64_t out_stride, int64_t columns, bool first_rows) {
  Vec sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const int64_t lanes = lanes_of(columns, v * kLanes);
      sums[r][v] =
          first_rows ? vec_zero() : vec_load_first(out + r * out_stride + v * kLanes, lanes);
    }
  }
  add_products<R, V, 1>(grad, stride, panel, count, sums);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      vec_store_first(out + r * out_stride + v * kLanes, sums[r][v], lanes_of(columns, v * kLanes));
    }
  }
}

using ProductTile = void (*)(const RowProduct&, const float*, const float*, int64_t, int64_t);
using GradientTile = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t,
                              int64_t, bool);

template <int V, int R>
ProductTile product_of(int64_t rows) {
  if constexpr (R == 1) {
    return &product_tile<1, V>;
  } else {
    return rows == R ? &product_tile<R, V> : product_of<V, R - 1>(rows);
  }
}

template <int V, int R>
GradientTile gradient_of(int64_t rows) {
  if constexpr (R == 1) {
    return &gradient_tile<1, V>;
  } else {
    return rows == R ? &gradient_tile<R, V> : gradient_of<V, R - 1>(rows);
  }
}

// Splits n rows into blocks of nearly equal size, none above kBlockRows: no block is too small to
// keep the multipliers busy.
struct Blocks {
  explicit Blocks(int64_t rows) : n(rows), count((rows + kBlockRows - 1) / kBlockRows) {}
  int64_t begin(int64_t block) const { return n * block / count; }
  int64_t n;
  int64_t count;
};

// Copies rows so that an inner loop reaches each by a constant displacement: kChunk columns of
// every row, then the next kChunk.
void copy_block(const ConstRows& in, int64_t first, int64_t rows, float* block) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = in.data + (first + r) * in.stride;
    float* to = block + r * kChunk;
    int64_t left = in.width;
    for (; left >= kChunk; left -= kChunk) {
      memcpy(to, from, kChunk * sizeof(float));
      from += kChunk;
      to += rows * kChunk;
    }
    memcpy(to, from, static_cast<size_t>(left) * sizeof(float));
  }
}

// Packs `inputs` rows of one panel: `columns` of a matrix, then zeros up to `width`.
void pack_panel(const float* matrix, int64_t row, int64_t column, int64_t inputs, int64_t columns,
                int64_t width, float* panel) {
  if (columns < width) memset(panel, 0, static_cast<size_t>(inputs * width) * sizeof(float));
  if (column == 1) {
    for (int64_t k = 0; k < inputs; ++k) {
      memcpy(panel + k * width, matrix + k * row, static_cast<size_t>(columns) * sizeof(float));
    }
    return;
  }
  const int64_t fours = row == 1 ? columns / 4 * 4 : 0;
  const int64_t inner = inputs / 4 * 4;
  for (int64_t n = 0; n < fours; n += 4) {
    const float* from = matrix + n * column;
    for (int64_t k = 0; k < inner; k += 4) {
      transpose_4x4(from + k, column, panel + k * width + n, width);
    }
  }
  for (int64_t n = 0; n < columns; ++n) {
    for (int64_t k = n < fours ? inner : 0; k < inputs; ++k) {
      panel[k * width + n] = matrix[k * row + n * column];
    }
  }
}

int64_t panel_columns(int64_t outputs, int64_t first) {
  return outputs - first < kPanel ? outputs - first : kPanel;
}

int64_t panel_width(int64_t columns) { return columns <= kLanes ? kLanes : kPanel; }

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

int64_t tower_block() { return kBlockRows; }

void pack_panels(const float* matrix, int64_t row, int64_t column, int64_t inputs, int64_t outputs,
                 float* panels, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel * kPanel;
    const int64_t columns = panel_columns(outputs, first);
    pack_panel(matrix + first * column, row, column, inputs, columns, panel_width(columns),
               panels + first * inputs);
  }
}

void product_rows(const RowProduct& request, int64_t begin, int64_t end, float* scratch) {
  const Blocks blocks(end - begin);
  const int64_t width = (request.in.width + kChunk - 1) / kChunk * kChunk;
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t first = blocks.begin(block);
    copy_block(request.in, begin + first, blocks.begin(block + 1) - first, scratch + first * width);
  }
  for (int64_t column = 0; column < request.outputs; column += kPanel) {
    const float* panel = request.panels + column * request.in.width;
    const bool narrow = request.outputs - column <= kLanes;
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t first = blocks.begin(block);
      const int64_t rows = blocks.begin(block + 1) - first;
      const ProductTile tile =
          narrow ? product_of<1, kBlockRows>(rows) : product_of<kPanelVecs, kBlockRows>(rows);
      tile(request, scratch + first * width, panel, begin + first, column);
    }
  }
}

void weight_gradient_tiles(const WeightGradient& request, int64_t begin, int64_t end) {
  alignas(64) float panel[kGradientRows * kPanel];
  const Blocks blocks(request.grad.width);
  // Once for no rows too: sums of nothing are 0.
  for (int64_t row = 0; row == 0 || row < request.rows; row += kGradientRows) {
    const int64_t left = request.rows - row;
    const int64_t rows = left < kGradientRows ? left : kGradientRows;
    const float* grad = request.grad.data + row * request.grad.stride;
    for (int64_t tile = begin; tile < end;) {
      const int64_t number = tile / blocks.count;
      const int64_t column = number * kPanel;
      const int64_t stop = end < (number + 1) * blocks.count ? end : (number + 1) * blocks.count;
      const int64_t columns = panel_columns(request.in.width, column);
      pack_panel(request.in.data + row * request.in.stride + column, request.in.stride, 1, rows,
                 columns, panel_width(columns), panel);
      for (; tile < stop; ++tile) {
        const int64_t first = blocks.begin(tile % blocks.count);
        const int64_t outputs = blocks.begin(tile % blocks.count + 1) - first;
        const GradientTile function = columns <= kLanes
                                          ? gradient_of<1, kBlockRows>(outputs)
                                          : gradient_of<kPanelVecs, kBlockRows>(outputs);
        function(grad + first, request.grad.stride, panel, rows,
                 request.out.data + first * request.out.stride + column, request.out.stride,
                 columns, row == 0);
      }
    }
  }
}

void column_sums(const ConstRows& grad, int64_t rows, float* out, int64_t begin, int64_t end) {
  int64_t column = begin;
  for (; end - column >= 8 * kLanes; column += 8 * kLanes) {
    sum_columns<8>(grad, rows, out, column, end);
  }
  for (; column < end; column += kLanes) sum_columns<1>(grad, rows, out, column, end);
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
