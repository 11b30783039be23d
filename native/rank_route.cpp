#include "rank_route.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <exception>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "bfloat16.hpp"
#include "json_number.hpp"
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
// Whole numbers up to here are the same as float64.
constexpr std::int64_t kLargestWhole = std::int64_t{1} << 53;
// Ids of crosses that are computed here; more take milliseconds, and are the full server's.
constexpr std::int64_t kMostValues = 1 << 17;

std::size_t as_size(std::int64_t n) { return static_cast<std::size_t>(n); }

std::vector<std::string> names_of(const transform::Plan& plan, const std::vector<int>& columns) {
  std::vector<std::string> names;
  for (const int column : columns) names.push_back(plan.columns[as_size(column)]);
  return names;
}

RequestNames request_names(const transform::Plan& plan, const RouteOptions& options) {
  std::vector<std::string> query = names_of(plan, options.query_columns);
  std::vector<std::string> items = names_of(plan, options.item_columns);
  const std::size_t n_columns = items.size();
  const auto place_of = [&](const std::string& name) {
    const auto at = std::find(items.begin(), items.end(), name);
    if (at == items.end()) items.push_back(name);
    return static_cast<int>(std::find(items.begin(), items.end(), name) - items.begin());
  };
  for (const std::string& name : options.numbers) place_of(name);
  const int id_column = options.id_column.empty() ? -1 : place_of(options.id_column);
  const std::string user = options.log == nullptr ? std::string() : options.log->user_column;
  return {{query, options.foreign_names, user}, {items, query}, n_columns, id_column};
}

// An integer as Python writes it, up to 19 digits.
bool read_integer(std::string_view text, std::int64_t& value) {
  const std::size_t sign = !text.empty() && text.front() == '-' ? 1 : 0;
  const std::string_view digits = text.substr(sign);
  const bool is_plain =
      !digits.empty() && digits.size() <= 19 && (digits.front() != '0' || text == "0");
  if (!is_plain) return false;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  return parsed.ec == std::errc() && parsed.ptr == text.data() + text.size();
}

// The number of an inline item; false for what a column of numbers would be converted for.
bool read_number(const Variant& value, double& number) {
  switch (value.tag) {
    case Variant::Tag::null:
      number = std::numeric_limits<double>::quiet_NaN();
      return true;
    case Variant::Tag::integer:
      number = static_cast<double>(value.integer);
      return value.integer >= -kLargestWhole && value.integer <= kLargestWhole;
    case Variant::Tag::real:
      number = value.real;
      return true;
    default:
      return false;
  }
}

// Of the processor: a thread that had to wait has not computed longer.
double thread_seconds() {
  std::timespec at{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &at);
  return static_cast<double>(at.tv_sec) + static_cast<double>(at.tv_nsec) * 1e-9;
}

}  // namespace

void RankModel::logits(const QuerySums& asked, const ItemSums& from, const std::int64_t* rows,
                       std::int64_t n, std::int64_t most_values, int threads, float* out) const {
  const transform::PairCells pairs = transform::cross_pairs(
      *plan, *crosses, *is_item_part, *asked.parts, *from.parts, rows, n, most_values);
  const std::int64_t n_slots = scorer->n_slots(Side::pair);
  const CsrBatch csr = {pairs.ids.data(),
                        pairs.offsets.data(),
                        nullptr,
                        static_cast<std::int64_t>(pairs.ids.size()),
                        n,
                        n_slots};
  scorer->logits({asked.wide,
                  asked.hidden,
                  from.wide,
                  from.hidden,
                  from.hidden_bfloat16,
                  from.n_items,
                  rows,
                  {csr, nullptr, scorer->n_dense()}},
                 bias, threads, out);
}

