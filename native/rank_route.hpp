// A version that answers plain requests for rankings: what Ranker.rank computes for candidates by
// id, the same bits, without Python.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "impression_queue.hpp"
#include "rank_request.hpp"
#include "ranker.hpp"
#include "sort_scores.hpp"
#include "transform_sides.hpp"
#include "vocabulary.hpp"

namespace widedeep {

// What a ranker and its catalogue consist of; somebody else owns it and outlives the route.
struct RankModel {
  const RankScorer* scorer = nullptr;
  const transform::Plan* plan = nullptr;
  const transform::SideProgram* query = nullptr;
  const std::vector<int>* crosses = nullptr;
  const std::vector<bool>* is_item_part = nullptr;
  const transform::SideParts* item_parts = nullptr;
  const float* item_wide = nullptr;    // n_classes an item
  const float* item_hidden = nullptr;  // or, in half the precision:
  const std::uint16_t* item_hidden_bfloat16 = nullptr;
  std::int64_t n_items = 0;
  const float* bias = nullptr;  // n_classes
  // The rows of the items by id; one of them.
  const TextVocabulary* texts = nullptr;
  const IntegerVocabulary* integers = nullptr;
};

// How a logit becomes a score.
struct ScoreCurve {
  std::int64_t column = 0;      // of the logits
  bool is_probability = false;  // sigmoid(slope x logit + intercept), else the logit itself
  double slope = 1;
  double intercept = 0;
};

struct RouteOptions {
  std::string version;
  std::string catalogue_version;
  std::vector<int> query_columns;  // of the plan
  std::vector<std::string> foreign_names;
  std::vector<double> score_edges;
  ScoreCurve curve;
  int threads = 1;
  std::shared_ptr<LogShape> log;  // null: Python logs what is logged
};

// What a route has counted; anyone may read it at any time.
struct RouteFigures {
  std::atomic<std::int64_t> requests{0};
  std::atomic<std::int64_t> scores{0};
  std::atomic<double> score_sum{0};
  std::vector<std::atomic<std::int64_t>> bins;
  // A running mean of the seconds that a candidate takes.
  std::atomic<double> seconds_a_row{1e-6};
};

// What one thread ranks with.
struct RankRoom {
  RankRequestReader reader;
  std::vector<TextSpan> texts;
  std::vector<std::int64_t> integers;
  std::vector<std::int64_t> positions;
  std::vector<float> query_sums;
  std::vector<float> logits;
  std::vector<double> all_scores;
  SortingRoom sorting;
  // The answer, best first.
  std::vector<std::int64_t> order;
  std::vector<double> scores;
};

class RankRoute {
 public:
  RankRoute(const RankModel& model, RouteOptions options);

  const QueryNames& names() const noexcept { return names_; }
  const RouteOptions& options() const noexcept { return options_; }
  RouteFigures& figures() const noexcept { return figures_; }

  // Whether ranking what `room.reader` holds is expected to take longer than this.
  bool is_long(const RankRoom& room, double limit_s) const;
  // Ranks what `room.reader` holds. False if the full server must: a candidate is not in the
  // catalogue, or a value does not fit.
  bool rank(RankRoom& room) const;
  // The body of the answer.
  void write_body(const RankRoom& room, std::string_view request_id, std::string& out) const;

 private:
  bool find_items(RankRoom& room) const;
  void compute_logits(RankRoom& room) const;
  bool compute_scores(RankRoom& room) const;
  void sort_scores(RankRoom& room) const;
  void count(const RankRoom& room) const;

  RankModel model_;
  RouteOptions options_;
  QueryNames names_;
  std::vector<std::string> absent_;  // each query column as the answer tells that it was absent
  std::string before_id_;
  std::string after_id_;
  mutable RouteFigures figures_;
};

}  // namespace widedeep
