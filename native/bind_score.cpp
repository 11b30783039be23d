#include "bind_score.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind_program.hpp"
#include "score.hpp"
#include "score_functions.hpp"

namespace nb = nanobind;

namespace {

using namespace nb::literals;
using widedeep::activation_named;
using widedeep::Array;
using widedeep::expect;
using widedeep::new_result;
using widedeep::Result;
using widedeep::size;

// A Scorer with hold of the tables that it reads from.
class BoundScorer {
 public:
  using Ids = Array<std::int64_t, 1>;
  using Values = std::optional<Array<float, 1>>;

  BoundScorer(std::int64_t n_slots, std::int64_t n_dense, std::int64_t n_classes)
      : scorer_(n_slots, n_dense, n_classes) {
    expect(n_slots >= 0 && n_dense >= 0 && n_classes >= 1, "expected sizes of at least 0, 0 and 1");
  }

  void add_wide(std::int64_t slot, const Array<float, 2>& weights, const std::string& combiner,
                bool item) {
    expect(size(weights, 1) == scorer_.n_classes(), "expected one column of wide weights a class");
    scorer_.add_wide(slot_table(slot, weights, combiner), item);
  }

  template <class Table>
  void add_embedding(std::int64_t slot, const Table& table, const std::string& combiner) {
    scorer_.add_embedding(slot_table(slot, table, combiner));
  }

  template <class Table>
  void add_sequence(std::int64_t slot, const Table& table, std::int64_t places) {
    const widedeep::SlotTable rows = slot_table(slot, table, "sum");
    widedeep::check_places(rows, places);
    scorer_.add_sequence(rows, places);
  }

  void add_dense(std::int64_t column, std::int64_t width) {
    expect(column >= 0 && width >= 0 && column + width <= scorer_.n_dense(),
           "expected columns within the dense numbers");
    scorer_.add_dense(column, width);
  }

  void start_item_inputs() { scorer_.start_item_inputs(); }

  void add_layer(const Array<float, 2>& weight, const std::optional<Array<float, 1>>& bias,
                 const std::string& activation) {
    expect(size(weight, 1) == scorer_.layer_inputs(),
           "expected one column of the layer's weight an input");
    expect(!bias || bias->shape(0) == weight.shape(0), "expected one bias a unit");
    scorer_.add_layer(weight.data(), bias ? bias->data() : nullptr, size(weight, 0),
                      activation_named(activation));
  }

  void set_program(nb::object program) {
    scorer_.set_program(&nb::cast<const widedeep::BoundProgram&>(program).program());
    program_ = std::move(program);
  }

  const widedeep::Scorer& scorer() const {
    expect(!scorer_.has_layers() || scorer_.layer_inputs() == scorer_.n_classes(),
           "expected one last unit a class");
    return scorer_;
  }

  std::pair<Result, std::optional<Result>> forward(const Ids& ids, const Ids& offsets,
                                                   const Values& values,
                                                   const Array<float, 2>& dense,
                                                   int threads) const {
    const widedeep::ScoreBatch batch = view(ids, offsets, values, dense);
    Result wide = new_result(batch.csr.n_examples, scorer_.n_classes());
    std::optional<Result> deep;
    if (scorer_.has_deep()) {
      expect(!scorer_.has_layers() || scorer_.layer_inputs() == scorer_.n_classes(),
             "expected one last unit a class");
      deep = new_result(batch.csr.n_examples, scorer_.n_classes());
    }
    {
      nb::gil_scoped_release release;
      scorer_.forward(batch, threads, wide.data(), deep ? deep->data() : nullptr);
    }
    return {std::move(wide), std::move(deep)};
  }

  Result concat(const Ids& ids, const Ids& offsets, const Values& values,
                const Array<float, 2>& dense, int threads) const {
    const widedeep::ScoreBatch batch = view(ids, offsets, values, dense);
    Result out = new_result(batch.csr.n_examples, scorer_.n_inputs());
    {
      nb::gil_scoped_release release;
      scorer_.concat(batch, threads, out.data());
    }
    return out;
  }

 private:
  template <class Table>
  widedeep::SlotTable slot_table(std::int64_t slot, const Table& rows,
                                 const std::string& combiner) {
    expect(slot >= 0 && slot < scorer_.n_slots(), "expected a slot of the schema");
    return tables_.hold(slot, rows, combiner);
  }

