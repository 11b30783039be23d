#include <string.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "bfloat16.hpp"
#include "sparse.hpp"
#include "thread_pool.hpp"

namespace widedeep {
namespace {

// Runs range(request, begin, end) over the touched rows.
template <class Request, class Range>
void over_rows(const Request& request, int64_t n, int threads, Range range) {
  parallel_for(n, threads, [&](int64_t begin, int64_t end, int) { range(request, begin, end); });
}

constexpr int32_t kLaneBlock = 1024;  // occurrences whose sums stay in a cache

// How deep in the tree of halves two lanes part.
int depth_between(int64_t lane, int64_t later, int64_t lanes) {
  int64_t begin = 0, end = lanes;
  for (int depth = 0;; ++depth) {
    const int64_t middle = (begin + end + 1) / 2;
    if (later < middle) {
      end = middle;
    } else if (lane >= middle) {
      begin = middle;
    } else {
      return depth;
    }
  }
}

void round_all(float* row, int64_t width) {
  for (int64_t d = 0; d < width; ++d) row[d] = from_bfloat16(to_bfloat16(row[d]));
}

// Appends the first occurrence of each of a row's lanes, and the lane; `end_cells` are the lanes'.
void add_segments(const SegmentRequest& request, const LaneSums& lanes,
                  const std::vector<int64_t>& end_cells, int64_t row, std::vector<int32_t>& starts,
                  std::vector<int32_t>& lane) {
  const auto n_features = static_cast<uint32_t>(request.n_features);
  int64_t end_cell = -1;
  for (int32_t i = request.starts[row]; i < request.starts[row + 1]; ++i) {
    if (request.cells[i] < end_cell) continue;
    const uint32_t example = static_cast<uint32_t>(request.cells[i]) / n_features;
    const int32_t now = lanes.lane_of_example[example];
    starts.push_back(i);
    lane.push_back(now);
    end_cell = end_cells[static_cast<size_t>(now)];
  }
}

// Sums of one row's lanes, which follow each other in `sums`, into the first of them.
class LaneTree {
 public:
  explicit LaneTree(const LaneSums& lanes) : lanes_(lanes) {}

  void add_up(float* sums, const int32_t* lane, int64_t n, int64_t width) {
    if (lanes_.bfloat16) round_all(sums, n * width);
    if (n < 2) return;
    open_.clear();
    float* last = sums;
    for (int64_t i = 1; i < n; ++i) {
      const int depth = depth_between(lane[i - 1], lane[i], lanes_.lanes);
      last = close(last, depth, width);
      open_.push_back({last, depth});
      last = sums + i * width;
    }
    close(last, -1, width);
  }

 private:
  struct Open {
    float* sum;
    int depth;  // where the lanes that follow part from it
  };

  float* close(float* last, int depth, int64_t width) {
    while (!open_.empty() && open_.back().depth > depth) {
      float* const sum = open_.back().sum;
      for (int64_t d = 0; d < width; ++d) sum[d] += last[d];
      if (lanes_.bfloat16) round_all(sum, width);
      last = sum;
      open_.pop_back();
    }
    return last;
  }

  const LaneSums& lanes_;
  std::vector<Open> open_;
};

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

void segment_sum_by_lanes(const SegmentRequest& request, const LaneSums& lanes, int threads) {
  const auto range = WIDEDEEP_DISPATCH(segment_sum_range);
  const int64_t n_rows = request.n_rows, width = request.out.width;
  const int32_t* const row_starts = request.starts;
  const int64_t first = row_starts[0];
  std::vector<int64_t> end_cells(static_cast<size_t>(lanes.lanes));
  for (int64_t b = 0; b < lanes.n_examples; ++b) {
    end_cells[static_cast<size_t>(lanes.lane_of_example[b])] = (b + 1) * request.n_features;
  }
  const auto row_at = [&](int64_t occurrence) {
    return std::lower_bound(row_starts, row_starts + n_rows + 1, first + occurrence) - row_starts;
  };
  parallel_for(row_starts[n_rows] - first, threads, [&](int64_t begin, int64_t end, int) {
    LaneTree tree(lanes);
    std::vector<int32_t> starts, lane;  // of each row's lanes
    std::vector<int64_t> firsts;        // of each row in them
    std::vector<float> sums;
    const int64_t last_row = row_at(end);
    for (int64_t row = row_at(begin); row < last_row;) {
      const int64_t first_row = row;
      starts.clear(), lane.clear(), firsts.clear();
      for (; row < last_row && row_starts[row + 1] - row_starts[first_row] <= kLaneBlock; ++row) {
        firsts.push_back(static_cast<int64_t>(lane.size()));
        add_segments(request, lanes, end_cells, row, starts, lane);
      }
      if (row == first_row) {  // more than a block by itself
        firsts.push_back(0);
        add_segments(request, lanes, end_cells, row++, starts, lane);
      }
      firsts.push_back(static_cast<int64_t>(lane.size()));
      starts.push_back(row_starts[row]);
      sums.resize(lane.size() * static_cast<size_t>(width));
      SegmentRequest segments = request;
      segments.starts = starts.data();
      segments.n_rows = static_cast<int64_t>(lane.size());
      segments.out = {sums.data(), width, width};
      range(segments, 0, segments.n_rows);
      for (int64_t i = 0; i < row - first_row; ++i) {
        const int64_t segment = firsts[static_cast<size_t>(i)];
        float* const sum = sums.data() + segment * width;
        tree.add_up(sum, lane.data() + segment, firsts[static_cast<size_t>(i) + 1] - segment,
                    width);
        memcpy(request.out.data + (first_row + i) * request.out.stride, sum,
               static_cast<size_t>(width) * sizeof(float));
      }
    }
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
