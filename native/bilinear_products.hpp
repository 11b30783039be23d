// The products of FiBiNET's pairs, plain and weighed, side by side with further numbers.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"
#include "sparse.hpp"

namespace widedeep {

// For pairs i < j of fields v with gates a, in order of i, then of j: p_ij = left_ij * v_j.
// A row of `out`: a_i a_j p_ij of all pairs, p_ij of all pairs, the numbers.
struct BilinearProducts {
  int64_t fields, dim;
  ConstRows left;     // (rows, pairs * dim)
  ConstRows right;    // (rows, fields * dim): v
  ConstRows gates;    // (rows, fields)
  ConstRows numbers;  // (rows, K)
  Rows out;           // (rows, 2 * pairs * dim + K); forward
};

struct BilinearGrad {
  ConstRows grad_out;
  Rows grad_left;
  Rows grad_right;
  Rows grad_gates;
};

WIDEDEEP_DECLARE_ISA(
    // Rows [begin, end).
    void bilinear_product_rows(const BilinearProducts& request, int64_t begin, int64_t end);
    void bilinear_product_grad_rows(const BilinearProducts& request, const BilinearGrad& grad,
                                    int64_t begin, int64_t end);)

void bilinear_products(const BilinearProducts& request, int64_t rows, int threads);
void bilinear_products_grad(const BilinearProducts& request, const BilinearGrad& grad, int64_t rows,
                            int threads);

}  // namespace widedeep