RankRoute::RankRoute(const RankModel& model, RouteOptions options)
    : model_(model), options_(std::move(options)), names_(request_names(*model.plan, options_)) {
  if (options_.default_curve >= static_cast<std::int64_t>(options_.curves.size())) {
    throw std::invalid_argument("expected the place of a head");
  }
  if (!options_.formula.steps.empty()) {
    options_.formula.check(options_.curves.size(), as_size(model_.n_numbers));
    rank_by_ = ",\"rank_by\":";
    append_json(options_.formula_text, rank_by_);
  }
  if (options_.log != nullptr) options_.log->place(names_.query);
  for (std::size_t c = 0; c < names_.query.n_read(); ++c) {
    append_json(names_.query.columns()[c], absent_.emplace_back());
    absent_.back() += ":1";
  }
  for (std::size_t c = 0; c < names_.n_item_columns; ++c) {
    append_json(names_.items.columns()[c], absent_items_.emplace_back());
    absent_items_.back() += ':';
  }
  if (names_.id_column >= 0 && as_size(names_.id_column) < names_.n_item_columns) {
    id_slot_ = names_.id_column;
  }
  before_id_ = ",\"model_version\":";
  append_json(options_.version, before_id_);
  before_id_ += ",\"request_id\":";
  if (!options_.catalogue_version.empty()) {
    after_id_ = ",\"catalogue_version\":";
    append_json(options_.catalogue_version, after_id_);
  }
  after_id_ += '}';
  figures_.bins = std::vector<std::atomic<std::int64_t>>(options_.score_edges.size() + 1);
}

bool RankRoute::rank(RankRoom& room) const {
  const double start = thread_seconds();
  try {
    if (!find_items(room)) return false;
    compute_query(room);
    compute_logits(room);
    if (!(by_formula(room) ? compute_values(room) : compute_scores(room))) return false;
  } catch (const std::exception&) {
    return false;  // the full server meets the same, and says what is wrong
  }
  sort_scores(room);
  find_unknown(room);
  count(room);
  learn(room.reader.are_inline() ? RowSource::brought : RowSource::by_id,
        static_cast<std::int64_t>(room.all_scores.size()), thread_seconds() - start);
  return true;
}

bool RankRoute::score_rows(InferRoom& room) const {
  const double start = thread_seconds();
  if (!infer_->score(room)) return false;
  const double seconds = thread_seconds() - start;
  learn(RowSource::tensor, room.reader.n_rows(), seconds);
  count_scored(room.scores[0], seconds);
  return true;
}

void RankRoute::learn(RowSource source, std::int64_t n_rows, double seconds) const {
  if (n_rows < kTellingRows) return;
  std::atomic<double>& mean = figures_.seconds_a_row[static_cast<std::size_t>(source)];
  const double before = mean.load(std::memory_order_relaxed);
  const double took = seconds / static_cast<double>(n_rows);
  mean.store(before + kRecent * (took - before), std::memory_order_relaxed);
}

bool RankRoute::is_long(RowSource source, std::int64_t n_rows, double limit_s) const {
  std::atomic<double>& mean = figures_.seconds_a_row[static_cast<std::size_t>(source)];
  const double a_row = mean.load(std::memory_order_relaxed);
  if (static_cast<double>(n_rows) * a_row <= limit_s) return false;
  mean.store(a_row * kDoubt, std::memory_order_relaxed);
  return true;
}

// Null if the head that the request asks for is not ranked by here.
const ScoreCurve* RankRoute::curve_of(const RankRoom& room) const {
  const auto& curves = options_.curves;
  if (!room.reader.names_head()) {
    return options_.default_curve < 0 ? nullptr : &curves[as_size(options_.default_curve)];
  }
  const auto at = std::find_if(curves.begin(), curves.end(), [&](const ScoreCurve& curve) {
    return curve.head == room.reader.head();
  });
  return at == curves.end() ? nullptr : &*at;
}

// The catalogue's rows of candidates by id. False for a request that is answered elsewhere.
bool RankRoute::find_items(RankRoom& room) const {
  const auto n = room.reader.candidates().size();
  if (n == 0 || (!by_formula(room) && curve_of(room) == nullptr)) return false;
  if (room.reader.are_inline()) return true;
  if (model_.texts == nullptr && model_.integers == nullptr) return false;
  room.positions.resize(n);
  model_.texts == nullptr ? find_by_integer(room) : find_by_text(room);
  return options_.scores_unknown ||
         *std::min_element(room.positions.begin(), room.positions.end()) >= 0;
}

