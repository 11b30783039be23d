#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "api_keys.hpp"
#include "bind_impressions.hpp"
#include "bind_plan.hpp"
#include "bind_ranker.hpp"
#include "bind_score.hpp"
#include "front_loop.hpp"
#include "rank_front.hpp"
#include "score_functions.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

template <class T>
void set_option(const nb::dict& options, const char* name, T& value) {
  value = nb::cast<T>(options[name]);
}

// A route, and the Python objects that it reads from.
class BoundRoute {
 public:
  using Numbers = Array<double, 2>;

  BoundRoute(nb::object sides, nb::object scorer, nb::object items, Array<float, 1> bias,
             nb::object ids, Numbers numbers, nb::dict options)
      : owners_{sides, scorer, items, ids}, bias_(std::move(bias)), numbers_(std::move(numbers)) {
    RankModel model = lent_model(sides, scorer, items);
    if (!ids.is_none()) lend_ids(ids, model);
    expect(items.is_none() == ids.is_none(), "expected the ids of items");
    expect(static_cast<std::int64_t>(bias_.shape(0)) == model.scorer->n_classes(),
           "expected a bias a class");
    model.bias = bias_.data();
    expect(static_cast<std::int64_t>(numbers_.shape(0)) == model.items.n_items + 1,
           "expected the numbers of each item, and of one that is not in the catalogue");
    model.numbers = numbers_.data();
    model.n_numbers = static_cast<std::int64_t>(numbers_.shape(1));
    RouteOptions plain;
    const auto set = [&](const char* name, auto& value) { set_option(options, name, value); };
    set("version", plain.version);
    set("catalogue_version", plain.catalogue_version);
    plain.query_columns = model.query->columns();
    plain.item_columns = model.item->columns();
    set("id_column", plain.id_column);
    set("numbers", plain.numbers);
    set("foreign_names", plain.foreign_names);
    set("score_edges", plain.score_edges);
    for (nb::handle curve : nb::cast<nb::list>(options["curves"])) {
      plain.curves.push_back(to_curve(nb::cast<nb::dict>(curve), model.scorer->n_classes()));
    }
    set("default_curve", plain.default_curve);
    for (nb::handle step : nb::cast<nb::list>(options["formula"])) {
      plain.formula.steps.push_back(to_step(nb::cast<nb::tuple>(step)));
    }
    set("formula_text", plain.formula_text);
    set("scores_unknown", plain.scores_unknown);
    set("is_bfloat16", plain.is_bfloat16);
    set("threads", plain.threads);
    if (!options["log"].is_none()) {
      owners_.push_back(options["log"]);
      plain.log = nb::cast<const BoundShape&>(options["log"]).shape();
    }
    InferOptions infer;
    infer.curves = plain.curves;
    infer.version = plain.version;
    infer.threads = plain.threads;
    auto route = std::make_shared<RankRoute>(model, std::move(plain));
    const nb::object infers = options["infer"];
    if (!infers.is_none()) set_infer(nb::cast<nb::dict>(infers), std::move(infer), *route);
    route_ = std::move(route);
  }

  const std::shared_ptr<const RankRoute>& route() const { return route_; }
  bool in_use() const { return route_.use_count() > 1; }

  // Requests, scores, the scores' sum, scores in each range, candidates without a score, unknown
  // ones; all that were counted so far.
  nb::tuple figures() const {
    const RouteFigures& figures = route_->figures();
    std::vector<std::int64_t> bins;
    for (const auto& bin : figures.bins) bins.push_back(bin.load());
    return nb::make_tuple(figures.requests.load(), figures.scores.load(), figures.score_sum.load(),
                          bins, figures.undefined.load(), figures.unknown.load());
  }

  // Requests for scores of rows, their rows, and seconds.
  nb::tuple inferred() const {
    const RouteFigures& figures = route_->figures();
    return nb::make_tuple(figures.inferred.load(), figures.inferred_rows.load(),
                          figures.inferred_seconds.load());
  }

