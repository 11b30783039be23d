#include "outer_update.hpp"

#include "thread_pool.hpp"

namespace widedeep {

void adagrad_outer(const OuterUpdate& request, int threads) {
  const auto range = WIDEDEEP_DISPATCH(adagrad_outer_range);
  parallel_for(request.grad.width, threads,
               [&](int64_t begin, int64_t end, int) { range(request, begin, end); });
}

}  // namespace widedeep