void RankRoute::find_by_text(RankRoom& room) const {
  room.texts.clear();
  room.converted.clear();
  for (const CandidateId& id : room.reader.candidates()) {
    std::string_view text = id.text;
    if (!id.is_text) text = room.converted.emplace_back(std::to_string(id.integer));
    room.texts.push_back({text.data(), static_cast<std::int64_t>(text.size())});
  }
  model_.texts->find(room.texts.data(), static_cast<std::int64_t>(room.texts.size()),
                     room.positions.data());
}

void RankRoute::find_by_integer(RankRoom& room) const {
  room.integers.clear();
  room.group.clear();
  for (const CandidateId& id : room.reader.candidates()) {
    std::int64_t integer = id.integer;
    if (id.is_text && !read_integer(id.text, integer)) {
      room.group.push_back(static_cast<std::int64_t>(room.integers.size()));
    }
    room.integers.push_back(integer);
  }
  model_.integers->find(room.integers.data(), static_cast<std::int64_t>(room.integers.size()),
                        room.positions.data());
  for (const std::int64_t at : room.group) room.positions[as_size(at)] = -1;
}

void RankRoute::compute_query(RankRoom& room) const {
  const RankScorer& scorer = *model_.scorer;
  model_.plan->check_values(room.reader.n_query_values());
  transform::InputBatch batch;
  batch.n_rows = 1;
  batch.columns.assign(model_.plan->columns.size(), nullptr);
  for (std::size_t c = 0; c < options_.query_columns.size(); ++c) {
    batch.columns[as_size(options_.query_columns[c])] = &room.reader.columns()[c];
  }
  room.query = transform::encode_side(*model_.query, {batch}, {}, true);
  const ScoreBatch asked{room.query.csr(scorer.n_slots(Side::query)), room.query.dense.data(),
                         scorer.n_dense()};
  const std::int64_t n_classes = scorer.n_classes();
  room.query_sums.resize(as_size(n_classes + scorer.n_hidden(Side::query)));
  float* const wide = room.query_sums.data();
  scorer.sums(Side::query, asked, 1, wide, wide + n_classes);
}

void RankRoute::compute_logits(RankRoom& room) const {
  room.logits.resize(room.reader.candidates().size() * as_size(n_classes()));
  if (room.reader.are_inline()) {
    room.group_rows.resize(room.reader.candidates().size());
    std::iota(room.group_rows.begin(), room.group_rows.end(), 0);
    score_group(room, bring_inline(room), room.group_rows, room.logits.data());
  } else if (*std::min_element(room.positions.begin(), room.positions.end()) >= 0) {
    score_group(room, model_.items, room.positions, room.logits.data());
  } else {
    compute_groups(room);
  }
}

// The items that the catalogue holds, and those of which the id alone is known.
void RankRoute::compute_groups(RankRoom& room) const {
  const auto width = as_size(n_classes());
  for (const bool are_known : {true, false}) {
    room.group.clear();
    room.group_rows.clear();
    for (std::size_t i = 0; i < room.positions.size(); ++i) {
      if ((room.positions[i] >= 0) != are_known) continue;
      room.group_rows.push_back(are_known ? room.positions[i]
                                          : static_cast<std::int64_t>(room.group.size()));
      room.group.push_back(static_cast<std::int64_t>(i));
    }
    if (room.group.empty()) continue;
    room.group_logits.resize(room.group.size() * width);
    score_group(room, are_known ? model_.items : bring_unknown(room), room.group_rows,
                room.group_logits.data());
    for (std::size_t i = 0; i < room.group.size(); ++i) {
      std::copy_n(room.group_logits.data() + i * width, width,
                  room.logits.data() + as_size(room.group[i]) * width);
    }
  }
}