 private:
  void set_infer(const nb::dict& options, InferOptions infer, RankRoute& route) {
    owners_.insert(owners_.end(), {options["program"], options["scorer"]});
    infer.program = &lent_program(options["program"]);
    infer.scorer = &lent_scorer(options["scorer"]);
    infer.bias = bias_.data();
    infer.columns = infer.program->columns();
    infer.is_nested = nb::cast<std::vector<bool>>(options["is_nested"]);
    infer.outputs = nb::cast<std::vector<std::string>>(options["outputs"]);
    infer.model = nb::cast<std::string>(options["model"]);
    expect(infer.is_nested.size() == infer.columns.size() &&
               infer.outputs.size() == infer.curves.size() &&
               infer.scorer->n_classes() == route.n_classes(),
           "expected an output a head, and the columns of this model");
    route.set_infer(std::make_unique<InferRoute>(std::move(infer)));
  }

  static ScoreCurve to_curve(const nb::dict& options, std::int64_t n_classes) {
    ScoreCurve curve;
    curve.head = nb::cast<std::string>(options["head"]);
    curve.column = nb::cast<std::int64_t>(options["column"]);
    const auto link = nb::cast<std::string>(options["link"]);
    curve.is_lognormal = link == "ziln";
    if (!curve.is_lognormal) curve.link = score_function(link);
    curve.slope = nb::cast<double>(options["slope"]);
    curve.intercept = nb::cast<double>(options["intercept"]);
    curve.through = nb::cast<std::int64_t>(options["through"]);
    curve.points = nb::cast<std::vector<double>>(options["points"]);
    curve.values = nb::cast<std::vector<double>>(options["values"]);
    const std::int64_t last = curve.column + (curve.is_lognormal ? 2 : 0);
    expect(curve.column >= 0 && last < n_classes && curve.through < n_classes,
           "expected columns of the logits");
    expect(curve.points.size() == curve.values.size(), "expected a value a point");
    return curve;
  }

  // (kind, index, value)
  static ScoreFormula::Step to_step(const nb::tuple& step) {
    constexpr std::array<const char*, 16> kKinds = {
        "head",    "column", "constant", "add",      "subtract", "multiply", "divide", "minimum",
        "maximum", "power",  "negate",   "absolute", "root",     "exp",      "log",    "log1p"};
    const int kind = named(kKinds, nb::cast<std::string>(step[0]));
    return {static_cast<ScoreFormula::Kind>(kind), nb::cast<std::int64_t>(step[1]),
            nb::cast<double>(step[2])};
  }

  std::vector<nb::object> owners_;
  Array<float, 1> bias_;
  Numbers numbers_;
  std::shared_ptr<const RankRoute> route_;
};

std::shared_ptr<const ApiKey> new_key(std::string name, const nb::bytes& digest, bool is_admin,
                                      std::shared_ptr<TokenBucket> bucket) {
  auto key = std::make_shared<ApiKey>();
  expect(digest.size() == key->digest.size(), "expected a digest of 32 bytes");
  key->name = std::move(name);
  std::copy_n(reinterpret_cast<const std::uint8_t*>(digest.c_str()), digest.size(),
              key->digest.begin());
  key->is_admin = is_admin;
  key->bucket = std::move(bucket);
  return key;
}

void bind_keys(nb::module_& m) {
  nb::class_<TokenBucket>(m, "TokenBucket")
      .def(nb::init<double>(), "rate"_a)
      .def_prop_ro("rate", &TokenBucket::rate)
      .def("take", &TokenBucket::take);
  nb::class_<ApiKey>(m, "ApiKey")
      .def(nb::new_(&new_key), "name"_a, nb::kw_only(), "digest"_a, "admin"_a = false,
           "bucket"_a.none() = nb::none())
      .def_ro("name", &ApiKey::name)
      .def_prop_ro("digest",
                   [](const ApiKey& self) {
                     return nb::bytes(reinterpret_cast<const char*>(self.digest.data()),
                                      self.digest.size());
                   })
      .def_ro("admin", &ApiKey::is_admin)
      .def_ro("bucket", &ApiKey::bucket);
  nb::class_<ApiKeys>(m, "ApiKeys")
      .def(nb::init<>())
      .def(
          "replace", [](ApiKeys& self, ApiKeys::List keys) { self.replace(std::move(keys)); },
          "keys"_a)
      .def("all", &ApiKeys::all)
      .def(
          "find",
          [](const ApiKeys& self, const nb::bytes& offered) {
            return self.find({offered.c_str(), offered.size()});
          },
          "offered"_a);
}