  widedeep::ScoreBatch view(const Ids& ids, const Ids& offsets, const Values& values,
                            const Array<float, 2>& dense) const {
    const std::int64_t rows = size(dense, 0);
    const auto n_ids = static_cast<std::int64_t>(ids.shape(0));
    expect(size(dense, 1) == scorer_.n_dense() &&
               static_cast<std::int64_t>(offsets.shape(0)) == rows * scorer_.n_slots() + 1,
           "got a batch with other feature slots or dense columns than the model's schema has");
    expect(!values || values->shape(0) == ids.shape(0), "expected one value an id");
    const float* weights = values ? values->data() : nullptr;
    return {{ids.data(), offsets.data(), weights, n_ids, rows, scorer_.n_slots()},
            dense.data(),
            scorer_.n_dense()};
  }

  widedeep::Scorer scorer_;
  widedeep::HeldTables tables_;
  nb::object program_;
};

}  // namespace

namespace widedeep {

const Scorer& lent_scorer(nb::handle scorer) {
  return nb::cast<const BoundScorer&>(scorer).scorer();
}

void bind_score(nb::module_& m) {
  m.def(
      "score_function",
      [](const std::string& name, const Array<double, 1>& x) {
        const auto function = widedeep::score_function(name);
        std::vector<double> values(x.shape(0));
        std::transform(x.data(), x.data() + x.shape(0), values.begin(),
                       [&](double value) { return widedeep::apply(function, value); });
        return widedeep::to_array(std::move(values));
      },
      "name"_a, "x_N"_a);
  m.def(
      "power",
      [](const Array<double, 1>& x, const Array<double, 1>& y) {
        expect(x.shape(0) == y.shape(0), "expected an exponent a number");
        std::vector<double> values(x.shape(0));
        std::transform(x.data(), x.data() + x.shape(0), y.data(), values.begin(),
                       [](double base, double exponent) { return std::pow(base, exponent); });
        return widedeep::to_array(std::move(values));
      },
      "x_N"_a, "y_N"_a);
  m.def(
      "lognormal_mean",
      [](const Array<double, 2>& logits) {
        expect(logits.shape(1) == 3, "expected three logits a row");
        std::vector<double> values(logits.shape(0));
        const double* row = logits.data();
        for (double& value : values) {
          value = widedeep::lognormal_mean(row[0], row[1], row[2]);
          row += 3;
        }
        return widedeep::to_array(std::move(values));
      },
      "logits_B3"_a);
  nb::class_<BoundScorer>(m, "Scorer")
      .def(nb::init<std::int64_t, std::int64_t, std::int64_t>(), nb::arg("n_slots"),
           nb::arg("n_dense"), nb::arg("n_classes"))
      .def("add_wide", &BoundScorer::add_wide, nb::arg("slot"), nb::arg("weights"),
           nb::arg("combiner"), nb::kw_only(), nb::arg("item"))
      .def("add_embedding", &BoundScorer::add_embedding<BoundPackedRows>, nb::arg("slot"),
           nb::arg("table"), nb::arg("combiner"))
      .def("add_embedding", &BoundScorer::add_embedding<Array<float, 2>>, nb::arg("slot"),
           nb::arg("table"), nb::arg("combiner"))
      .def("add_sequence", &BoundScorer::add_sequence<BoundPackedRows>, nb::arg("slot"),
           nb::arg("table"), nb::arg("places"))
      .def("add_sequence", &BoundScorer::add_sequence<Array<float, 2>>, nb::arg("slot"),
           nb::arg("table"), nb::arg("places"))
      .def("add_dense", &BoundScorer::add_dense, nb::arg("column"), nb::arg("width"))
      .def("start_item_inputs", &BoundScorer::start_item_inputs)
      .def("add_layer", &BoundScorer::add_layer, nb::arg("weight"), nb::arg("bias").none(),
           nb::arg("activation"))
      .def("set_program", &BoundScorer::set_program, nb::arg("program"))
      .def("forward", &BoundScorer::forward, nb::arg("ids_N"), nb::arg("offsets_BF"),
           nb::arg("values_N").none(), nb::arg("dense_BK"), nb::kw_only(), nb::arg("threads"))
      .def("concat", &BoundScorer::concat, nb::arg("ids_N"), nb::arg("offsets_BF"),
           nb::arg("values_N").none(), nb::arg("dense_BK"), nb::kw_only(), nb::arg("threads"));
}

}  // namespace widedeep
