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

// Occurrences of some rows side by side, cut where another row or another lane begins.
struct LaneSegments {
  std::vector<int32_t> starts{};   // first occurrence of each, and the end
  std::vector<int32_t> lanes{};    // of each
  std::vector<int32_t> firsts{};   // of each row, its first segment, and their number
  std::vector<int32_t> numbers{};  // of each occurrence, the segments before it
  int64_t n = 0;

  void make_room(int64_t n_occurrences, int64_t rows) {
    const auto most = static_cast<size_t>(n_occurrences) + 1;
    if (lanes.size() < most) starts.resize(most), lanes.resize(most), numbers.resize(most);
    const auto n_firsts = static_cast<size_t>(rows) + 1;
    if (firsts.size() < n_firsts) firsts.resize(n_firsts);
  }
};

// Finds the lanes of rows' occurrences.
class LaneFinder {
 public:
  LaneFinder(const SegmentRequest& request, const LaneSums& lanes)
      : request_(request),
        lanes_(lanes),
        inverse_(request.n_features > 1 ? UINT64_MAX / static_cast<uint64_t>(request.n_features) + 1
                                        : 0) {}

  // Cuts rows [begin, end) up. Without branches: rows are short and of any length, and whether an
  // occurrence is of another lane is a coin toss.
  void cut(int64_t begin, int64_t end, LaneSegments& segments) const {
    const int32_t first = request_.starts[begin], n_occurrences = request_.starts[end] - first;
    segments.make_room(n_occurrences, end - begin);
    int32_t* const starts = segments.starts.data();
    int32_t* const lanes = segments.lanes.data();
    int32_t* const numbers = segments.numbers.data();
    std::fill(numbers, numbers + n_occurrences, 0);
    for (int64_t row = begin; row < end; ++row) numbers[request_.starts[row] - first] = 1;
    const int32_t* const cells = request_.cells + first;
    int32_t n = 0, before = -1;
    for (int32_t i = 0; i < n_occurrences; ++i) {
      const int32_t lane = lane_of(static_cast<uint32_t>(cells[i]));
      const int32_t is_new = numbers[i] | (lane != before ? 1 : 0);
      numbers[i] = n;
      starts[n] = first + i;
      lanes[n] = lane;
      n += is_new;
      before = lane;
    }
    starts[n] = first + n_occurrences;
    segments.n = n;
    for (int64_t row = begin; row < end; ++row) {
      segments.firsts[static_cast<size_t>(row - begin)] = numbers[request_.starts[row] - first];
    }
    segments.firsts[static_cast<size_t>(end - begin)] = n;
  }

 private:
  int32_t lane_of(uint32_t cell) const {  // divided as Lemire, Kaser & Kurz 2019 do
    const uint32_t example =
        inverse_ == 0
            ? cell
            : static_cast<uint32_t>((static_cast<unsigned __int128>(inverse_) * cell) >> 64);
    return lanes_.lane_of_example[example];
  }

  const SegmentRequest& request_;
  const LaneSums& lanes_;
  uint64_t inverse_;
};

// Sums of one row's lanes, which follow each other in `sums`, into the first of them. Rows have
// kWidth numbers, or any number where that is 0.
template <int kWidth>
class LaneTree {
 public:
  LaneTree(const LaneSums& lanes, int64_t width)
      : lanes_(lanes),
        width_(kWidth > 0 ? kWidth : width),
        first_(lanes.lane_of_example[0]),
        last_(lanes.lane_of_example[lanes.n_examples - 1] + 1) {
    if (last_ - first_ > kFewLanes) return;
    plan(0, lanes.lanes);
    every_.resize(static_cast<size_t>((last_ - first_) * width_));
  }

  // Adds rows' segments up: row after row, in `out`.
  void add_up(const LaneSegments& segments, float* sums, int64_t rows, const Rows& out) {
    if (lanes_.bfloat16) round_all(sums, segments.n * width_);
    const int32_t* const firsts = segments.firsts.data();
    if (static_cast<int64_t>(several_.size()) < rows) several_.resize(static_cast<size_t>(rows));
    size_t n_several = 0;
    for (int64_t i = 0; i < rows; ++i) {
      copy(out.data + i * out.stride, sums + firsts[i] * width_);
      several_[n_several] = static_cast<int32_t>(i);
      n_several += firsts[i + 1] - firsts[i] > 1 ? 1 : 0;
    }
    for (size_t k = 0; k < n_several; ++k) {
      const int64_t i = several_[k], first = firsts[i], n = firsts[i + 1] - first;
      float* const row = out.data + i * out.stride;
      if (n == 2) {
        add(row, sums + (first + 1) * width_);
      } else {
        const int32_t* const lane = segments.lanes.data() + first;
        float* const of_row = sums + first * width_;
        copy(row, every_.empty() ? add_open(of_row, lane, n) : add_every(of_row, lane, n));
      }
    }
  }

 private:
  static constexpr int64_t kFewLanes = 64;  // all of which are added sooner than some are found

