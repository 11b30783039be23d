// Matrix products for the shapes of a tower: few thousand rows, weights that fit into a cache.
// Written once for two kinds of numbers, float32 and pairs of bfloat16; see tower_isa.cpp and
// tower_avx512bf16.cpp. `Numbers` says how many lie in a word of 32 bits, how they get there from
// float32, and how words are multiplied. Words are held in float variables: they are only moved.
//
// A tile of sums stays in registers: up to kTileRows rows times kTileVecs registers of columns.
#pragma once

#include "tower_isa.hpp"
#include "tower_vector.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int kTileVecs = 2;
constexpr int64_t kPanel = kTileVecs * kLanes;
constexpr int64_t kChunk = 16;  // words of a block's rows that lie together

// The words that hold `count` numbers.
template <class Numbers>
constexpr int64_t words_of(int64_t count) {
  return (count + Numbers::kPerWord - 1) / Numbers::kPerWord;
}

// sums[r][v] += left[r * kLeft + k * step] * panel[k][v], one k after the other.
template <class Numbers, int R, int V, int64_t kLeft>
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
      for (int v = 0; v < V; ++v) sums[r][v] = Numbers::multiply_add(all, right[v], sums[r][v]);
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
template <class Numbers, int R, int V>
void product_tile(const RowProduct& request, const float* block, const float* panel, int64_t row,
                  int64_t column) {
  Vec sums[R][V];
  clear(sums);
  int64_t left = words_of<Numbers>(request.in.width);
  for (; left >= kChunk; left -= kChunk) {
    add_products<Numbers, R, V, kChunk>(block, 1, panel, kChunk, sums);
    block += R * kChunk;
    panel += kChunk * V * kLanes;
  }
  add_products<Numbers, R, V, kChunk>(block, 1, panel, left, sums);
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

// A tile of R outputs times one panel of inputs, over `count` words of the batch's rows.
template <class Numbers, int R, int V>
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
  add_products<Numbers, R, V, 1>(grad, stride, panel, count, sums);
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

template <class Numbers, int V, int R = kTileRows>
ProductTile product_of(int64_t rows) {
  if constexpr (R == 1) {
    return &product_tile<Numbers, 1, V>;
  } else {
    return rows == R ? &product_tile<Numbers, R, V> : product_of<Numbers, V, R - 1>(rows);
  }
}

template <class Numbers, int V, int R = kTileRows>
GradientTile gradient_of(int64_t rows) {
  if constexpr (R == 1) {
    return &gradient_tile<Numbers, 1, V>;
  } else {
    return rows == R ? &gradient_tile<Numbers, R, V> : gradient_of<Numbers, V, R - 1>(rows);
  }
}

// Splits n rows into blocks of nearly equal size, none above kTileRows: no block is too small to
// keep the multipliers busy.
struct Blocks {
  explicit Blocks(int64_t rows) : n(rows), count((rows + kTileRows - 1) / kTileRows) {}
  int64_t begin(int64_t block) const { return n * block / count; }
  int64_t n;
  int64_t count;
};

int64_t panel_columns(int64_t outputs, int64_t first) {
  return outputs - first < kPanel ? outputs - first : kPanel;
}

int64_t panel_width(int64_t columns) { return columns <= kLanes ? kLanes : kPanel; }

// Copies rows so that an inner loop reaches each by a constant displacement: kChunk words of every
// row, then the next kChunk.
template <class Numbers>
void copy_block(const ConstRows& in, int64_t first, int64_t rows, float* block) {
  constexpr int64_t kNumbers = kChunk * Numbers::kPerWord;
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = in.data + (first + r) * in.stride;
    float* to = block + r * kChunk;
    for (int64_t left = in.width; left > 0; left -= kNumbers) {
      Numbers::copy_words(from, left < kNumbers ? left : kNumbers, to);
      from += kNumbers;
      to += rows * kChunk;
    }
  }
}

template <class Numbers>
void pack_panels_of(const float* matrix, int64_t row, int64_t column, int64_t inputs,
                    int64_t outputs, float* panels, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel * kPanel;
    const int64_t columns = panel_columns(outputs, first);
    Numbers::pack_panel(matrix + first * column, row, column, inputs, columns, panel_width(columns),
                        panels + first * words_of<Numbers>(inputs));
  }
}

template <class Numbers>
void product_of_rows(const RowProduct& request, int64_t begin, int64_t end, float* scratch) {
  const Blocks blocks(end - begin);
  const int64_t words = words_of<Numbers>(request.in.width);
  const int64_t width = (words + kChunk - 1) / kChunk * kChunk;
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t first = blocks.begin(block);
    copy_block<Numbers>(request.in, begin + first, blocks.begin(block + 1) - first,
                        scratch + first * width);
  }
  for (int64_t column = 0; column < request.outputs; column += kPanel) {
    const float* panel = request.panels + column * words;
    const bool narrow = request.outputs - column <= kLanes;
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t first = blocks.begin(block);
      const int64_t rows = blocks.begin(block + 1) - first;
      const ProductTile tile =
          narrow ? product_of<Numbers, 1>(rows) : product_of<Numbers, kTileVecs>(rows);
      tile(request, scratch + first * width, panel, begin + first, column);
    }
  }
}

template <class Numbers>
void gradient_tiles(const WeightGradient& request, int64_t begin, int64_t end, float* scratch) {
  alignas(64) float panel[kGradientRows / Numbers::kPerWord * kPanel];
  const Blocks blocks(request.grad.width);
  // Once for no rows too: sums of nothing are 0.
  for (int64_t row = 0; row == 0 || row < request.rows; row += kGradientRows) {
    const int64_t left = request.rows - row;
    const int64_t rows = left < kGradientRows ? left : kGradientRows;
    const ConstRows grad = Numbers::grad_words(request.grad, row, rows, scratch);
    for (int64_t tile = begin; tile < end;) {
      const int64_t number = tile / blocks.count;
      const int64_t column = number * kPanel;
      const int64_t stop = end < (number + 1) * blocks.count ? end : (number + 1) * blocks.count;
      const int64_t columns = panel_columns(request.in.width, column);
      const float* const in = request.in.data + row * request.in.stride + column;
      Numbers::pack_panel(in, request.in.stride, 1, rows, columns, panel_width(columns), panel);
      // The next panel's columns lie beside these, far apart: no hardware asks for them.
      for (int64_t r = 0; stop < end && r < rows; ++r) {
        for (int64_t n = kPanel; n < 2 * kPanel; n += 16) {
          __builtin_prefetch(in + r * request.in.stride + n, 0, 2);
        }
      }
      for (; tile < stop; ++tile) {
        const int64_t first = blocks.begin(tile % blocks.count);
        const int64_t outputs = blocks.begin(tile % blocks.count + 1) - first;
        const GradientTile function = columns <= kLanes ? gradient_of<Numbers, 1>(outputs)
                                                        : gradient_of<Numbers, kTileVecs>(outputs);
        function(grad.data + first, grad.stride, panel, words_of<Numbers>(rows),
                 request.out.data + first * request.out.stride + column, request.out.stride,
                 columns, row == 0);
      }
    }
  }
}

}  // namespace
}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
