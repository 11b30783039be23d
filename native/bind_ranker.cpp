#include "bind_ranker.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind_plan.hpp"
#include "bind_program.hpp"
#include "bind_rows.hpp"
#include "bind_score.hpp"
#include "ranker.hpp"
#include "transform_sides.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

using transform::SideParts;
using transform::SideProgram;
using transform::SideRows;

// A view of an array that `owner` holds.
template <class T, class... Shape>
nb::object view_of(const T* data, nb::handle owner, Shape... shape) {
  return nb::cast(
      nb::ndarray<nb::numpy, const T>(data, {static_cast<std::size_t>(shape)...}, owner));
}

// The rows of one side, ready to be summed and crossed.
struct EncodedSide {
  EncodedSide(SideRows&& encoded, std::int64_t dense_columns)
      : parts(std::make_shared<SideParts>(std::move(encoded.parts))),
        rows(std::move(encoded)),
        n_dense(dense_columns) {}

  // As they are given to RankScorer.sums.
  nb::tuple arrays(nb::handle self) const {
    nb::object values = nb::none();
    if (!rows.values.empty()) values = view_of(rows.values.data(), self, rows.values.size());
    return nb::make_tuple(view_of(rows.ids.data(), self, rows.ids.size()),
                          view_of(rows.offsets.data(), self, rows.offsets.size()), values,
                          view_of(rows.dense.data(), self, parts->n_rows, n_dense));
  }

  std::shared_ptr<SideParts> parts;
  SideRows rows;
  std::int64_t n_dense;
};

// What a model's schema says about the sides of a request.
class BoundSides {
 public:
  BoundSides(nb::object plan, const NamedSlots& query, const NamedSlots& item,
             std::vector<int> query_numbers, std::vector<int> item_numbers,
             std::vector<int> crosses, const std::vector<int>& item_parts)
      : owner_(plan), plan_(&nb::cast<const OwnedPlan&>(plan).plan), crosses_(std::move(crosses)) {
    is_item_part_.resize(plan_->parts.size());
    for (const int part : item_parts) is_item_part_.at(static_cast<std::size_t>(part)) = true;
    std::vector<int> pair_parts[2];
    for (const int cross : crosses_) {
      for (const int part : plan_->crosses.at(static_cast<std::size_t>(cross))->parts) {
        std::vector<int>& side = pair_parts[is_item_part_[static_cast<std::size_t>(part)] ? 1 : 0];
        if (std::find(side.begin(), side.end(), part) == side.end()) side.push_back(part);
      }
    }
    query_ = {*plan_, slots_named(query), std::move(query_numbers), std::move(pair_parts[0])};
    item_ = {*plan_, slots_named(item), std::move(item_numbers), std::move(pair_parts[1])};
    query_columns_ = {plan_, query_.columns()};
    item_columns_ = {plan_, item_.columns()};
    query_names_.emplace(query_columns_.names());
    item_names_.emplace(item_columns_.names());
  }

  void lend(RankModel& model) const {
    model.plan = plan_;
    model.query = &query_;
    model.item = &item_;
    model.crosses = &crosses_;
    model.is_item_part = &is_item_part_;
  }

  std::vector<std::string> query_columns() const { return query_names_->names(); }
  std::vector<std::string> item_columns() const { return item_names_->names(); }

  // Also returns, for each column, in how many rows its key was absent.
  nb::tuple encode_rows(bool items, nb::sequence rows, nb::callable plain,
                        const std::string& origin_name) const {
    const Origin origin{origin_name, 0};
    const PlanColumns& columns = items ? item_columns_ : query_columns_;
    const RowColumns given(rows, items ? *item_names_ : *query_names_, plain, origin, plan_);
    SideRows found;
    {
      const nb::gil_scoped_release release;
      found = transform::encode_side(
          items ? item_ : query_, {columns.place(given.columns(), given.length())}, origin, true);
    }
    return nb::make_tuple(EncodedSide(std::move(found), plan_->dense_starts().back()),
                          nb::cast(given.absent()));
  }

  EncodedSide encode_items(nb::sequence batches, const std::string& origin_name) const {
    const Origin origin{origin_name, 0};
    const ArrowRows arrow(item_columns_, batches, origin);
    SideRows found;
    {
      const nb::gil_scoped_release release;
      found = transform::encode_side(item_, arrow.inputs, origin, false);
    }
    return {std::move(found), plan_->dense_starts().back()};
  }

