// Runs of training steps for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bind_arrays.hpp"
#include "bind_sparse.hpp"
#include "bind_tower.hpp"
#include "feature_rates.hpp"
#include "float_sum.hpp"
#include "step_program.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

struct BoundUpdate {
  Output weights;
  std::vector<Output> state;
  RowUpdate update;

  BoundUpdate(const std::string& kernel, Output own_weights, std::vector<Output> own_state,
              double lr, double eps, double l1, double l2, double beta, double lr_power,
              double shrinkage, double beta1, double beta2, double weight_decay)
      : weights(std::move(own_weights)), state(std::move(own_state)) {
    constexpr std::array<const char*, 4> kKernels = {"sgd_rows", "adagrad_rows", "adam_rows",
                                                     "ftrl_rows"};
    constexpr std::size_t kStates[] = {0, 1, 2, 2};
    const int rule = named("kernel", kKernels, kernel);
    if (state.size() != kStates[rule]) {
      refuse("state: got " + std::to_string(state.size()) + " arrays, expected " +
             std::to_string(kStates[rule]) + " for " + kernel);
    }
    update.rule = static_cast<RowUpdate::Rule>(rule);
    update.weights = matrix_rows("weights", weights);
    const auto part = [&](std::size_t i) {
      return i < state.size()
                 ? matrix_rows("state", state[i], length(weights), update.weights.width)
                 : Rows{};
    };
    update.first = part(0);
    update.second = part(1);
    update.lr = lr;
    update.eps = eps;
    update.l1 = l1;
    update.l2 = l2;
    update.beta = beta;
    update.lr_power = lr_power;
    update.shrinkage = shrinkage;
    update.beta1 = beta1;
    update.beta2 = beta2;
    update.weight_decay = weight_decay;
  }
};

struct BoundTable {
  BoundSlots slots;
  Output weights;
  std::optional<BoundUpdate> update;
  std::vector<std::int64_t> wide_tables, shifts;

  BoundTable(BoundSlots own_slots, Output own_weights, std::optional<BoundUpdate> own_update,
             std::vector<std::int64_t> tables, std::vector<std::int64_t> row_shifts)
      : slots(std::move(own_slots)),
        weights(std::move(own_weights)),
        update(std::move(own_update)),
        wide_tables(std::move(tables)),
        shifts(std::move(row_shifts)) {
    const Rows rows = matrix_rows("weights", weights);
    if (slots.n_rows > length(weights)) {
      refuse("weights: got " + std::to_string(length(weights)) +
             " rows, but the slots' tables end at row " + std::to_string(slots.n_rows));
    }
    if (update &&
        (update->update.weights.data != rows.data || length(update->weights) != length(weights))) {
      refuse("update: expected the table's own weights");
    }
    if (shifts.size() != wide_tables.size() ||
        (!wide_tables.empty() && wide_tables.size() != slots.table_bases.size())) {
      refuse("wide_tables and shifts: expected one for each logical table, or none");
    }
  }

  StepTable table() const {
    return {slots.list(),
            slots.slot_tables(),
            slots.column_of_feature.data(),
            slots.sums_only,
            matrix_rows("weights", weights),
            !update,
            update ? update->update : RowUpdate{},
            wide_tables,
            shifts};
  }
};

using DenseUpdates = std::vector<std::tuple<BoundUpdate, Output, double>>;

