#include "rank_front.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <utility>

#include "blake2b.hpp"

namespace widedeep {
namespace {

constexpr std::size_t kOk = 0, kBusy = 1, kLate = 2;  // in kStatuses
constexpr auto kAnyOrder = std::memory_order_relaxed;

double since(FrontClock::time_point start) {
  return std::chrono::duration<double>(FrontClock::now() - start).count();
}

std::int64_t now_us() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::microseconds>(now).count();
}

std::mt19937_64 seeded() {
  std::random_device device;
  std::seed_seq seed{device(), device(), device(), device(), device(), device(), device()};
  return std::mt19937_64(seed);
}

std::uint64_t random_bits() {
  thread_local std::mt19937_64 random = seeded();
  return random();
}

bool is_drawn(double share) {
  return static_cast<double>(random_bits() >> 11) < share * static_cast<double>(1LL << 53);
}

void make_id(std::string& id) {
  constexpr char kHex[] = "0123456789abcdef";
  id.resize(32);
  for (std::size_t half = 0; half < 2; ++half) {
    const std::uint64_t bits = random_bits();
    for (std::size_t i = 0; i < 16; ++i) id[16 * half + i] = kHex[bits >> (4 * i) & 15];
  }
}

// The date of answers, written once a second.
const std::string& date_now() {
  thread_local std::time_t at = 0;
  thread_local std::string text;
  const std::time_t now = std::time(nullptr);
  if (now != at) text = http_date(at = now);
  return text;
}

// Whether the path is one for scores of rows, not for a ranking.
bool infers(std::string_view path) { return path.ends_with("/infer"); }

std::string caller_of(const FrontRequest& request) {
  return request.caller == nullptr ? std::string() : request.caller->name;
}

std::string_view status_line(int status) {
  switch (status) {
    case 200:
      return "HTTP/1.1 200 OK\r\n";
    case 503:
      return "HTTP/1.1 503 Service Unavailable\r\n";
    default:
      return "HTTP/1.1 504 Gateway Timeout\r\n";
  }
}

FrontRecord record_of(const FrontRequest& request, std::string_view id, double seconds) {
  FrontRecord record;
  record.path = request.head.path;
  record.request_id = id;
  record.caller = caller_of(request);
  record.body = request.body;
  record.time_us = now_us();
  record.seconds = seconds;
  record.json_length = request.head.json_length;
  record.infers = infers(request.head.path);
  return record;
}

}  // namespace

std::string http_date(std::time_t at) {
  constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  std::tm parts{};
  gmtime_r(&at, &parts);
  char text[64];
  const int n = std::snprintf(text, sizeof text, "%s, %02d %s %04d %02d:%02d:%02d GMT",
                              kDays[parts.tm_wday], parts.tm_mday, kMonths[parts.tm_mon],
                              parts.tm_year + 1900, parts.tm_hour, parts.tm_min, parts.tm_sec);
  return std::string(text, static_cast<std::size_t>(n));
}

RankFront::RankFront(RankFrontOptions options) : options_(std::move(options)) {
  for (int i = 0; i < std::max(options_.threads, 1); ++i) {
    threads_.push_back(std::make_unique<Thread>());
  }
  for (std::size_t i = 0; i < 2 * std::size(kStatuses); ++i) {
    figures_.push_back(std::make_unique<AnswerFigures>(options_.second_edges.size() + 1));
  }
}

void RankFront::set_routes(const std::string& path, PathRoutes routes) {
  const std::lock_guard lock(mutex_);
  auto changed = std::make_shared<Table>(*table_);
  if (routes.stable == nullptr) {
    changed->erase(path);
  } else {
    (*changed)[path] = std::move(routes);
  }
  table_ = std::move(changed);
}

std::shared_ptr<const RankFront::Table> RankFront::table() const {
  const std::lock_guard lock(mutex_);
  return table_;
}

bool RankFront::knows(FrontRequest& request) {
  request.caller = nullptr;
  if (table()->count(std::string(request.head.path)) == 0) return false;
  if (request.head.is_binary && !infers(request.head.path)) return false;
  if (options_.keys == nullptr) return true;
  request.caller = options_.keys->find(offered_key(request.head));
  return request.caller != nullptr && !request.caller->is_admin;
}

bool RankFront::admits(const FrontRequest& request) {
  const bool has_rate = request.caller != nullptr && request.caller->bucket != nullptr;
  return !has_rate || request.caller->bucket->take() == 0;
}