void bind_routes(nb::module_& m) {
  nb::class_<QueueSlots>(m, "QueueSlots")
      .def(nb::init<std::int64_t, double>(), "limit"_a, "max_wait_s"_a = 1.0)
      .def("enter", &QueueSlots::enter)
      .def("leave", &QueueSlots::leave)
      .def_prop_ro("allowed", &QueueSlots::allowed)
      .def_prop_ro("inside", &QueueSlots::inside)
      .def_prop_ro("refused", &QueueSlots::refused);
  nb::class_<BoundRoute>(m, "RankRoute")
      .def(nb::init<nb::object, nb::object, nb::object, Array<float, 1>, nb::object,
                    BoundRoute::Numbers, nb::dict>(),
           "sides"_a, "scorer"_a, "items"_a.none(), "bias_C"_a, "ids"_a.none(), "numbers"_a,
           "options"_a)
      .def_prop_ro("in_use", &BoundRoute::in_use)
      .def_prop_ro("infers",
                   [](const BoundRoute& self) { return self.route()->infer() != nullptr; })
      .def("figures", &BoundRoute::figures)
      .def("inferred", &BoundRoute::inferred);
}

#ifdef __linux__

class BoundServer {
 public:
  BoundServer(int listening, int handoff_event, nb::object slots, nb::dict options)
      : slots_(slots), front_(front_options(options)) {
    FrontOptions plain;
    const auto set = [&](const char* name, auto& value) { set_option(options, name, value); };
    plain.threads = front_.options().threads;
    set("max_connections", plain.max_connections);
    set("traced", plain.hands_over_traced);
    set("longest_body", plain.longest_body);
    set("head_s", plain.head_s);
    set("body_s", plain.body_s);
    set("write_s", plain.write_s);
    set("idle_s", plain.idle_s);
    plain.late_head = text(options, "late_head");
    plain.late_body = text(options, "late_body");
    plain.full = text(options, "full");
    loop_ = std::make_unique<FrontLoop>(listening, handoff_event, std::move(plain), front_,
                                        nb::cast<QueueSlots&>(slots));
  }
  ~BoundServer() { stop(); }

  void set_routes(const std::string& path, nb::object stable, nb::object canary, double share,
                  bool records_all, bool is_logged) {
    PathRoutes routes;
    routes.stable = held(stable);
    routes.canary = held(canary);
    routes.share = share;
    routes.records_all = records_all;
    routes.is_logged = is_logged;
    front_.set_routes(path, std::move(routes));
    let_go();
  }

  nb::list pop_handoffs() {
    nb::list found;
    for (const Handoff& handoff : loop_->pop_handoffs()) {
      found.append(
          nb::make_tuple(handoff.socket, nb::bytes(handoff.bytes.data(), handoff.bytes.size())));
    }
    return found;
  }

  // (route or None, path, request id, caller, body, microseconds, seconds, status, sampled,
  // unlogged, rows, whether for scores of rows, length of the JSON, order, scores, unknown, logits)
  nb::list take_records() {
    nb::list found;
    for (FrontRecord& record : front_.take_records()) {
      nb::object route = nb::none();
      for (const nb::object& each : held_) {
        if (nb::cast<const BoundRoute&>(each).route() == record.route) route = each;
      }
      found.append(nb::make_tuple(
          route, record.path, record.request_id, record.caller,
          nb::bytes(record.body.data(), record.body.size()), record.time_us, record.seconds,
          record.status, record.sampled, record.is_unlogged, record.n_rows, record.infers,
          record.json_length, to_array(std::move(record.order)), to_array(std::move(record.scores)),
          to_array(std::move(record.unknown)), to_array(std::move(record.logits))));
    }
    let_go();
    return found;
  }

  // For rankings or scores of rows, and each status: how many answers, their seconds, answers in
  // each range of seconds.
  nb::dict answers() const {
    nb::dict found;
    for (const bool infers : {false, true}) {
      for (std::size_t at = 0; at < std::size(RankFront::kStatuses); ++at) {
        const AnswerFigures& figures = front_.figures(infers, at);
        std::vector<std::int64_t> bins;
        for (const auto& bin : figures.bins) bins.push_back(bin.load());
        found[nb::make_tuple(infers, RankFront::kStatuses[at])] =
            nb::make_tuple(figures.n.load(), figures.seconds.load(), bins);
      }
    }
    return found;
  }

  // Connections that were ended or refused here, by the reason.
  nb::dict endings() const {
    const FrontEndings& endings = loop_->endings();
    nb::dict found;
    found["full"] = endings.full.load();
    found["no descriptor"] = endings.no_descriptor.load();
    found["late head"] = endings.late_head.load();
    found["late body"] = endings.late_body.load();
    found["unread answer"] = endings.unread_answer.load();
    found["idle"] = endings.idle.load();
    return found;
  }

