// A version that answers requests for rankings: what Ranker.rank computes, the same bits, without
// Python.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "impression_queue.hpp"
#include "infer_route.hpp"
#include "rank_request.hpp"
#include "ranker.hpp"
#include "score_curve.hpp"
#include "sort_scores.hpp"
#include "transform_sides.hpp"
#include "vocabulary.hpp"

namespace widedeep {

// Items, and their part of every request's sums.
struct ItemSums {
  const transform::SideParts* parts = nullptr;
  const float* wide = nullptr;    // n_classes an item
  const float* hidden = nullptr;  // or, in half the precision:
  const std::uint16_t* hidden_bfloat16 = nullptr;
  std::int64_t n_items = 0;
};

// The query's part of them.
struct QuerySums {
  const transform::SideParts* parts;
  const float* wide;
  const float* hidden;
};

// What a ranker and its catalogue consist of; somebody else owns it and outlives the route.
struct RankModel {
  // The logits of `n` items at `rows`; throws for more ids of crosses than `most_values`.
  void logits(const QuerySums& asked, const ItemSums& from, const std::int64_t* rows,
              std::int64_t n, std::int64_t most_values, int threads, float* out) const;

  const RankScorer* scorer = nullptr;
  const transform::Plan* plan = nullptr;
  const transform::SideProgram* query = nullptr;
  const transform::SideProgram* item = nullptr;
  const std::vector<int>* crosses = nullptr;
  const std::vector<bool>* is_item_part = nullptr;
  ItemSums items;               // of the catalogue; none without one
  const float* bias = nullptr;  // n_classes
  // The rows of the items by id; one of them, or none without a catalogue.
  const TextVocabulary* texts = nullptr;
  const IntegerVocabulary* integers = nullptr;
  // Numbers of the items that a formula reads, `n_numbers` an item; behind the last one those of an
  // item that is not in the catalogue.
  const double* numbers = nullptr;
  std::int64_t n_numbers = 0;
};

struct RouteOptions {
  std::string version;
  std::string catalogue_version;   // empty: there is no catalogue
  std::vector<int> query_columns;  // of the plan
  std::vector<int> item_columns;
  std::string id_column;  // may be empty
  // The columns of inline items that are the formula's numbers; empty where others are needed.
  std::vector<std::string> numbers;
  std::vector<std::string> foreign_names;  // of the items, beside their columns
  std::vector<double> score_edges;
  std::vector<ScoreCurve> curves;  // of the heads that can be ranked by here
  // Where a request names no head and there is no formula; -1: that is answered elsewhere.
  std::int64_t default_curve = -1;
  ScoreFormula formula;
  std::string formula_text;
  bool scores_unknown = true;  // ids that are not in the catalogue
  bool is_bfloat16 = false;    // sums of items
  int threads = 1;
  std::shared_ptr<LogShape> log;  // null: Python logs what is logged
};

// A candidate by id, one that the request brings, a row of tensors.
enum class RowSource : std::uint8_t { by_id, brought, tensor };

// What a route has counted; anyone may read it at any time.
struct RouteFigures {
  std::atomic<std::int64_t> requests{0};
  std::atomic<std::int64_t> scores{0};
  std::atomic<double> score_sum{0};
  std::vector<std::atomic<std::int64_t>> bins;
  std::atomic<std::int64_t> undefined{0};
  std::atomic<std::int64_t> unknown{0};
  // Of the requests, those for scores of rows.
  std::atomic<std::int64_t> inferred{0};
  std::atomic<std::int64_t> inferred_rows{0};
  std::atomic<double> inferred_seconds{0};
  // A running mean of the seconds that a row of each source takes.
  std::array<std::atomic<double>, 3> seconds_a_row{1e-6, 1e-6, 1e-6};
};

// Items that a request brings, or of which it brings the id alone.
struct BroughtItems {
  transform::SideRows rows;
  std::vector<float> sums;  // wide, then hidden
  std::vector<std::uint16_t> hidden_bfloat16;
  std::vector<Variant> ids;
  std::vector<Variant> nulls;
  std::vector<Column> columns;
};

// What one thread ranks with.
struct RankRoom {
  RankRequestReader reader;
  std::vector<TextSpan> texts;
  std::vector<std::int64_t> integers;
  std::deque<std::string> converted;  // integers as text
  // By candidate: the row in the catalogue, or -1.
  std::vector<std::int64_t> positions;
  std::vector<std::int64_t> group;  // candidates that are computed together
  std::vector<std::int64_t> group_rows;
  BroughtItems brought;
  transform::SideRows query;
  std::vector<float> query_sums;
  std::vector<float> logits;
  std::vector<float> group_logits;
  std::vector<double> numbers;
  std::vector<double> stack;
  std::vector<double> all_scores;
  std::vector<double> defined;
  SortingRoom sorting;
  // The answer, best first.
  std::vector<std::int64_t> order;
  std::vector<double> scores;
  std::vector<std::int64_t> unknown;  // places of ids that are not in the catalogue
  std::size_t n_undefined = 0;        // the last ones
  std::size_t n_unknown = 0;          // candidates, also those behind the first k
};

class RankRoute {
 public:
  RankRoute(const RankModel& model, RouteOptions options);

