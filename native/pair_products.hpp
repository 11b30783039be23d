// The sum over all pairs of fields of their elementwise products, and its gradient.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"
#include "sparse.hpp"

namespace widedeep {

// Each row holds n_fields vectors of out.width numbers, one after the other.
struct PairProducts {
  ConstRows fields;
  int64_t n_fields;
  Rows out;          // forward
  ConstRows grad;    // backward: of `out`
  Rows fields_grad;  // backward
  int64_t dim;
};

// Each row holds n_fields times n_fields vectors of dim numbers: what a field copies, then what it
// multiplies with each other field; then further numbers. The output is the copies, the scalar
// products of all pairs, and the further numbers.
struct AwareProducts {
  ConstRows input;
  int64_t n_fields, dim;
  Rows out;         // forward
  ConstRows grad;   // backward: of `out`
  Rows input_grad;  // backward
};

WIDEDEEP_DECLARE_ISA(
    // Rows [begin, end).
    void pair_product_rows(const PairProducts& request, int64_t begin, int64_t end);
    void pair_product_grad_rows(const PairProducts& request, int64_t begin, int64_t end);
    void aware_product_rows(const AwareProducts& request, int64_t begin, int64_t end);
    void aware_product_grad_rows(const AwareProducts& request, int64_t begin, int64_t end);)

void pair_products(const PairProducts& request, int64_t rows, int threads);
void pair_products_grad(const PairProducts& request, int64_t rows, int threads);
void aware_products(const AwareProducts& request, int64_t rows, int threads);
void aware_products_grad(const AwareProducts& request, int64_t rows, int threads);

}  // namespace widedeep