// The sums of `n` items, a column each of the model's columns of items.
ItemSums RankRoute::bring(const std::vector<const Column*>& columns, std::int64_t n,
                          RankRoom& room) const {
  const RankScorer& scorer = *model_.scorer;
  BroughtItems& brought = room.brought;
  transform::InputBatch batch;
  batch.n_rows = n;
  batch.columns.assign(model_.plan->columns.size(), nullptr);
  for (std::size_t c = 0; c < columns.size(); ++c) {
    batch.columns[as_size(options_.item_columns[c])] = columns[c];
  }
  brought.rows = transform::encode_side(*model_.item, {batch}, {}, true);
  const transform::SideRows& rows = brought.rows;
  const std::int64_t n_wide = n * scorer.n_classes(), n_hidden = n * scorer.n_hidden(Side::item);
  brought.sums.resize(as_size(n_wide + n_hidden));
  float* const wide = brought.sums.data();
  float* const hidden = wide + n_wide;
  scorer.sums(Side::item,
              {rows.csr(scorer.n_slots(Side::item)), rows.dense.data(), scorer.n_dense()},
              options_.threads, wide, hidden);
  ItemSums sums{&rows.parts, wide, hidden, nullptr, n};
  if (options_.is_bfloat16) {
    brought.hidden_bfloat16.resize(as_size(n_hidden));
    std::transform(hidden, hidden + n_hidden, brought.hidden_bfloat16.begin(), to_bfloat16);
    sums.hidden = nullptr;
    sums.hidden_bfloat16 = brought.hidden_bfloat16.data();
  }
  return sums;
}

ItemSums RankRoute::bring_inline(RankRoom& room) const {
  model_.plan->check_values(room.reader.n_item_values());
  std::vector<const Column*> columns;
  for (std::size_t c = 0; c < names_.n_item_columns; ++c) {
    columns.push_back(&room.reader.item_columns()[c]);
  }
  return bring(columns, static_cast<std::int64_t>(room.reader.candidates().size()), room);
}

// Of the candidates in `room.group`.
ItemSums RankRoute::bring_unknown(RankRoom& room) const {
  const auto n = static_cast<std::int64_t>(room.group.size());
  model_.plan->check_values(n * static_cast<std::int64_t>(names_.n_item_columns));
  BroughtItems& brought = room.brought;
  if (brought.nulls.size() < room.group.size()) brought.nulls.resize(room.group.size());
  brought.ids.clear();
  for (const std::int64_t at : room.group) {
    const CandidateId& id = room.reader.candidates()[as_size(at)];
    Variant value{};
    value.tag = id.is_text ? Variant::Tag::text : Variant::Tag::integer;
    value.integer = id.integer;
    if (id.is_text) {
      value.text = id.text.data();
      value.length = static_cast<std::int64_t>(id.text.size());
    }
    brought.ids.push_back(value);
  }
  brought.columns.assign(names_.n_item_columns, {});
  std::vector<const Column*> columns;
  for (std::size_t c = 0; c < names_.n_item_columns; ++c) {
    Column& column = brought.columns[c];
    const bool are_ids = static_cast<int>(c) == id_slot_;
    column.length = column.values.length = n;
    column.values.type = Physical::variant;
    column.values.data = are_ids ? brought.ids.data() : brought.nulls.data();
    columns.push_back(&column);
  }
  return bring(columns, n, room);
}

// The logits of some of these items.
void RankRoute::score_group(RankRoom& room, const ItemSums& items,
                            const std::vector<std::int64_t>& rows, float* logits) const {
  const float* const wide = room.query_sums.data();
  const QuerySums query{&room.query.parts, wide, wide + n_classes()};
  model_.logits(query, items, rows.data(), static_cast<std::int64_t>(rows.size()), kMostValues,
                options_.threads, logits);
}

// By a head, in the order of the request. False if one is no number.
bool RankRoute::compute_scores(RankRoom& room) const {
  const ScoreCurve& curve = *curve_of(room);
  const std::size_t n = room.reader.candidates().size();
  room.all_scores.resize(n);
  bool are_numbers = true;
  for (std::size_t row = 0; row < n; ++row) {
    room.all_scores[row] = curve.score(room.logits.data() + row * as_size(n_classes()));
    are_numbers = are_numbers && std::isfinite(room.all_scores[row]);
  }
  return are_numbers;
}