bool RankFront::answer(int thread, const FrontRequest& request, std::string& out) {
  if (try_answer(*threads_[static_cast<std::size_t>(thread)], request, out)) return true;
  // The full server counts the request.
  if (request.caller != nullptr && request.caller->bucket != nullptr) {
    request.caller->bucket->put_back();
  }
  return false;
}

bool RankFront::try_answer(Thread& own, const FrontRequest& request, std::string& out) {
  const std::shared_ptr<const Table> all = table();
  const auto found = all->find(std::string(request.head.path));
  if (found == all->end()) return false;
  if (infers(request.head.path)) return try_infer(own, found->second, request, out);
  std::shared_ptr<const RankRoute> route = found->second.stable;
  RankRequestReader& reader = own.room.reader;
  if (!reader.read(request.body, route->names())) return false;
  const std::string_view id = request_id(own, reader.request_id(), request);
  if (choose(found->second, id) != route) {
    route = found->second.canary;
    if (!reader.read(request.body, route->names())) return false;
  }
  const auto rows = static_cast<std::int64_t>(reader.candidates().size());
  const bool is_large = rows > options_.most_candidates;
  const RowSource source = reader.are_inline() ? RowSource::brought : RowSource::by_id;
  if (is_large || route->is_long(source, rows, options_.inline_s)) return false;
  const double wait_s = patience_s(request);
  if (since(request.arrived) <= wait_s && !route->rank(own.room)) return false;
  const double seconds = since(request.arrived);
  if (seconds > wait_s) {
    write_refusal(kLate, options_.late, id, request, out);
    return true;
  }
  own.body.clear();
  route->write_body(own.room, id, own.body);
  write(200, own.body, {}, id, request, out);
  const bool sampled = is_drawn(options_.sampled);
  const RankRoom& room = own.room;
  const auto latest = request.arrived + std::chrono::duration_cast<FrontClock::duration>(
                                            std::chrono::duration<double>(wait_s));
  const bool is_unlogged = found->second.is_logged && !log(*route, room, id, latest);
  const bool waits = is_unlogged && options_.log != nullptr && options_.log->waits();
  if (sampled || options_.records_all || found->second.records_all || is_unlogged) {
    FrontRecord record = record_of(request, id, seconds);
    record.route = route;
    record.sampled = sampled;
    record.is_unlogged = is_unlogged;
    record.n_rows = rows;
    record.order = room.order;
    record.scores = room.scores;
    record.unknown = room.unknown;
    if (route->by_formula(room)) record.logits = room.logits;
    keep(std::move(record), waits ? latest : FrontClock::time_point{});
  }
  account(false, kOk, since(request.arrived));  // with the wait for the log
  return true;
}

// False if Python must log the answer.
bool RankFront::log(const RankRoute& route, const RankRoom& room, std::string_view id,
                    FrontClock::time_point latest) {
  const LogShape* const shape = route.options().log.get();
  if (options_.log == nullptr || shape == nullptr || !route.is_plain(room)) return false;
  const LoggedAnswer answer{id, now_us(), room.reader, room.positions, room.order, room.scores};
  return options_.log->offer(*shape, answer, latest);
}

bool RankFront::try_infer(Thread& own, const PathRoutes& routes, const FrontRequest& request,
                          std::string& out) {
  InferRequestReader& reader = own.infer.reader;
  const std::int64_t told = request.head.json_length;
  const std::size_t json_length = told < 0 ? request.body.size() : static_cast<std::size_t>(told);
  std::shared_ptr<const RankRoute> route = routes.stable;
  if (!reader.read(request.body, json_length, route->infer()->names())) return false;
  const std::string_view id = request_id(own, reader.id(), request);
  if (choose(routes, id) != route) {
    route = routes.canary;
    if (!reader.read(request.body, json_length, route->infer()->names())) return false;
  }
  const double wait_s = patience_s(request);
  const std::int64_t rows = reader.n_rows();
  const bool is_large = rows > options_.most_candidates;
  if (is_large || route->is_long(RowSource::tensor, rows, options_.inline_s)) return false;
  if (since(request.arrived) <= wait_s && !route->score_rows(own.infer)) return false;
  const double seconds = since(request.arrived);
  if (seconds > wait_s) {
    write_refusal(kLate, options_.late, id, request, out);
    return true;
  }
  own.body.clear();
  own.bytes.clear();
  route->infer()->write(own.infer, own.body, own.bytes);
  const std::size_t length = own.body.size();
  own.body += own.bytes;
  write(200, own.body, own.bytes.empty() ? std::string() : std::to_string(length), id, request,
        out);
  account(true, kOk, seconds);
  const bool sampled = is_drawn(options_.sampled);
  if (sampled || options_.records_all) {
    FrontRecord record = record_of(request, id, seconds);
    record.route = route;
    record.sampled = sampled;
    record.n_rows = rows;
    keep(std::move(record));
  }
  return true;
}

