// Runs of steps over small batches: bits of one step after the other, and what they stop before.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.hpp"
#include "step_program.hpp"

using namespace widedeep;

namespace {

constexpr int64_t kExamples = 50, kFeatures = 2, kRows = 40, kWidth = 3, kInputs = 8, kHidden = 4;
constexpr double kForever = std::numeric_limits<double>::infinity();

std::vector<float> numbers(int64_t n, float scale = 0.1f) {
  std::vector<float> made(static_cast<size_t>(n));
  for (size_t i = 0; i < made.size(); ++i)
    made[i] = scale * static_cast<float>(i * 37 % 11) - scale;
  return made;
}

// A wide part with FTRL and feature rates, embeddings of both features, and a tower of two layers.
struct Model {
  std::vector<int32_t> features{0, 1}, tables{0, 1};
  std::vector<int64_t> bases{0, 20}, sizes{20, 20}, columns{0, 3};
  std::vector<int8_t> combiners{kSum, kMean};
  std::vector<float> wide = std::vector<float>(kRows), z = wide, n = wide;
  std::vector<float> deep = numbers(kRows * kWidth), deep_sums = std::vector<float>(deep.size(), 1);
  std::vector<float> input = std::vector<float>(kExamples * kInputs), grad_in = input;
  std::vector<float> hidden = std::vector<float>(kExamples * kHidden), hidden_grad = hidden;
  std::vector<float> out = std::vector<float>(kExamples), out_grad = out;
  // Of both layers' weights, then the hidden biases, then the bias
  std::vector<float> dense = numbers(kHidden * kInputs + 2 * kHidden + 1);
  std::vector<float> grads = std::vector<float>(dense.size()),
                     sums = std::vector<float>(dense.size(), 1);
  std::vector<double> log_rates{0, 0}, evidence{0, 0};
  std::vector<TowerLayer> layers{};
  TowerBatch tower{};
  StepTable wide_table{};

  SlotList slots(bool is_deep) {
    return {features.data(),
            bases.data(),
            sizes.data(),
            combiners.data(),
            is_deep ? columns.data() : nullptr,
            kFeatures};
  }

  SlotTables groups() const {
    return {features.data(), tables.data(), kFeatures, bases.data(), sizes.data(), 2};
  }

  StepPlan plan(bool shares) {
    constexpr int64_t kFirst = kHidden * kInputs;
    layers = {{{dense.data(), kInputs, kInputs},
               kHidden,
               dense.data() + kFirst + kHidden,
               UnitActivation::relu,
               0.0f,
               nullptr,
               {hidden.data(), kHidden, kHidden},
               {hidden_grad.data(), kHidden, kHidden},
               {},
               {grads.data(), kInputs, kInputs},
               grads.data() + kFirst + kHidden},
              {{dense.data() + kFirst, kHidden, kHidden},
               1,
               nullptr,
               UnitActivation::linear,
               0.0f,
               nullptr,
               {out.data(), 1, 1},
               {out_grad.data(), 1, 1},
               {},
               {grads.data() + kFirst, kHidden, kHidden},
               nullptr}};
    tower = {false, {input.data(), kInputs, kInputs},  kExamples, layers.data(),
             2,     {grad_in.data(), kInputs, kInputs}};
    const Rows weights{wide.data(), 1, 1};
    RowUpdate ftrl{RowUpdate::Rule::ftrl, weights, {z.data(), 1, 1}, {n.data(), 1, 1}, 0.1};
    ftrl.beta = 1;
    ftrl.l1 = 0.01;
    ftrl.lr_power = -0.5;
    wide_table = {slots(false), groups(), no_columns.data(), true, weights, false, ftrl, {}, {}};
    const auto adagrad = [](std::vector<float>& numbers, std::vector<float>& state, int64_t width) {
      return RowUpdate{RowUpdate::Rule::adagrad,
                       {numbers.data(), width, width},
                       {state.data(), width, width},
                       {},
                       0.05,
                       1e-7};
    };
    StepPlan made{};
    made.n_features = kFeatures;
    made.n_logits = 1;
    made.wide = &wide_table;
    made.tables.push_back({slots(true),
                           groups(),
                           columns.data(),
                           false,
                           {deep.data(), kWidth, kWidth},
                           false,
                           adagrad(deep, deep_sums, kWidth),
                           {},
                           {}});
    if (shares) {
      made.tables[0].wide_tables = {0, 1};
      made.tables[0].shifts = {0, 0};
    }
    made.tower = &tower;
    made.input = {input.data(), kInputs, kInputs};
    made.first_dense = 6;
    made.dense_columns = {1, 0};
    made.bias = dense.data() + dense.size() - 1;
    made.bias_grad = grads.data() + dense.size() - 1;
    const auto width = static_cast<int64_t>(dense.size());
    made.dense.push_back({adagrad(dense, sums, width), {grads.data(), width, width}, 1, 1.0});
    made.rates = {log_rates.data(), evidence.data(), 2, 0.1, -2, 2};
    made.row_scale = 1;
    made.mean_loss = true;
    return made;
  }