// By the formula. False if an inline item's number is none.
bool RankRoute::compute_values(RankRoom& room) const {
  const std::size_t n = room.reader.candidates().size();
  if (room.reader.are_inline() && !take_numbers(room)) return false;
  room.all_scores.resize(n);
  for (std::size_t row = 0; row < n; ++row) {
    const double* numbers = room.numbers.data() + row * as_size(model_.n_numbers);
    if (!room.reader.are_inline()) {
      const std::int64_t at = room.positions[row];
      numbers = model_.numbers + (at < 0 ? model_.items.n_items : at) * model_.n_numbers;
    }
    room.all_scores[row] = options_.formula.value(
        options_.curves, room.logits.data() + row * as_size(n_classes()), numbers, room.stack);
  }
  return true;
}

bool RankRoute::take_numbers(RankRoom& room) const {
  const std::size_t n = room.reader.candidates().size();
  const std::size_t width = options_.numbers.size();
  if (width != as_size(model_.n_numbers)) return false;
  room.numbers.resize(n * width);
  for (std::size_t j = 0; j < width; ++j) {
    const auto place = as_size(names_.items.find(options_.numbers[j], 0));
    const Column& column = room.reader.item_columns()[place];
    if (!room.reader.has_item(place) || column.list != ListLayer::none) return false;
    const auto* const values = static_cast<const Variant*>(column.values.data);
    for (std::size_t row = 0; row < n; ++row) {
      if (!read_number(values[row], room.numbers[row * width + j])) return false;
    }
  }
  return true;
}

// Best first; equal scores in the order of the request, and what has no value behind them.
void RankRoute::sort_scores(RankRoom& room) const {
  const std::size_t n = room.all_scores.size();
  const auto is_undefined = [](double score) { return std::isnan(score); };
  const auto n_undefined = static_cast<std::size_t>(
      std::count_if(room.all_scores.begin(), room.all_scores.end(), is_undefined));
  room.order.resize(n - n_undefined);
  if (n_undefined == 0) {
    sort_descending(room.all_scores.data(), static_cast<std::int64_t>(n), room.sorting,
                    room.order.data());
  } else {
    room.defined.clear();
    room.group.clear();
    for (std::size_t row = 0; row < n; ++row) {
      if (is_undefined(room.all_scores[row])) continue;
      room.group.push_back(static_cast<std::int64_t>(row));
      room.defined.push_back(room.all_scores[row]);
    }
    sort_descending(room.defined.data(), static_cast<std::int64_t>(room.defined.size()),
                    room.sorting, room.order.data());
    for (std::int64_t& row : room.order) row = room.group[as_size(row)];
    for (std::size_t row = 0; row < n; ++row) {
      if (is_undefined(room.all_scores[row])) room.order.push_back(static_cast<std::int64_t>(row));
    }
  }
  if (room.reader.k() >= 0) room.order.resize(std::min(n, as_size(room.reader.k())));
  room.scores.clear();
  for (const std::int64_t row : room.order) room.scores.push_back(room.all_scores[as_size(row)]);
  room.n_undefined = room.scores.size() - std::min(room.scores.size(), n - n_undefined);
}

void RankRoute::find_unknown(RankRoom& room) const {
  room.unknown.clear();
  room.n_unknown = 0;
  if (room.reader.are_inline()) return;
  room.n_unknown = static_cast<std::size_t>(
      std::count_if(room.positions.begin(), room.positions.end(), [](auto at) { return at < 0; }));
  for (std::size_t place = 0; place < room.order.size(); ++place) {
    if (room.positions[as_size(room.order[place])] >= 0) continue;
    room.unknown.push_back(static_cast<std::int64_t>(place));
  }
}