  // Needs no hold of Python.
  static std::int64_t check_places(const SideParts& query, const SideParts& items,
                                   const Array<std::int64_t, 1>& positions) {
    expect(query.n_rows == 1, "expected one row of the query");
    const auto n = static_cast<std::int64_t>(positions.shape(0));
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t at = positions.data()[i];
      expect(at >= 0 && at < items.n_rows, "expected positions of items");
    }
    return n;
  }

  std::pair<nb::object, nb::object> cross(const SideParts& query, const SideParts& items,
                                          const Array<std::int64_t, 1>& positions) const {
    transform::PairCells found;
    {
      const nb::gil_scoped_release release;
      const std::int64_t n = check_places(query, items, positions);
      found = transform::cross_pairs(*plan_, crosses_, is_item_part_, query, items,
                                     positions.data(), n);
    }
    nb::object ids = to_array(std::move(found.ids));
    return {ids, to_array(std::move(found.offsets))};
  }

 private:
  nb::object owner_;
  const transform::Plan* plan_;
  std::vector<int> crosses_;
  std::vector<bool> is_item_part_;
  SideProgram query_;
  SideProgram item_;
  PlanColumns query_columns_;
  PlanColumns item_columns_;
  std::optional<ColumnNames> query_names_;
  std::optional<ColumnNames> item_names_;
};

// What one side brings to requests: the query's one row, or the rows of items.
struct PartialSums {
  using Floats = Array<float, 2>;
  using Halves = Array<std::uint16_t, 2>;

  // Keeps hold of arrays.
  PartialSums(std::shared_ptr<SideParts> of_parts, const Floats& of_wide,
              const std::optional<Floats>& of_hidden, const std::optional<Halves>& of_halves)
      : parts(std::move(of_parts)), wide(of_wide.data()), n_classes(size(of_wide, 1)) {
    expect(of_hidden.has_value() != of_halves.has_value(), "expected sums in one precision");
    floats.push_back(of_wide);
    if (of_hidden) floats.push_back(*of_hidden);
    halves = of_halves;
    hidden = of_hidden ? of_hidden->data() : nullptr;
    hidden_bfloat16 = of_halves ? of_halves->data() : nullptr;
    n_hidden = static_cast<std::int64_t>(of_hidden ? of_hidden->shape(1) : of_halves->shape(1));
    const auto n = static_cast<std::size_t>(parts->n_rows);
    expect(of_wide.shape(0) == n && (of_hidden ? of_hidden->shape(0) : of_halves->shape(0)) == n,
           "expected the sums of each row");
  }

  void lend(RankModel& model) const {
    model.items = {parts.get(), wide, hidden, hidden_bfloat16, parts->n_rows};
  }

  PartialSums(std::shared_ptr<SideParts> of_parts, std::int64_t classes, std::int64_t units)
      : parts(std::move(of_parts)),
        made(static_cast<std::size_t>(parts->n_rows * (classes + units))),
        wide(made.data()),
        hidden(made.data() + parts->n_rows * classes),
        n_classes(classes),
        n_hidden(units) {}

  std::shared_ptr<SideParts> parts;
  std::vector<float> made;
  std::vector<Floats> floats;
  std::optional<Halves> halves;
  const float* wide;
  const float* hidden = nullptr;
  const std::uint16_t* hidden_bfloat16 = nullptr;
  std::int64_t n_classes;
  std::int64_t n_hidden;
};

Side side_named(const std::string& name) {
  constexpr std::array<const char*, 3> kSides = {"query", "item", "pair"};
  return static_cast<Side>(named("side", kSides, name));
}

// A RankScorer with hold of the tables that it reads from.
class BoundRankScorer {
 public:
  using Ids = Array<std::int64_t, 1>;
  using Values = std::optional<Array<float, 1>>;
  using Sums = Array<float, 2>;

  BoundRankScorer(std::array<std::int64_t, 3> n_slots, std::int64_t n_dense, std::int64_t n_classes)
      : scorer_(n_slots, n_dense, n_classes) {
    expect(*std::min_element(n_slots.begin(), n_slots.end()) >= 0 && n_dense >= 0 && n_classes >= 1,
           "expected sizes of at least 0, 0 and 1");
  }

  void lend(RankModel& model) const { model.scorer = &scorer_; }

  void set_program(nb::object program) {
    scorer_.set_program(&nb::cast<const BoundProgram&>(program).program());
    program_ = std::move(program);
  }

  void add_wide(const std::string& side, std::int64_t slot, const Array<float, 2>& weights,
                const std::string& combiner) {
    expect(size(weights, 1) == scorer_.n_classes(), "expected one column of wide weights a class");
    scorer_.add_wide(side_named(side), slot_table(side, slot, weights, combiner));
  }