// How long the caller waits.
double RankFront::patience_s(const FrontRequest& request) const {
  const double asked_s = request.head.timeout_ms / 1e3;
  return asked_s > 0 ? std::min(asked_s, options_.longest_deadline_s) : options_.deadline_s;
}

void RankFront::refuse(const FrontRequest& request, std::string& out) {
  std::string id(request.head.request_id);
  if (id.empty()) make_id(id);
  write_refusal(kBusy, options_.busy, id, request, out);
}

void RankFront::write_refusal(std::size_t status, const std::string& body, std::string_view id,
                              const FrontRequest& request, std::string& out) {
  write(kStatuses[status], body, {}, id, request, out);
  const double seconds = since(request.arrived);
  account(infers(request.head.path), status, seconds);
  if (options_.records_errors) {
    FrontRecord record = record_of(request, id, seconds);
    record.body.clear();
    record.status = kStatuses[status];
    keep(std::move(record));
  }
}

std::shared_ptr<const RankRoute> RankFront::choose(const PathRoutes& routes,
                                                   std::string_view id) const {
  const bool has_trial = routes.canary != nullptr && routes.share > 0;
  if (!has_trial) return routes.stable;
  // Wide enough to hold every digest exactly.
  const auto place = static_cast<long double>(blake2b_64(id));
  return place < routes.share * 18446744073709551616.0L ? routes.canary : routes.stable;
}

// The body's, the header's, or one made up.
std::string_view RankFront::request_id(Thread& own, std::string_view given,
                                       const FrontRequest& request) {
  if (!given.empty()) return given;
  if (!request.head.request_id.empty()) return request.head.request_id;
  make_id(own.made_id);
  return own.made_id;
}

// `json_length` is empty unless bytes follow that many of JSON.
void RankFront::write(int status, std::string_view body, const std::string& json_length,
                      std::string_view id, const FrontRequest& request, std::string& out) const {
  out.reserve(out.size() + body.size() + 320);
  out += status_line(status);
  out += "date: ";
  out += date_now();
  out += json_length.empty() ? "\r\ncontent-type: application/json\r\ncontent-length: "
                             : "\r\ncontent-type: application/octet-stream\r\ncontent-length: ";
  out += std::to_string(body.size());
  out += "\r\nx-request-id: ";
  out += id;
  if (!json_length.empty()) {
    out += "\r\ninference-header-content-length: ";
    out += json_length;
  }
  if (status == 503) out += "\r\nretry-after: 1";
  if (request.last) out += "\r\nconnection: close";
  out += "\r\n\r\n";
  out += body;
}

void RankFront::account(bool inferred, std::size_t status, double seconds) {
  AnswerFigures& figures = *figures_[(inferred ? std::size(kStatuses) : 0) + status];
  const auto& edges = options_.second_edges;
  const auto bin = std::lower_bound(edges.begin(), edges.end(), seconds) - edges.begin();
  figures.n.fetch_add(1, kAnyOrder);
  figures.seconds.fetch_add(seconds, kAnyOrder);
  figures.bins[static_cast<std::size_t>(bin)].fetch_add(1, kAnyOrder);
}

void RankFront::keep(FrontRecord record, FrontClock::time_point latest) {
  std::unique_lock lock(mutex_);
  const auto has_room = [&] { return records_.size() < options_.queued_records; };
  if (!has_room()) records_taken_.wait_until(lock, latest, has_room);
  if (!has_room()) {
    dropped_.fetch_add(record.is_unlogged ? 1 : 0, kAnyOrder);
  } else {
    records_.push_back(std::move(record));
  }
}

std::vector<FrontRecord> RankFront::take_records() {
  std::vector<FrontRecord> records;
  {
    const std::lock_guard lock(mutex_);
    records.swap(records_);
  }
  records_taken_.notify_all();
  return records;
}

}  // namespace widedeep