  const RequestNames& names() const noexcept { return names_; }
  const RouteOptions& options() const noexcept { return options_; }
  RouteFigures& figures() const noexcept { return figures_; }
  // Null if requests for scores of rows are answered elsewhere.
  const InferRoute* infer() const noexcept { return infer_.get(); }
  void set_infer(std::unique_ptr<const InferRoute> infer) { infer_ = std::move(infer); }
  // Scores the rows that `room.reader` holds, as InferRoute does, and counts them.
  bool score_rows(InferRoom& room) const;
  std::int64_t n_classes() const noexcept { return model_.scorer->n_classes(); }

  // Whether so many rows are expected to take longer than this.
  bool is_long(RowSource source, std::int64_t n_rows, double limit_s) const;
  // Ranks what `room.reader` holds. False if the full server must: this is not its kind of request,
  // or a value does not fit.
  bool rank(RankRoom& room) const;
  // The body of the answer.
  void write_body(const RankRoom& room, std::string_view request_id, std::string& out) const;
  // Whether candidates came by ids that the catalogue holds, and are ranked by the default head.
  bool is_plain(const RankRoom& room) const noexcept {
    const bool is_default = options_.formula.steps.empty() && !room.reader.names_head();
    return is_default && !room.reader.are_inline() && room.n_unknown == 0;
  }
  // Whether the answer is by the formula.
  bool by_formula(const RankRoom& room) const noexcept {
    return !options_.formula.steps.empty() && !room.reader.names_head();
  }

 private:
  void learn(RowSource source, std::int64_t n_rows, double seconds) const;
  void count_scored(const std::vector<double>& scores, double seconds) const;
  const ScoreCurve* curve_of(const RankRoom& room) const;
  bool find_items(RankRoom& room) const;
  void find_by_text(RankRoom& room) const;
  void find_by_integer(RankRoom& room) const;
  void compute_query(RankRoom& room) const;
  void compute_logits(RankRoom& room) const;
  void compute_groups(RankRoom& room) const;
  ItemSums bring(const std::vector<const Column*>& columns, std::int64_t n, RankRoom& room) const;
  ItemSums bring_inline(RankRoom& room) const;
  ItemSums bring_unknown(RankRoom& room) const;
  void score_group(RankRoom& room, const ItemSums& items, const std::vector<std::int64_t>& rows,
                   float* logits) const;
  bool compute_scores(RankRoom& room) const;
  bool compute_values(RankRoom& room) const;
  bool take_numbers(RankRoom& room) const;
  void sort_scores(RankRoom& room) const;
  void find_unknown(RankRoom& room) const;
  void count(const RankRoom& room) const;
  void write_absent(const RankRoom& room, std::string& out) const;

  RankModel model_;
  RouteOptions options_;
  RequestNames names_;
  int id_slot_ = -1;                 // the column of ids among the model's item columns
  std::vector<std::string> absent_;  // each query column as the answer tells that it was absent
  std::vector<std::string> absent_items_;
  std::string before_id_;
  std::string rank_by_;
  std::string after_id_;
  mutable RouteFigures figures_;
  std::unique_ptr<const InferRoute> infer_;
};

}  // namespace widedeep
