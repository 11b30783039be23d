// Answers plain requests for rankings by the routes that are set, and keeps account of them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <ctime>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "front_loop.hpp"
#include "rank_route.hpp"

namespace widedeep {

// Who answers the requests to one path; replaced as a whole.
struct PathRoutes {
  std::shared_ptr<const RankRoute> stable;
  std::shared_ptr<const RankRoute> canary;  // may be absent
  double share = 0;                         // of the request ids, that the canary answers
  bool records_all = false;                 // answers, not only a sample
  bool is_logged = false;  // answers are recorded, unless they go to the log itself
};

struct RankFrontOptions {
  int threads = 1;
  std::int64_t most_candidates = 100'000;
  double inline_s = 0.002;  // what takes longer is the full server's
  double deadline_s = 5;
  double longest_deadline_s = 60;
  std::size_t queued_records = 2048;
  double sampled = 0;          // share of the answers that are recorded in any case
  bool records_all = false;    // answers, of all routes
  bool records_errors = true;  // refusals
  std::vector<double> second_edges;
  std::string busy;  // bodies of refusals
  std::string late;
  std::shared_ptr<const ApiKeys> keys;   // null: callers need none
  std::shared_ptr<ImpressionQueue> log;  // null: impressions are not logged, or by Python alone
};

// A request that was answered here, for those who keep a log.
struct FrontRecord {
  std::shared_ptr<const RankRoute> route;  // null for a refusal
  std::string path;
  std::string request_id;
  std::string caller;  // the name of its key
  std::string body;
  std::int64_t time_us = 0;  // since 1970
  double seconds = 0;
  int status = 200;
  bool sampled = false;
  bool is_unlogged = false;       // Python must log it
  std::int64_t n_rows = 0;        // candidates, or rows
  bool infers = false;            // a request for scores of rows
  std::int64_t json_length = -1;  // of the body; -1: all of it
  std::vector<std::int64_t> order;
  std::vector<double> scores;
  std::vector<std::int64_t> unknown;
  std::vector<float> logits;  // of all candidates, where they were ranked by a formula
};

// Answers of one status on one path.
struct AnswerFigures {
  explicit AnswerFigures(std::size_t n_bins) : bins(n_bins) {}
  std::atomic<std::int64_t> n{0};
  std::atomic<double> seconds{0};
  std::vector<std::atomic<std::int64_t>> bins;
};

class RankFront final : public FrontHandler {
 public:
  explicit RankFront(RankFrontOptions options);

  // Null routes take the path away: the full server answers it.
  void set_routes(const std::string& path, PathRoutes routes);

  bool knows(FrontRequest& request) override;
  bool admits(const FrontRequest& request) override;
  bool answer(int thread, const FrontRequest& request, std::string& out) override;
  void refuse(const FrontRequest& request, std::string& out) override;

  std::vector<FrontRecord> take_records();
  // Records that were to be logged.
  std::int64_t dropped() const noexcept { return dropped_.load(); }
  const RankFrontOptions& options() const noexcept { return options_; }
  static constexpr int kStatuses[] = {200, 503, 504};
  // Of requests for rankings, then of those for scores of rows.
  const AnswerFigures& figures(bool infers, std::size_t status) const {
    return *figures_[(infers ? std::size(kStatuses) : 0) + status];
  }

 private:
  using Table = std::unordered_map<std::string, PathRoutes>;

  struct Thread {
    RankRoom room;
    InferRoom infer;
    std::string body;
    std::string bytes;
    std::string made_id;
  };

  bool try_answer(Thread& own, const FrontRequest& request, std::string& out);
  bool try_infer(Thread& own, const PathRoutes& routes, const FrontRequest& request,
                 std::string& out);
  std::shared_ptr<const Table> table() const;
  std::shared_ptr<const RankRoute> choose(const PathRoutes& routes, std::string_view id) const;
  static std::string_view request_id(Thread& own, std::string_view given,
                                     const FrontRequest& request);
  double patience_s(const FrontRequest& request) const;
  void write(int status, std::string_view body, const std::string& json_length,
             std::string_view request_id, const FrontRequest& request, std::string& out) const;
  void write_refusal(std::size_t status, const std::string& body, std::string_view request_id,
                     const FrontRequest& request, std::string& out);
  bool log(const RankRoute& route, const RankRoom& room, std::string_view id,
           FrontClock::time_point latest);
  void account(bool inferred, std::size_t status, double seconds);
  // Waits for room until `latest`, unless that is past.
  void keep(FrontRecord record, FrontClock::time_point latest = {});

  const RankFrontOptions options_;
  mutable std::mutex mutex_;
  std::shared_ptr<const Table> table_ = std::make_shared<Table>();
  std::vector<FrontRecord> records_;
  std::condition_variable records_taken_;
  std::atomic<std::int64_t> dropped_{0};
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<std::unique_ptr<AnswerFigures>> figures_;
};

// "Thu, 26 Nov 2026 11:00:00 GMT".
std::string http_date(std::time_t at);

}  // namespace widedeep
