#include "rank_route.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <exception>
#include <utility>

#include "sigmoid.hpp"
#include "sort_scores.hpp"

namespace widedeep {
namespace {

// What a recent request weighs in the running mean.
constexpr double kRecent = 0.2;
// What is left of it when a request is turned away for it: else a first slow one would count for
// ever.
constexpr double kDoubt = 0.99;
// Fewer rows say little of what one takes.
constexpr std::int64_t kTellingRows = 8;
// Ids of crosses that are computed here; more take milliseconds, and are the full server's.
constexpr std::int64_t kMostValues = 1 << 17;

std::size_t as_size(std::int64_t n) { return static_cast<std::size_t>(n); }

std::vector<std::string> names_of(const transform::Plan& plan, const std::vector<int>& columns) {
  std::vector<std::string> names;
  for (const int column : columns) names.push_back(plan.columns[as_size(column)]);
  return names;
}

// Of the processor: a thread that had to wait has not computed longer.
double thread_seconds() {
  std::timespec at{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &at);
  return static_cast<double>(at.tv_sec) + static_cast<double>(at.tv_nsec) * 1e-9;
}

void append_number(double value, std::string& out) {
  char text[32];
  char* const end = std::to_chars(text, text + sizeof text, value).ptr;
  out.append(text, end);
  if (std::none_of(text, end, [](char c) { return c == '.' || c == 'e'; })) out += ".0";
}

}  // namespace

RankRoute::RankRoute(const RankModel& model, RouteOptions options)
    : model_(model),
      options_(std::move(options)),
      names_(names_of(*model.plan, options_.query_columns), options_.foreign_names,
             options_.log == nullptr ? std::string() : options_.log->user_column) {
  if (options_.log != nullptr) options_.log->place(names_);
  for (std::size_t c = 0; c < names_.n_read(); ++c) {
    append_json(names_.columns()[c], absent_.emplace_back());
    absent_.back() += ":1";
  }
  before_id_ = ",\"model_version\":";
  append_json(options_.version, before_id_);
  before_id_ += ",\"request_id\":";
  after_id_ = ",\"catalogue_version\":";
  append_json(options_.catalogue_version, after_id_);
  after_id_ += '}';
  figures_.bins = std::vector<std::atomic<std::int64_t>>(options_.score_edges.size() + 1);
}

bool RankRoute::rank(RankRoom& room) const {
  const double start = thread_seconds();
  try {
    if (!find_items(room)) return false;
    compute_logits(room);
    if (!compute_scores(room)) return false;
  } catch (const std::exception&) {
    return false;  // the full server meets the same, and says what is wrong
  }
  sort_scores(room);
  count(room);
  const auto rows = static_cast<std::int64_t>(room.positions.size());
  if (rows >= kTellingRows) {
    const double took = (thread_seconds() - start) / static_cast<double>(rows);
    const double before = figures_.seconds_a_row.load(std::memory_order_relaxed);
    figures_.seconds_a_row.store(before + kRecent * (took - before), std::memory_order_relaxed);
  }
  return true;
}

bool RankRoute::is_long(const RankRoom& room, double limit_s) const {
  const auto rows = static_cast<double>(room.reader.candidates().size());
  const double a_row = figures_.seconds_a_row.load(std::memory_order_relaxed);
  if (rows * a_row <= limit_s) return false;
  figures_.seconds_a_row.store(a_row * kDoubt, std::memory_order_relaxed);
  return true;
}

bool RankRoute::find_items(RankRoom& room) const {
  const std::vector<CandidateId>& asked = room.reader.candidates();
  const auto n = static_cast<std::int64_t>(asked.size());
  const bool are_texts = model_.texts != nullptr;
  if (n == 0) return false;
  room.texts.clear();
  room.integers.clear();
  for (const CandidateId& id : asked) {
    if (id.is_text != are_texts) return false;
    if (are_texts) {
      room.texts.push_back({id.text.data(), static_cast<std::int64_t>(id.text.size())});
    } else {
      room.integers.push_back(id.integer);
    }
  }
  room.positions.resize(asked.size());
  if (are_texts) {
    model_.texts->find(room.texts.data(), n, room.positions.data());
  } else {
    model_.integers->find(room.integers.data(), n, room.positions.data());
  }
  return *std::min_element(room.positions.begin(), room.positions.end()) >= 0;
}

void RankRoute::compute_logits(RankRoom& room) const {
  const RankScorer& scorer = *model_.scorer;
  transform::InputBatch batch;
  batch.n_rows = 1;
  batch.columns.assign(model_.plan->columns.size(), nullptr);
  for (std::size_t c = 0; c < options_.query_columns.size(); ++c) {
    batch.columns[as_size(options_.query_columns[c])] = &room.reader.columns()[c];
  }
  const transform::SideRows query = transform::encode_side(*model_.query, {batch}, {}, true);
  const auto view = [](const std::vector<std::int64_t>& ids,
                       const std::vector<std::int64_t>& offsets, std::int64_t rows,
                       std::int64_t slots) {
    return CsrBatch{ids.data(), offsets.data(), nullptr, static_cast<std::int64_t>(ids.size()),
                    rows,       slots};
  };
  ScoreBatch asked{view(query.ids, query.offsets, 1, scorer.n_slots(Side::query)),
                   query.dense.data(), scorer.n_dense()};
  if (!query.values.empty()) asked.csr.values = query.values.data();
  const std::int64_t n_classes = scorer.n_classes();
  room.query_sums.resize(as_size(n_classes + scorer.n_hidden(Side::query)));
  float* const query_wide = room.query_sums.data();
  float* const query_hidden = query_wide + n_classes;
  scorer.sums(Side::query, asked, 1, query_wide, query_hidden);
  const auto n = static_cast<std::int64_t>(room.positions.size());
  const transform::PairCells pairs =
      transform::cross_pairs(*model_.plan, *model_.crosses, *model_.is_item_part, query.parts,
                             *model_.item_parts, room.positions.data(), n, kMostValues);
  room.logits.resize(as_size(n * n_classes));
  const RankRequest request = {
      query_wide,
      query_hidden,
      model_.item_wide,
      model_.item_hidden,
      model_.item_hidden_bfloat16,
      model_.n_items,
      room.positions.data(),
      {view(pairs.ids, pairs.offsets, n, scorer.n_slots(Side::pair)), nullptr, scorer.n_dense()}};
  scorer.logits(request, model_.bias, options_.threads, room.logits.data());
}

// In the order of the request. False if one is no number.
bool RankRoute::compute_scores(RankRoom& room) const {
  const std::int64_t n_classes = model_.scorer->n_classes();
  const ScoreCurve& curve = options_.curve;
  room.all_scores.resize(room.positions.size());
  bool are_numbers = true;
  for (std::size_t row = 0; row < room.all_scores.size(); ++row) {
    const std::size_t at = row * as_size(n_classes) + as_size(curve.column);
    double score = static_cast<double>(room.logits[at]);
    if (curve.is_probability) score = sigmoid(score * curve.slope + curve.intercept);
    are_numbers = are_numbers && std::isfinite(score);
    room.all_scores[row] = score;
  }
  return are_numbers;
}

// Best first; equal scores in the order of the request.
void RankRoute::sort_scores(RankRoom& room) const {
  const std::size_t n = room.all_scores.size();
  room.order.resize(n);
  sort_descending(room.all_scores.data(), static_cast<std::int64_t>(n), room.sorting,
                  room.order.data());
  if (room.reader.k() >= 0) room.order.resize(std::min(n, as_size(room.reader.k())));
  room.scores.clear();
  for (const std::int64_t row : room.order) room.scores.push_back(room.all_scores[as_size(row)]);
}

void RankRoute::count(const RankRoom& room) const {
  constexpr auto kAnyOrder = std::memory_order_relaxed;
  const auto n = static_cast<std::int64_t>(room.scores.size());
  double sum = 0;
  for (const double score : room.scores) sum += score;
  figures_.requests.fetch_add(1, kAnyOrder);
  figures_.scores.fetch_add(n, kAnyOrder);
  figures_.score_sum.fetch_add(sum, kAnyOrder);
  // They fall, so each range is a run; a score at an edge lies below it.
  std::size_t bin = options_.score_edges.size();
  std::int64_t run = 0;
  for (const double score : room.scores) {
    const std::size_t before = bin;
    while (bin > 0 && score <= options_.score_edges[bin - 1]) --bin;
    if (bin != before && run != 0) {
      figures_.bins[before].fetch_add(std::exchange(run, 0), kAnyOrder);
    }
    ++run;
  }
  if (run != 0) figures_.bins[bin].fetch_add(run, kAnyOrder);
}

void RankRoute::write_body(const RankRoom& room, std::string_view request_id,
                           std::string& out) const {
  const std::vector<CandidateId>& asked = room.reader.candidates();
  out += "{\"items\":[";
  for (const std::int64_t row : room.order) {
    out += asked[as_size(row)].token;
    out += ',';
  }
  if (!room.order.empty()) out.pop_back();
  out += "],\"scores\":[";
  for (const double score : room.scores) {
    append_number(score, out);
    out += ',';
  }
  if (!room.order.empty()) out.pop_back();
  out += ']';
  out += before_id_;
  append_json(request_id, out);
  bool is_first = true;
  for (std::size_t c = 0; c < absent_.size(); ++c) {
    if (room.reader.has(c)) continue;
    out += is_first ? ",\"absent\":{" : ",";
    out += absent_[c];
    is_first = false;
  }
  if (!is_first) out += '}';
  out += after_id_;
}

}  // namespace widedeep