// Everything that a program moves, kept alive, and checked once.
class BoundProgram {
 public:
  BoundProgram(std::int64_t n_features, std::optional<BoundTable> wide,
               std::vector<BoundTable> tables, nb::object tower, std::optional<Output> input_BX,
               std::int64_t first_dense, std::vector<std::int64_t> dense_columns, Output bias,
               Output bias_grad, DenseUpdates dense, std::optional<Output> log_rates,
               std::optional<Output> evidence, double rate_step, double lowest_rate,
               double highest_rate, double row_scale, bool mean_loss)
      : wide_(std::move(wide)),
        tables_(std::move(tables)),
        tower_(std::move(tower)),
        input_(std::move(input_BX)),
        dense_(std::move(dense)),
        kept_{bias, bias_grad} {
    StepPlan plan{};
    plan.n_features = n_features;
    plan.n_logits = n_logits_ = length(bias);
    if (wide_) {
      check_slots(wide_->slots, n_features);
      wide_table_ = wide_->table();
      if (wide_table_.weights.width != n_logits_) refuse("wide: expected a column a logit");
      plan.wide = &wide_table_;
    }
    if (!tower_.is_none()) {
      if (!input_) refuse("input_BX: expected it with the tower");
      const TowerBatch& batch = nb::cast<const BoundTower&>(tower_).batch();
      plan.tower = &batch;
      plan.input = matrix_rows("input_BX", *input_, batch.rows, batch.in.width);
      if (plan.input.data != batch.in.data) refuse("input_BX: expected what the tower reads");
      if (batch.layers[batch.n_layers - 1].outputs != n_logits_) {
        refuse("tower: expected an output a logit");
      }
      const auto n_dense = static_cast<std::int64_t>(dense_columns.size());
      if (first_dense < 0 || first_dense + n_dense > plan.input.width) {
        refuse("dense_columns: the numbers must fit into the input");
      }
      rows_ = batch.rows;
    } else if (!tables_.empty()) {
      refuse("tables: got some without a tower");
    }
    for (const BoundTable& table : tables_) {
      check_slots(table.slots, n_features);
      table.slots.check_columns(static_cast<std::int64_t>(table.weights.shape(1)),
                                plan.input.width);
      for (const std::int64_t number : table.wide_tables) {
        if (!wide_ || number < 0 ||
            number >= static_cast<std::int64_t>(wide_->slots.table_bases.size())) {
          refuse("wide_tables: got " + std::to_string(number) + ", which the wide part lacks");
        }
      }
      plan.tables.push_back(table.table());
    }
    plan.first_dense = first_dense;
    plan.dense_columns = std::move(dense_columns);
    for (const std::int64_t column : plan.dense_columns) {
      if (column < 0) refuse("dense_columns: expected numbers of at least 0");
      n_dense_ = std::max(n_dense_, column + 1);
    }
    plan.bias = vector_data<float>("bias", bias);
    plan.bias_grad = vector_data<float>("bias_grad", bias_grad, n_logits_);
    for (const auto& [update, grads, factor] : dense_) {
      const Rows rows =
          matrix_rows("grads", grads, length(update.weights), update.update.weights.width);
      plan.dense.push_back(
          {update.update, {rows.data, rows.stride, rows.width}, length(update.weights), factor});
    }
    if (log_rates && evidence) {
      const auto n = static_cast<std::int64_t>(wide_ ? wide_->slots.table_bases.size() : 0);
      plan.rates = {vector_data<double>("log_rates", *log_rates, n),
                    vector_data<double>("evidence", *evidence, n),
                    n,
                    rate_step,
                    lowest_rate,
                    highest_rate};
      kept_.push_back(*log_rates);
      kept_.push_back(*evidence);
    }
    plan.row_scale = row_scale;
    plan.mean_loss = mean_loss;
    program_.emplace(std::move(plan));
  }