  template <class Table>
  void add_embedding(const std::string& side, std::int64_t slot, const Table& table,
                     const std::string& combiner) {
    scorer_.add_embedding(side_named(side), slot_table(side, slot, table, combiner));
  }

  template <class Table>
  void add_sequence(const std::string& side, std::int64_t slot, const Table& table,
                    std::int64_t places) {
    const SlotTable rows = slot_table(side, slot, table, "sum");
    check_places(rows, places);
    scorer_.add_sequence(side_named(side), rows, places);
  }

  void add_dense(const std::string& side, std::int64_t column, std::int64_t width) {
    expect(column >= 0 && width >= 0 && column + width <= scorer_.n_dense(),
           "expected columns within the dense numbers");
    expect(side != "pair", "expected numbers of the query or of the item");
    scorer_.add_dense(side_named(side), column, width);
  }

  void add_layer(const Array<float, 2>& weight, const std::optional<Array<float, 1>>& bias,
                 const std::string& activation, bool bfloat16) {
    expect(size(weight, 1) == scorer_.layer_inputs(),
           "expected one column of the layer's weight an input");
    expect(!bias || bias->shape(0) == weight.shape(0), "expected one bias a unit");
    scorer_.add_layer(weight.data(), bias ? bias->data() : nullptr, size(weight, 0),
                      activation_named(activation),
                      bfloat16 ? Products::bfloat16 : Products::float32);
  }

  std::pair<Result, Result> sums(const std::string& side, const Ids& ids, const Ids& offsets,
                                 const Values& values, const Array<float, 2>& dense,
                                 int threads) const {
    const Side of = side_named(side);
    expect(of != Side::pair, "expected the query's or the items' sums");
    expect(size(dense, 1) == scorer_.n_dense(), "expected the dense columns of the schema");
    ScoreBatch batch = view(of, ids, offsets, size(dense, 0));
    expect(!values || values->shape(0) == ids.shape(0), "expected one value an id");
    if (values) batch.csr.values = values->data();
    batch.dense = dense.data();
    Result wide = new_result(batch.csr.n_examples, scorer_.n_classes());
    Result hidden = new_result(batch.csr.n_examples, scorer_.n_hidden(of));
    {
      nb::gil_scoped_release release;
      scorer_.sums(of, batch, threads, wide.data(), hidden.data());
    }
    return {std::move(wide), std::move(hidden)};
  }

  // The same of rows as they were encoded.
  std::unique_ptr<PartialSums> sums_of(const std::string& side, const EncodedSide& encoded,
                                       int threads) const {
    const Side of = side_named(side);
    expect(of != Side::pair, "expected the query's or the items' sums");
    const SideRows& rows = encoded.rows;
    const std::int64_t n = encoded.parts->n_rows;
    expect(encoded.n_dense == scorer_.n_dense() &&
               static_cast<std::int64_t>(rows.offsets.size()) == n * scorer_.n_slots(of) + 1,
           "expected rows of this model's schema");
    CsrBatch csr = rows.csr(scorer_.n_slots(of));
    csr.n_examples = n;  // its parts are the caller's by now
    auto sums =
        std::make_unique<PartialSums>(encoded.parts, scorer_.n_classes(), scorer_.n_hidden(of));
    {
      nb::gil_scoped_release release;
      float* const wide = sums->made.data();
      scorer_.sums(of, {csr, rows.dense.data(), scorer_.n_dense()}, threads, wide,
                   wide + n * scorer_.n_classes());
    }
    return sums;
  }

