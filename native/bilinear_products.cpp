#include "bilinear_products.hpp"

#include "thread_pool.hpp"

namespace widedeep {

void bilinear_products(const BilinearProducts& request, int64_t rows, int threads) {
  parallel_for(rows, threads, [&](int64_t begin, int64_t end, int) {
    WIDEDEEP_DISPATCH(bilinear_product_rows)(request, begin, end);
  });
}

void bilinear_products_grad(const BilinearProducts& request, const BilinearGrad& grad, int64_t rows,
                            int threads) {
  parallel_for(rows, threads, [&](int64_t begin, int64_t end, int) {
    WIDEDEEP_DISPATCH(bilinear_product_grad_rows)(request, grad, begin, end);
  });
}

}  // namespace widedeep