  nb::tuple run(const BoundBatch* batch, const Input& dense_BK,
                const std::optional<Input>& labels_B, const nb::object& losses,
                const std::optional<Input>& weight_B, std::int64_t batch_rows, std::int64_t step,
                const Input& factors_S3, const std::optional<Input>& keys_S, bool frozen_rates,
                const Output& logits_BC, const Output& losses_B, const Output& grads_BC,
                const Output& totals_S, const Output& weights_S, double most_seconds, int threads) {
    const std::int64_t n = length(dense_BK);
    constexpr std::int64_t kNoOffsets[] = {0};
    const CsrBatch ids =
        batch != nullptr ? batch->csr : CsrBatch{nullptr, kNoOffsets, nullptr, 0, n, 0, true};
    if (ids.n_examples != n || (batch == nullptr && (wide_ || !tables_.empty()))) {
      refuse("batch: expected the ids of each example, or none where no table reads them");
    }
    if (batch_rows < 1 || (rows_ > 0 && batch_rows > rows_)) {
      refuse("batch_rows: got " + std::to_string(batch_rows) + ", expected 1 to " +
             std::to_string(rows_));
    }
    if (wide_) wide_->slots.check_batch(*batch);
    for (const BoundTable& table : tables_) table.slots.check_batch(*batch);
    const std::int64_t steps = (n + batch_rows - 1) / batch_rows;
    const ConstRows dense = matrix_rows("dense_BK", dense_BK, n);
    if (dense.width < n_dense_) refuse("dense_BK: got too few columns");
    if (labels_B.has_value() == !losses.is_none() || (labels_B && n_logits_ != 1)) {
      refuse("labels_B and losses: expected labels for the log loss of one logit, or losses");
    }
    if (labels_B && (labels_B->ndim() != 1 || labels_B->dtype() != nb::dtype<float>() ||
                     length(*labels_B) != n)) {
      refuse("labels_B: got " + described(*labels_B) + ", expected float32 of each example");
    }
    std::function<bool(std::int64_t, std::int64_t)> fill{};
    if (!losses.is_none()) {
      fill = [&losses](std::int64_t first, std::int64_t rows) {
        const nb::gil_scoped_acquire acquire;
        return nb::cast<bool>(losses(first, first + rows));
      };
    }
    if (factors_S3.ndim() != 1 || length(factors_S3) != 3 * steps) {
      refuse("factors_S3: expected three numbers a step");
    }
    const StepRows rows{ids,
                        dense,
                        std::move(fill),
                        labels_B ? static_cast<const float*>(labels_B->data()) : nullptr,
                        labels_B ? labels_B->stride(0) : 0,
                        vector_data<float>("weight_B", weight_B, n),
                        batch_rows,
                        step,
                        vector_data<double>("factors_S3", factors_S3),
                        vector_data<std::uint64_t>("keys_S", keys_S, steps),
                        frozen_rates,
                        most_seconds};
    StepResults results{
        matrix_data("logits_BC", logits_BC, n), vector_data<float>("losses_B", losses_B, n),
        matrix_data("grads_BC", grads_BC, n), vector_data<float>("totals_S", totals_S, steps),
        vector_data<float>("weights_S", weights_S, steps)};
    std::int64_t done = 0;
    {
      const nb::gil_scoped_release release;
      done = program_->run(rows, results, threads);
    }
    return nb::make_tuple(done, results.nonzero);
  }

 private:
  // Of (n, n_logits) numbers without gaps.
  float* matrix_data(const char* name, const Output& array, std::int64_t n) const {
    const Rows rows = matrix_rows(name, array, n, n_logits_);
    if (n > 1 && rows.stride != n_logits_)
      refuse(std::string(name) + ": expected rows side by side");
    return rows.data;
  }

  static void check_slots(const BoundSlots& slots, std::int64_t n_features) {
    if (slots.n_features != n_features) refuse("slots: expected those of one number of features");
  }

  std::optional<BoundTable> wide_;
  std::vector<BoundTable> tables_;
  nb::object tower_;
  std::optional<Output> input_;
  DenseUpdates dense_;
  std::vector<Output> kept_;
  StepTable wide_table_{};
  std::int64_t n_logits_ = 1;
  std::int64_t rows_ = 0;
  std::int64_t n_dense_ = 0;
  std::optional<StepProgram> program_{};
};

float bind_float_sum(const Input& numbers_B) {
  return float_sum(vector_data<float>("numbers_B", numbers_B), length(numbers_B));
}

FeatureRates rates_of(const Output& log_rates, const Output& evidence, const Input& starts_T,
                      double step, double lowest, double highest) {
  const std::int64_t n = length(log_rates);
  const auto* const starts = vector_data<std::int64_t>("starts_T", starts_T, n + 1);
  if (starts[0] < 0 || !std::is_sorted(starts, starts + n + 1)) {
    refuse("starts_T: expected ascending numbers of at least 0");
  }
  return {vector_data<double>("log_rates", log_rates),
          vector_data<double>("evidence", evidence, n),
          n,
          step,
          lowest,
          highest};
}

void bind_learn_rates(const Output& log_rates, const Output& evidence, const Input& starts_T,
                      const Input& products_U, double step, double lowest, double highest) {
  const FeatureRates rates = rates_of(log_rates, evidence, starts_T, step, lowest, highest);
  const auto* const starts = vector_data<std::int64_t>("starts_T", starts_T);
  const auto* const products =
      vector_data<float>("products_U", products_U, starts[rates.n_features]);
  const nb::gil_scoped_release release;
  learn_rates(rates, products, starts, nullptr);
}