  struct Sum {
    int64_t into, from;  // of the lanes, from the first one
  };
  struct Open {
    float* sum;
    int depth;  // where the lanes that follow part from it
  };

  // Notes the sums that the lanes [begin, end) take; returns the first of them that there is.
  int64_t plan(int64_t begin, int64_t end) {
    if (end <= first_ || begin >= last_) return -1;
    if (end - begin == 1) return begin - first_;
    const int64_t middle = (begin + end + 1) / 2;
    const int64_t into = plan(begin, middle), from = plan(middle, end);
    if (into < 0 || from < 0) return std::max(into, from);
    sums_.push_back({into, from});
    return into;
  }

  // A lane that adds nothing has the number that changes none: -0.
  float* add_every(const float* sums, const int32_t* lane, int64_t n) {
    std::fill(every_.begin(), every_.end(), -0.0f);
    float* const every = every_.data();
    for (int64_t i = 0; i < n; ++i) copy(every + (lane[i] - first_) * width_, sums + i * width_);
    for (const Sum& sum : sums_) add(every + sum.into * width_, every + sum.from * width_);
    return every;
  }

  float* add_open(float* sums, const int32_t* lane, int64_t n) {
    open_.clear();
    float* last = sums;
    for (int64_t i = 1; i < n; ++i) {
      const int depth = depth_between(lane[i - 1], lane[i], lanes_.lanes);
      last = close(last, depth);
      open_.push_back({last, depth});
      last = sums + i * width_;
    }
    return close(last, -1);
  }

  float* close(float* last, int depth) {
    while (!open_.empty() && open_.back().depth > depth) {
      float* const sum = open_.back().sum;
      add(sum, last);
      last = sum;
      open_.pop_back();
    }
    return last;
  }

  void add(float* __restrict sum, const float* __restrict other) const {
    const int64_t width = kWidth > 0 ? kWidth : width_;
    for (int64_t d = 0; d < width; ++d) sum[d] += other[d];
    if (lanes_.bfloat16) round_all(sum, width);
  }

  void copy(float* out, const float* row) const {
    memcpy(out, row, static_cast<size_t>(kWidth > 0 ? kWidth : width_) * sizeof(float));
  }

  const LaneSums& lanes_;
  int64_t width_;
  int64_t first_, last_;            // lanes that there are
  std::vector<Sum> sums_{};         // of all of them, where they are few
  std::vector<int32_t> several_{};  // rows of several segments
  std::vector<float> every_{};      // lane's sum
  std::vector<Open> open_{};
};

// Sums rows [row, last_row), some occurrences at a time.
template <int kWidth>
void sum_lanes(const SegmentRequest& request, const LaneSums& lanes, const LaneFinder& finder,
               int64_t row, int64_t last_row) {
  const auto range = WIDEDEEP_DISPATCH(segment_sum_range);
  const int32_t* const row_starts = request.starts;
  const int64_t width = request.out.width;
  LaneTree<kWidth> tree(lanes, width);
  LaneSegments segments;
  std::vector<float> sums;
  while (row < last_row) {
    const int64_t first_row = row++;  // which may have more than a block by itself
    while (row < last_row && row_starts[row + 1] - row_starts[first_row] <= kLaneBlock) ++row;
    finder.cut(first_row, row, segments);
    const auto floats = static_cast<size_t>(segments.n * width);
    if (sums.size() < floats) sums.resize(floats);
    SegmentRequest by_lane = request;
    by_lane.starts = segments.starts.data();
    by_lane.n_rows = segments.n;
    by_lane.out = {sums.data(), width, width};
    range(by_lane, 0, segments.n);
    const Rows out = request.out;
    tree.add_up(segments, sums.data(), row - first_row,
                {out.data + first_row * out.stride, out.stride, width});
  }
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

void segment_sum_by_lanes(const SegmentRequest& request, const LaneSums& lanes, int threads) {
  const int64_t n_rows = request.n_rows, width = request.out.width;
  const int32_t* const lane = lanes.lane_of_example;
  if (lanes.n_examples == 0 || lane[0] == lane[lanes.n_examples - 1]) {
    segment_sum(request, threads);
    if (!lanes.bfloat16) return;
    parallel_for(n_rows, threads, [&](int64_t begin, int64_t end, int) {
      for (; begin < end; ++begin) {
        round_all(request.out.data + begin * request.out.stride, width);
      }
    });
    return;
  }
  const int32_t* const starts = request.starts;
  const int64_t first = starts[0];
  const LaneFinder finder(request, lanes);
  const auto row_at = [&](int64_t occurrence) {
    return std::lower_bound(starts, starts + n_rows + 1, first + occurrence) - starts;
  };
  const auto sum = width == 1    ? &sum_lanes<1>
                   : width == 16 ? &sum_lanes<16>
                   : width == 32 ? &sum_lanes<32>
                                 : &sum_lanes<0>;
  parallel_for(starts[n_rows] - first, threads, [&](int64_t begin, int64_t end, int) {
    sum(request, lanes, finder, row_at(begin), row_at(end));
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