void RankRoute::count(const RankRoom& room) const {
  constexpr auto kAnyOrder = std::memory_order_relaxed;
  const auto end = room.scores.end() - static_cast<std::ptrdiff_t>(room.n_undefined);
  double sum = 0;
  for (auto score = room.scores.begin(); score != end; ++score) sum += *score;
  figures_.requests.fetch_add(1, kAnyOrder);
  figures_.scores.fetch_add(end - room.scores.begin(), kAnyOrder);
  if (room.n_undefined != 0) {
    figures_.undefined.fetch_add(static_cast<std::int64_t>(room.n_undefined), kAnyOrder);
  }
  if (!room.unknown.empty()) {
    figures_.unknown.fetch_add(static_cast<std::int64_t>(room.unknown.size()), kAnyOrder);
  }
  figures_.score_sum.fetch_add(sum, kAnyOrder);
  // They fall, so each range is a run; a score at an edge lies below it.
  std::size_t bin = options_.score_edges.size();
  std::int64_t run = 0;
  for (auto score = room.scores.begin(); score != end; ++score) {
    const std::size_t before = bin;
    while (bin > 0 && *score <= options_.score_edges[bin - 1]) --bin;
    if (bin != before && run != 0) {
      figures_.bins[before].fetch_add(std::exchange(run, 0), kAnyOrder);
    }
    ++run;
  }
  if (run != 0) figures_.bins[bin].fetch_add(run, kAnyOrder);
}

void RankRoute::count_scored(const std::vector<double>& scores, double seconds) const {
  const auto& edges = options_.score_edges;
  double sum = 0;
  for (const double score : scores) {
    sum += score;
    const auto bin = std::lower_bound(edges.begin(), edges.end(), score) - edges.begin();
    figures_.bins[as_size(bin)].fetch_add(1, std::memory_order_relaxed);
  }
  const auto n = static_cast<std::int64_t>(scores.size());
  figures_.scores.fetch_add(n, std::memory_order_relaxed);
  figures_.score_sum.fetch_add(sum, std::memory_order_relaxed);
  figures_.inferred_rows.fetch_add(n, std::memory_order_relaxed);
  figures_.inferred_seconds.fetch_add(seconds, std::memory_order_relaxed);
  figures_.inferred.fetch_add(1, std::memory_order_relaxed);
  figures_.requests.fetch_add(1, std::memory_order_relaxed);
}

void RankRoute::write_body(const RankRoom& room, std::string_view request_id,
                           std::string& out) const {
  const std::vector<CandidateId>& asked = room.reader.candidates();
  const auto list = [&](const char* name, const auto& entries, const auto& append) {
    out += name;
    for (const auto entry : entries) {
      append(entry);
      out += ',';
    }
    if (!entries.empty()) out.pop_back();
    out += ']';
  };
  const auto append_integer = [&](std::int64_t value) {
    char text[24];
    out.append(text, std::to_chars(text, text + sizeof text, value).ptr);
  };
  list("{\"items\":[", room.order, [&](std::int64_t row) {
    const std::string_view token = asked[as_size(row)].token;
    token.empty() ? append_integer(row) : void(out += token);
  });
  list(",\"scores\":[", room.scores,
       [&](double score) { std::isnan(score) ? void(out += "null") : append_number(score, out); });
  out += before_id_;
  append_json(request_id, out);
  if (!room.unknown.empty()) list(",\"unknown\":[", room.unknown, append_integer);
  if (room.n_undefined != 0) {
    std::vector<std::int64_t> places(room.n_undefined);
    std::iota(places.begin(), places.end(),
              static_cast<std::int64_t>(room.scores.size() - room.n_undefined));
    list(",\"undefined\":[", places, append_integer);
  }
  if (by_formula(room)) out += rank_by_;
  write_absent(room, out);
  out += after_id_;
}

void RankRoute::write_absent(const RankRoom& room, std::string& out) const {
  bool is_first = true;
  const auto append = [&](const std::string& text) {
    out += is_first ? ",\"absent\":{" : ",";
    out += text;
    is_first = false;
  };
  for (std::size_t c = 0; c < absent_.size(); ++c) {
    if (!room.reader.has(c)) append(absent_[c]);
  }
  const std::size_t n_items = room.reader.are_inline() ? absent_items_.size() : 0;
  for (std::size_t c = 0; c < n_items; ++c) {
    if (room.reader.has_item(c)) continue;
    append(absent_items_[c]);
    out += std::to_string(room.reader.candidates().size());
  }
  if (!is_first) out += '}';
}

}  // namespace widedeep