  std::vector<int64_t> no_columns{0, 0};

  std::vector<float> state() const {
    std::vector<float> all;
    for (const auto* part : {&wide, &z, &n, &deep, &deep_sums, &dense, &sums}) {
      all.insert(all.end(), part->begin(), part->end());
    }
    all.insert(all.end(), log_rates.begin(), log_rates.end());
    return all;
  }
};

struct Batches {
  std::vector<int64_t> ids{}, offsets{0};
  std::vector<float> dense = numbers(2 * kExamples), labels = std::vector<float>(kExamples);
  std::vector<double> factors = std::vector<double>(3 * kExamples, 0.9);
  std::vector<float> logits = labels, losses = labels, grads = labels, totals = labels;

  explicit Batches(bool single) {
    for (int64_t cell = 0; cell < kExamples * kFeatures; ++cell) {
      for (int64_t i = single ? 0 : cell % 3; i < (single ? 1 : 3); ++i) {
        ids.push_back((cell * 7 + i * 5) % 20);
      }
      offsets.push_back(static_cast<int64_t>(ids.size()));
    }
    for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<float>(i % 3 == 0);
  }

  int64_t run(StepProgram& program, int64_t first, int64_t n, int64_t batch_rows,
              double seconds = kForever) {
    const auto at = static_cast<size_t>(first * kFeatures);
    std::vector<int64_t> own(offsets.begin() + static_cast<int64_t>(at),
                             offsets.begin() + static_cast<int64_t>(at) + n * kFeatures + 1);
    const int64_t begin = own[0];
    for (int64_t& offset : own) offset -= begin;
    const std::vector<int64_t> own_ids(ids.begin() + begin, ids.end());
    const StepRows rows{
        {own_ids.data(), own.data(), nullptr,
         n == kExamples ? static_cast<int64_t>(own_ids.size()) : own.back(), n, kFeatures},
        {dense.data() + 2 * first, 2, 2},
        {},
        labels.data() + first,
        1,
        nullptr,
        batch_rows,
        1,
        factors.data(),
        nullptr,
        false,
        seconds};
    StepResults results{logits.data() + first, losses.data() + first, grads.data() + first,
                        totals.data(), nullptr};
    return program.run(rows, results, 2);
  }
};

TEST(a_run_of_steps_has_the_bits_of_its_steps) {
  for (const bool single : {true, false}) {
    for (const bool shares : {true, false}) {
      for (const int64_t batch_rows : {1, 3, 20, 50}) {
        Model first;
        Model second;
        StepProgram at_once(first.plan(shares));
        StepProgram one_by_one(second.plan(shares));
        Batches rows(single);
        Batches others(single);
        const int64_t steps = (kExamples + batch_rows - 1) / batch_rows;
        CHECK(rows.run(at_once, 0, kExamples, batch_rows) == steps);
        for (int64_t from = 0; from < kExamples; from += batch_rows) {
          const int64_t n = std::min(batch_rows, kExamples - from);
          CHECK(others.run(one_by_one, from, n, batch_rows) == 1);
        }
        CHECK(first.state() == second.state());
        CHECK(rows.logits == others.logits && rows.losses == others.losses);
        for (const float number : first.state()) CHECK(std::isfinite(number));
      }
    }
  }
}

TEST(a_run_stops_before_what_cannot_be_learned_and_when_its_time_is_over) {
  for (const bool single : {true, false}) {
    const auto stops = [single](auto change, double seconds = kForever) {
      Model model;
      Model other;
      StepProgram program(model.plan(true));
      StepProgram shorter(other.plan(true));
      Batches rows(single);
      Batches good(single);
      change(rows);
      const int64_t steps = rows.run(program, 0, kExamples, 5, seconds);
      if (steps > 0) CHECK(good.run(shorter, 0, 5 * steps, 5) == steps);
      CHECK(model.state() == other.state());
      return steps;
    };
    CHECK(stops([](Batches&) {}) == 10);
    CHECK(stops([](Batches&) {}, 0.0) == 1);
    CHECK(stops([](Batches& rows) { rows.labels[17] = NAN; }) == 3);
    CHECK(stops([](Batches& rows) { rows.dense[2 * 17] = INFINITY; }) == 3);
    const auto place = [](const Batches& rows) {  // of an id of example 17 or 18
      return static_cast<size_t>(rows.offsets[17 * kFeatures]);
    };
    CHECK(stops([&](Batches& rows) { rows.ids[place(rows)] = 20; }) == 3);
    CHECK(stops([&](Batches& rows) { rows.ids[place(rows)] = -1; }) == 3);
    CHECK(stops([&](Batches& rows) { rows.ids[place(rows)] = INT64_MIN; }) == 3);
    for (const int64_t wrong : {int64_t{-1}, int64_t{1} << 40, INT64_MIN, INT64_MAX}) {
      CHECK(stops([&](Batches& rows) { rows.offsets[17 * kFeatures + 1] = wrong; }) == 3);
      CHECK(stops([&](Batches& rows) { rows.offsets[15 * kFeatures] = wrong; }) <= 3);
    }
  }
}

}  // namespace
