#include "pair_products.hpp"

#include "thread_pool.hpp"

namespace widedeep {
namespace {

constexpr int64_t kFewRows = 64;  // not worth a second thread

}  // namespace

void pair_products(const PairProducts& request, int64_t rows, int threads) {
  parallel_for(rows, rows < kFewRows ? 1 : threads, [&](int64_t begin, int64_t end, int) {
    WIDEDEEP_DISPATCH(pair_product_rows)(request, begin, end);
  });
}

void pair_products_grad(const PairProducts& request, int64_t rows, int threads) {
  parallel_for(rows, rows < kFewRows ? 1 : threads, [&](int64_t begin, int64_t end, int) {
    WIDEDEEP_DISPATCH(pair_product_grad_rows)(request, begin, end);
  });
}

void aware_products(const AwareProducts& request, int64_t rows, int threads) {
  parallel_for(rows, rows < kFewRows ? 1 : threads, [&](int64_t begin, int64_t end, int) {
    WIDEDEEP_DISPATCH(aware_product_rows)(request, begin, end);
  });
}

void aware_products_grad(const AwareProducts& request, int64_t rows, int threads) {
  parallel_for(rows, rows < kFewRows ? 1 : threads, [&](int64_t begin, int64_t end, int) {
    WIDEDEEP_DISPATCH(aware_product_grad_rows)(request, begin, end);
  });
}

}  // namespace widedeep