nb::ndarray<nb::numpy, double> bind_sum_rates(const Input& products_U, const Input& starts_T) {
  const std::int64_t n = length(starts_T) - 1;
  const auto* const starts = vector_data<std::int64_t>("starts_T", starts_T);
  if (n < 0 || starts[0] < 0 || !std::is_sorted(starts, starts + n + 1)) {
    refuse("starts_T: expected ascending numbers of at least 0");
  }
  const auto* const products = vector_data<float>("products_U", products_U, starts[n]);
  std::unique_ptr<double[]> sums(new double[static_cast<std::size_t>(2 * kRateGrids * n)]);
  {
    const nb::gil_scoped_release release;
    sum_rates_on_grids(products, starts, n, sums.get());
  }
  return new_array(std::move(sums), 2 * kRateGrids, n);
}

void bind_fill_rates(const Output& log_rates, const Input& starts_T, const Output& rates_U) {
  const FeatureRates rates = rates_of(log_rates, log_rates, starts_T, 0, 0, 0);
  const auto* const starts = vector_data<std::int64_t>("starts_T", starts_T);
  auto* const factors = vector_data<float>("rates_U", rates_U, starts[rates.n_features]);
  const nb::gil_scoped_release release;
  fill_rates(rates, starts, factors);
}

}  // namespace

void bind_step(nb::module_& m) {
  m.def("float_sum", &bind_float_sum, "numbers_B"_a);
  m.def("learn_rates", &bind_learn_rates, "log_rates"_a, "evidence"_a, "starts_T"_a, "products_U"_a,
        nb::kw_only(), "step"_a, "lowest"_a, "highest"_a);
  m.def("sum_rates", &bind_sum_rates, "products_U"_a, "starts_T"_a);
  m.def("fill_rates", &bind_fill_rates, "log_rates"_a, "starts_T"_a, "rates_U"_a);
  nb::class_<BoundUpdate>(m, "RowUpdate")
      .def(nb::init<const std::string&, Output, std::vector<Output>, double, double, double, double,
                    double, double, double, double, double, double>(),
           "kernel"_a, "weights"_a, "state"_a, nb::kw_only(), "lr"_a, "eps"_a = 0.0, "l1"_a = 0.0,
           "l2"_a = 0.0, "beta"_a = 0.0, "lr_power"_a = 0.0, "shrinkage"_a = 0.0, "beta1"_a = 0.0,
           "beta2"_a = 0.0, "weight_decay"_a = 0.0);
  nb::class_<BoundTable>(m, "StepTable")
      .def(nb::init<BoundSlots, Output, std::optional<BoundUpdate>, std::vector<std::int64_t>,
                    std::vector<std::int64_t>>(),
           "slots"_a, "weights"_a, "update"_a.none(), "wide_tables"_a = std::vector<std::int64_t>(),
           "shifts"_a = std::vector<std::int64_t>());
  nb::class_<BoundProgram>(m, "StepProgram")
      .def(nb::init<std::int64_t, std::optional<BoundTable>, std::vector<BoundTable>, nb::object,
                    std::optional<Output>, std::int64_t, std::vector<std::int64_t>, Output, Output,
                    DenseUpdates, std::optional<Output>, std::optional<Output>, double, double,
                    double, double, bool>(),
           nb::kw_only(), "n_features"_a, "wide"_a.none(), "tables"_a, "tower"_a.none(),
           "input_BX"_a.none(), "first_dense"_a, "dense_columns"_a, "bias"_a, "bias_grad"_a,
           "dense"_a, "log_rates"_a.none(), "evidence"_a.none(), "rate_step"_a, "lowest_rate"_a,
           "highest_rate"_a, "row_scale"_a, "mean_loss"_a)
      .def("run", &BoundProgram::run, "batch"_a.none(), nb::kw_only(), "dense_BK"_a,
           "labels_B"_a.none(), "losses"_a.none(), "weight_B"_a.none(), "batch_rows"_a, "step"_a,
           "factors_S3"_a, "keys_S"_a.none(), "frozen_rates"_a, "logits_BC"_a, "losses_B"_a,
           "grads_BC"_a, "totals_S"_a, "weights_S"_a, "most_seconds"_a, "threads"_a);
}

}  // namespace widedeep
