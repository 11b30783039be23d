#include "outer_update.hpp"

#include <algorithm>

#include "thread_pool.hpp"

namespace widedeep {

void adagrad_outer(const OuterUpdate& request, int threads) {
  const auto range = WIDEDEEP_DISPATCH(adagrad_outer_range);
  constexpr int64_t kColumns = 16;  // of a cache line
  const int64_t width = request.weights.width;
  parallel_for((width + kColumns - 1) / kColumns, threads, [&](int64_t begin, int64_t end, int) {
    range(request, begin * kColumns, std::min(end * kColumns, width));
  });
}

}  // namespace widedeep