  void stop() {
    const nb::gil_scoped_release release;
    loop_->stop();
  }

  FrontLoop& loop() { return *loop_; }
  std::int64_t dropped() const { return front_.dropped(); }

 private:
  static std::string text(const nb::dict& options, const char* name) {
    const auto bytes = nb::cast<nb::bytes>(options[name]);
    return std::string(bytes.c_str(), bytes.size());
  }

  static RankFrontOptions front_options(const nb::dict& options) {
    RankFrontOptions plain;
    const auto set = [&](const char* name, auto& value) { set_option(options, name, value); };
    set("threads", plain.threads);
    set("most_candidates", plain.most_candidates);
    set("inline_s", plain.inline_s);
    set("deadline_s", plain.deadline_s);
    set("longest_deadline_s", plain.longest_deadline_s);
    set("queued_records", plain.queued_records);
    set("sampled", plain.sampled);
    set("records_all", plain.records_all);
    set("records_errors", plain.records_errors);
    set("second_edges", plain.second_edges);
    plain.busy = text(options, "busy");
    plain.late = text(options, "late");
    const nb::object keys = options["keys"];
    if (!keys.is_none()) plain.keys = nb::cast<std::shared_ptr<ApiKeys>>(keys);
    if (!options["log"].is_none()) {
      plain.log = nb::cast<std::shared_ptr<ImpressionQueue>>(options["log"]);
    }
    return plain;
  }

  std::shared_ptr<const RankRoute> held(nb::object route) {
    if (route.is_none()) return nullptr;
    const auto is_it = [&](const nb::object& each) { return each.is(route); };
    if (std::none_of(held_.begin(), held_.end(), is_it)) held_.push_back(route);
    return nb::cast<const BoundRoute&>(route).route();
  }

  // Of routes that no thread and no record has any more.
  void let_go() {
    std::vector<nb::object> kept;
    for (nb::object& each : held_) {
      if (nb::cast<const BoundRoute&>(each).in_use()) kept.push_back(std::move(each));
    }
    held_.swap(kept);
  }

  nb::object slots_;
  RankFront front_;
  std::unique_ptr<FrontLoop> loop_;
  std::vector<nb::object> held_;
};

void bind_loop(nb::module_& m) {
  nb::class_<BoundServer>(m, "NativeServer")
      .def(nb::init<int, int, nb::object, nb::dict>(), "listening"_a, "handoff_event"_a, "slots"_a,
           "options"_a)
      .def("set_routes", &BoundServer::set_routes, "path"_a, "stable"_a.none(), "canary"_a.none(),
           "share"_a, "records_all"_a, "is_logged"_a)
      .def("pop_handoffs", &BoundServer::pop_handoffs)
      .def(
          "return_connection",
          [](BoundServer& self, int socket) { self.loop().return_connection(socket); }, "socket"_a)
      .def(
          "accept_handoff",
          [](BoundServer& self, int socket) { self.loop().accept_handoff(socket); }, "socket"_a)
      .def("closed_elsewhere", [](BoundServer& self) { self.loop().closed_elsewhere(); })
      .def("take_records", &BoundServer::take_records)
      .def("answers", &BoundServer::answers)
      .def_prop_ro("dropped", &BoundServer::dropped)
      .def_prop_ro("connections", [](BoundServer& self) { return self.loop().connections(); })
      .def_prop_ro("in_flight", [](BoundServer& self) { return self.loop().in_flight(); })
      .def("announce_end", [](BoundServer& self) { self.loop().announce_end(); })
      .def_prop_ro("connections_before_drain",
                   [](BoundServer& self) { return self.loop().connections_before_drain(); })
      .def("endings", &BoundServer::endings)
      .def_prop_ro("is_accepting", [](BoundServer& self) { return self.loop().is_accepting(); })
      .def("stop_accepting", [](BoundServer& self) { self.loop().stop_accepting(); })
      .def("drain", [](BoundServer& self) { self.loop().drain(); })
      .def("stop", &BoundServer::stop);
}

#endif

}  // namespace

void bind_front(nb::module_& m) {
  bind_keys(m);
  bind_routes(m);
#ifdef __linux__
  bind_loop(m);
#endif
}

}  // namespace widedeep
