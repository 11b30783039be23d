#include <algorithm>
#include <atomic>

#include "sparse.hpp"
#include "thread_pool.hpp"

namespace widedeep {
namespace {

// Runs range(request, begin, end) over the touched rows.
template <class Request, class Range>
void over_rows(const Request& request, int64_t n, int threads, Range range) {
  parallel_for(n, threads, [&](int64_t begin, int64_t end, int) { range(request, begin, end); });
}

}  // namespace

// Parts hold about the same number of occurrences: a few rows may have most of them.
void segment_sum(const SegmentRequest& request, int threads) {
  const auto range = WIDEDEEP_DISPATCH(segment_sum_range);
  const int32_t* starts = request.starts;
  const int64_t n_rows = request.n_rows;
  const int64_t first = starts[0];
  const auto row_at = [&](int64_t occurrence) {
    return std::lower_bound(starts, starts + n_rows + 1, first + occurrence) - starts;
  };
  parallel_for(starts[n_rows] - first, threads, [&](int64_t begin, int64_t end, int) {
    range(request, row_at(begin), row_at(end));
  });
}

void sgd_rows(const SgdRequest& request, int threads) {
  over_rows(request, request.gradients.n, threads, WIDEDEEP_DISPATCH(sgd_rows_range));
}

void momentum_rows(const MomentumRequest& request, int threads) {
  over_rows(request, request.gradients.n, threads, WIDEDEEP_DISPATCH(momentum_rows_range));
}

void rmsprop_rows(const RmspropRequest& request, int threads) {
  over_rows(request, request.gradients.n, threads, WIDEDEEP_DISPATCH(rmsprop_rows_range));
}

void adagrad_rows(const AdagradRequest& request, int threads) {
  over_rows(request, request.gradients.n, threads, WIDEDEEP_DISPATCH(adagrad_rows_range));
}

void adam_rows(const AdamRequest& request, int threads) {
  over_rows(request, request.gradients.n, threads, WIDEDEEP_DISPATCH(adam_rows_range));
}

int64_t ftrl_rows(const FtrlRequest& request, int threads) {
  const auto range = WIDEDEEP_DISPATCH(ftrl_rows_range);
  std::atomic<int64_t> change{0};
  parallel_for(request.gradients.n, threads,
               [&](int64_t begin, int64_t end, int) { change += range(request, begin, end); });
  return change.load();
}

void round_rows(const ConstRows& rows, const WeightRows& out, int64_t n, int threads) {
  const auto range = WIDEDEEP_DISPATCH(round_rows_range);
  parallel_for(n, threads, [&](int64_t begin, int64_t end, int) { range(rows, out, begin, end); });
}

void init_rows(const InitRequest& request, int64_t n, int threads) {
  over_rows(request, n, threads, WIDEDEEP_DISPATCH(init_rows_range));
}

}  // namespace widedeep
