// What of the tower is compiled for each instruction set. See tower.hpp for its contract.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"
#include "sparse.hpp"

namespace widedeep {

// out = in · B for a matrix B of `inputs` rows and `outputs` columns, which lies packed: panels of
// tower_panel() columns, each row after row; the last one is half as wide where that is enough, and
// padded with zeros.
struct RowProduct {
  ConstRows in;
  const float* panels;
  int64_t outputs;
  const float* bias = nullptr;       // padded with zeros to whole panels; or null
  bool relu = false;                 // after the bias
  ConstRows mask = {nullptr, 0, 0};  // outputs are 0 where this is not above 0; or null
  Rows out;
  ConstRows weight = {nullptr, 0, 0};  // Bᵀ, for product_few_rows(), which reads no panels
};

// out = gradᵀ · in, summed over the batch's rows one after the other.
struct WeightGradient {
  ConstRows grad;
  ConstRows in;
  int64_t rows;
  Rows out;
};

// Rows of the batch whose gradients and inputs are multiplied while they lie in the first caches.
constexpr int64_t kGradientRows = 192;

#define WIDEDEEP_TOWER_FUNCTIONS                                                                 \
  int64_t tower_panel();                                                                         \
  int64_t tower_block();                                                                         \
  /* Packs panels [begin, end) of the matrix whose element (k, n) is at k * row + n * column. */ \
  void pack_panels(const float* matrix, int64_t row, int64_t column, int64_t inputs,             \
                   int64_t outputs, float* panels, int64_t begin, int64_t end);                  \
  /* Rows [begin, end); `scratch` has room for them, their width rounded up to 16. */            \
  void product_rows(const RowProduct& request, int64_t begin, int64_t end, float* scratch);      \
  /* Tiles [begin, end): blocks of tower_block() outputs, panel of inputs after panel; `scratch` \
     has room for gradient_room(outputs) floats. */                                              \
  int64_t gradient_room(int64_t outputs);                                                        \
  void weight_gradient_tiles(const WeightGradient& request, int64_t begin, int64_t end,          \
                             float* scratch)

WIDEDEEP_DECLARE_ISA(WIDEDEEP_TOWER_FUNCTIONS;
                     void column_sums(const ConstRows& grad, int64_t rows, float* out,
                                      int64_t begin, int64_t end);
                     /* Whether so few rows are multiplied faster by weights as they lie. */
                     bool multiplies_few_rows(int64_t rows, int64_t inputs);
                     void product_few_rows(const RowProduct& request, int64_t begin, int64_t end))

#if defined(__x86_64__)
namespace avx512bf16 {
WIDEDEEP_TOWER_FUNCTIONS;
}
#endif

}  // namespace widedeep