  std::pair<Result, std::optional<Result>> rank(
      const Sums& query_wide, const Sums& query_hidden, const Sums& item_wide,
      const std::optional<Sums>& item_hidden,
      const std::optional<Array<std::uint16_t, 2>>& item_hidden_bfloat16, const Ids& positions,
      const Ids& ids, const Ids& offsets, int threads) const {
    const std::int64_t rows = static_cast<std::int64_t>(positions.shape(0));
    const std::int64_t n_items = size(item_wide, 0);
    const auto fits = [&](const auto& array, std::int64_t n, std::int64_t width) {
      return static_cast<std::int64_t>(array.shape(0)) == n &&
             static_cast<std::int64_t>(array.shape(1)) == width;
    };
    expect(item_hidden.has_value() != item_hidden_bfloat16.has_value(),
           "expected the items' sums in one precision");
    expect(fits(query_wide, 1, scorer_.n_classes()) &&
               fits(query_hidden, 1, scorer_.n_hidden(Side::query)) &&
               fits(item_wide, n_items, scorer_.n_classes()) &&
               (item_hidden ? fits(*item_hidden, n_items, scorer_.n_hidden(Side::item))
                            : fits(*item_hidden_bfloat16, n_items, scorer_.n_hidden(Side::item))),
           "expected sums of this model");
    const RankRequest request = {query_wide.data(),
                                 query_hidden.data(),
                                 item_wide.data(),
                                 item_hidden ? item_hidden->data() : nullptr,
                                 item_hidden_bfloat16 ? item_hidden_bfloat16->data() : nullptr,
                                 n_items,
                                 positions.data(),
                                 view(Side::pair, ids, offsets, rows)};
    Result wide = new_result(rows, scorer_.n_classes());
    std::optional<Result> deep;
    if (scorer_.has_deep()) {
      expect(!scorer_.has_layers() || scorer_.layer_inputs() == scorer_.n_classes(),
             "expected one last unit a class");
      deep = new_result(rows, scorer_.n_classes());
    }
    {
      nb::gil_scoped_release release;
      scorer_.rank(request, threads, wide.data(), deep ? deep->data() : nullptr);
    }
    return {std::move(wide), std::move(deep)};
  }

  Result logits(const BoundSides& sides, const PartialSums& query, const PartialSums& items,
                const Ids& positions, const Array<float, 1>& bias, int threads) const {
    const auto n = static_cast<std::int64_t>(positions.shape(0));
    expect(query.n_classes == scorer_.n_classes() && items.n_classes == scorer_.n_classes() &&
               query.n_hidden == scorer_.n_hidden(Side::query) &&
               items.n_hidden == scorer_.n_hidden(Side::item),
           "expected sums of this model");
    expect(!scorer_.has_program() || items.hidden != nullptr,
           "expected the items' values in float32");
    expect(query.hidden != nullptr, "expected the query's sums in float32");
    expect(static_cast<std::int64_t>(bias.shape(0)) == scorer_.n_classes(),
           "expected one bias a class");
    expect(!scorer_.has_layers() || scorer_.layer_inputs() == scorer_.n_classes(),
           "expected one last unit a class");
    RankModel model;
    sides.lend(model);
    lend(model);
    items.lend(model);
    model.bias = bias.data();
    expect(static_cast<std::int64_t>(model.crosses->size()) == scorer_.n_slots(Side::pair),
           "expected the crosses of this model");
    Result out = new_result(n, scorer_.n_classes());
    const nb::gil_scoped_release release;
    BoundSides::check_places(*query.parts, *items.parts, positions);
    model.logits({query.parts.get(), query.wide, query.hidden}, model.items, positions.data(), n,
                 std::numeric_limits<std::int64_t>::max(), threads, out.data());
    return out;
  }

 private:
  template <class Table>
  SlotTable slot_table(const std::string& side, std::int64_t slot, const Table& rows,
                       const std::string& combiner) {
    expect(slot >= 0 && slot < scorer_.n_slots(side_named(side)), "expected a slot of the side");
    return tables_.hold(slot, rows, combiner);
  }

  ScoreBatch view(Side side, const Ids& ids, const Ids& offsets, std::int64_t rows) const {
    const std::int64_t n_slots = scorer_.n_slots(side);
    expect(static_cast<std::int64_t>(offsets.shape(0)) == rows * n_slots + 1,
           "got a batch with other feature slots than the side has");
    const auto n_ids = static_cast<std::int64_t>(ids.shape(0));
    return {
        {ids.data(), offsets.data(), nullptr, n_ids, rows, n_slots}, nullptr, scorer_.n_dense()};
  }

  RankScorer scorer_;
  HeldTables tables_;
  nb::object program_;
};

}  // namespace

RankModel lent_model(nb::handle sides, nb::handle scorer, nb::handle items) {
  RankModel model;
  nb::cast<const BoundSides&>(sides).lend(model);
  nb::cast<const BoundRankScorer&>(scorer).lend(model);
  if (items.is_none()) return model;
  const auto& sums = nb::cast<const PartialSums&>(items);
  expect(sums.n_classes == model.scorer->n_classes() &&
             sums.n_hidden == model.scorer->n_hidden(Side::item),
         "expected items of this model");
  sums.lend(model);
  return model;
}

