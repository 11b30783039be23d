#include <algorithm>
#include <atomic>

#include "sparse.hpp"
#include "thread_pool.hpp"

namespace widedeep {
namespace {

// The smallest cell that any part reported.
class FirstFault {
 public:
  void report(int64_t cell) {
    if (cell == kNoFault) return;
    int64_t seen = cell_.load(std::memory_order_relaxed);
    while ((seen == kNoFault || cell < seen) && !cell_.compare_exchange_weak(seen, cell)) {
    }
  }
  int64_t cell() const { return cell_.load(); }

 private:
  std::atomic<int64_t> cell_{kNoFault};
};

}  // namespace

int64_t gather_pool(const GatherRequest& given, int threads) {
  FirstFault fault;
  GatherRequest request = given;
  request.single = one_id_in_each_cell(request.batch, threads);
  const auto range = WIDEDEEP_DISPATCH(gather_pool_range);
  parallel_for(request.batch.n_examples, threads,
               [&](int64_t begin, int64_t end, int) { fault.report(range(request, begin, end)); });
  return fault.cell();
}

int64_t wide_forward(const GatherRequest& given, int threads) {
  FirstFault fault;
  GatherRequest request = given;
  request.single = one_id_in_each_cell(request.batch, threads);
  const auto range = WIDEDEEP_DISPATCH(wide_forward_range);
  parallel_for(request.batch.n_examples, threads,
               [&](int64_t begin, int64_t end, int) { fault.report(range(request, begin, end)); });
  return fault.cell();
}

int64_t cell_scales(const CsrBatch& batch, const SlotList& slots, float* scale, int threads) {
  FirstFault fault;
  const auto range = WIDEDEEP_DISPATCH(cell_scales_range);
  parallel_for(batch.n_examples, threads, [&](int64_t begin, int64_t end, int) {
    fault.report(range(batch, slots, scale, begin, end));
  });
  return fault.cell();
}

}  // namespace widedeep