void bind_ranker(nb::module_& m) {
  nb::class_<SideParts>(m, "SideParts").def_prop_ro("n_rows", [](const SideParts& self) {
    return self.n_rows;
  });
  nb::class_<BoundSides>(m, "TransformSides")
      .def(nb::init<nb::object, const NamedSlots&, const NamedSlots&, std::vector<int>,
                    std::vector<int>, std::vector<int>, const std::vector<int>&>(),
           "plan"_a, nb::kw_only(), "query"_a, "item"_a, "query_numbers"_a, "item_numbers"_a,
           "crosses"_a, "item_parts"_a)
      .def_prop_ro("query_columns", &BoundSides::query_columns)
      .def_prop_ro("item_columns", &BoundSides::item_columns)
      .def("encode_rows", &BoundSides::encode_rows, "items"_a, "rows"_a, "plain"_a, "origin"_a)
      .def("encode_items", &BoundSides::encode_items, "batches"_a, "origin"_a)
      .def("cross", &BoundSides::cross, "query"_a, "items"_a, "positions"_a);
  nb::class_<EncodedSide>(m, "EncodedSide")
      .def_ro("parts", &EncodedSide::parts)
      .def_prop_ro("arrays",
                   [](nb::handle self) { return nb::cast<const EncodedSide&>(self).arrays(self); });
  nb::class_<PartialSums>(m, "PartialSums")
      .def(nb::init<std::shared_ptr<SideParts>, const PartialSums::Floats&,
                    const std::optional<PartialSums::Floats>&,
                    const std::optional<PartialSums::Halves>&>(),
           "parts"_a, "wide"_a, "hidden"_a.none(), "hidden_bfloat16"_a.none() = nb::none())
      .def_ro("parts", &PartialSums::parts)
      .def_prop_ro("wide",
                   [](nb::handle self) {
                     const auto& sums = nb::cast<const PartialSums&>(self);
                     return view_of(sums.wide, self, sums.parts->n_rows, sums.n_classes);
                   })
      .def_prop_ro("hidden",
                   [](nb::handle self) {
                     const auto& sums = nb::cast<const PartialSums&>(self);
                     return sums.hidden == nullptr
                                ? nb::none()
                                : view_of(sums.hidden, self, sums.parts->n_rows, sums.n_hidden);
                   })
      .def_prop_ro("hidden_bfloat16", [](nb::handle self) {
        const auto& sums = nb::cast<const PartialSums&>(self);
        return sums.hidden_bfloat16 == nullptr
                   ? nb::none()
                   : view_of(sums.hidden_bfloat16, self, sums.parts->n_rows, sums.n_hidden);
      });
  nb::class_<BoundRankScorer>(m, "RankScorer")
      .def(nb::init<std::array<std::int64_t, 3>, std::int64_t, std::int64_t>(), "n_slots"_a,
           "n_dense"_a, "n_classes"_a)
      .def("add_wide", &BoundRankScorer::add_wide, "side"_a, "slot"_a, "weights"_a, "combiner"_a)
      .def("add_embedding", &BoundRankScorer::add_embedding<BoundPackedRows>, "side"_a, "slot"_a,
           "table"_a, "combiner"_a)
      .def("add_embedding", &BoundRankScorer::add_embedding<Array<float, 2>>, "side"_a, "slot"_a,
           "table"_a, "combiner"_a)
      .def("add_sequence", &BoundRankScorer::add_sequence<BoundPackedRows>, "side"_a, "slot"_a,
           "table"_a, "places"_a)
      .def("add_sequence", &BoundRankScorer::add_sequence<Array<float, 2>>, "side"_a, "slot"_a,
           "table"_a, "places"_a)
      .def("add_dense", &BoundRankScorer::add_dense, "side"_a, "column"_a, "width"_a)
      .def("add_layer", &BoundRankScorer::add_layer, "weight"_a, "bias"_a.none(), "activation"_a,
           nb::kw_only(), "bfloat16"_a = false)
      .def("set_program", &BoundRankScorer::set_program, "program"_a)
      .def("sums", &BoundRankScorer::sums, "side"_a, "ids_N"_a, "offsets_BF"_a, "values_N"_a.none(),
           "dense_BK"_a, nb::kw_only(), "threads"_a)
      .def("sums_of", &BoundRankScorer::sums_of, "side"_a, "rows"_a, nb::kw_only(), "threads"_a)
      .def("rank", &BoundRankScorer::rank, "query_wide"_a, "query_hidden"_a, "item_wide"_a,
           "item_hidden"_a.none(), "item_hidden_bfloat16"_a.none(), "positions_B"_a, "ids_N"_a,
           "offsets_BF"_a, nb::kw_only(), "threads"_a)
      .def("logits", &BoundRankScorer::logits, "sides"_a, "query"_a, "items"_a, "positions_B"_a,
           "bias_C"_a, nb::kw_only(), "threads"_a);
}

}  // namespace widedeep
