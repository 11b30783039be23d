// The sparse kernels over small batches with empty cells, duplicates and faults: what the
// sanitizers watch. What they compute is held to the NumPy reference from Python.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.hpp"
#include "sparse.hpp"

using namespace widedeep;

namespace {

constexpr int64_t kExamples = 37, kFeatures = 3, kRows = 90, kWidth = 5;

// A batch with bags of 0 to 3 ids, and a table of three logical tables of 30 rows.
struct Fixture {
  std::vector<int64_t> ids, offsets{0}, bases{0, 30, 60}, sizes{30, 30, 30}, columns{0, 5, 10};
  std::vector<float> values, weights = std::vector<float>(kRows * kWidth);
  std::vector<int32_t> features{0, 1, 2}, tables{0, 1, 2};
  std::vector<int8_t> combiners{kSum, kMean, kSqrtN};
  std::vector<int64_t> rows, table_starts = std::vector<int64_t>(4);
  std::vector<int32_t> starts, order, cells;

  explicit Fixture(int64_t longest) {
    uint32_t state = 12345;
    const auto next = [&state] { return (state = state * 1664525u + 1013904223u) >> 8; };
    for (int64_t cell = 0; cell < kExamples * kFeatures; ++cell) {
      const int64_t length = longest == 0 ? 1 : next() % static_cast<uint32_t>(longest + 1);
      for (int64_t i = 0; i < length; ++i) {
        ids.push_back(next() % 30);
        values.push_back(static_cast<float>(next() % 7) - 3.0f);
      }
      offsets.push_back(static_cast<int64_t>(ids.size()));
    }
    for (float& weight : weights) weight = static_cast<float>(next() % 1000) / 500.0f - 1.0f;
    rows.resize(ids.size());
    order.resize(ids.size());
    cells.resize(ids.size());
    starts.resize(ids.size() + 1);
  }

  CsrBatch batch(bool with_values) const {
    return {ids.data(),
            offsets.data(),
            with_values ? values.data() : nullptr,
            static_cast<int64_t>(ids.size()),
            kExamples,
            kFeatures};
  }
  SlotList slots() const {
    return {features.data(), bases.data(), sizes.data(), combiners.data(), columns.data(), 3};
  }
  int64_t group(int threads) {
    return group_ids(
        {batch(false), {features.data(), tables.data(), 3, bases.data(), sizes.data(), 3}},
        {rows.data(), table_starts.data(), starts.data(), order.data(), cells.data()}, threads);
  }
};

}  // namespace

TEST(groups_hold_every_occurrence_once) {
  for (const int64_t longest : {0, 3}) {
    for (const int threads : {1, 3}) {
      Fixture f(longest);
      CHECK(f.group(threads) == (longest == 0 ? kSingle : kNoFault));
      const int64_t n_rows = f.table_starts[3];
      CHECK(f.starts[static_cast<size_t>(n_rows)] == static_cast<int32_t>(f.ids.size()));
      std::vector<int> seen(f.ids.size());
      for (size_t u = 0; u < static_cast<size_t>(n_rows); ++u) {
        for (int32_t j = f.starts[u]; j < f.starts[u + 1]; ++j) {
          const auto n = static_cast<size_t>(f.order[static_cast<size_t>(j)]);
          const int64_t table = f.cells[static_cast<size_t>(j)] % kFeatures;
          CHECK(f.rows[u] == table * 30 + f.ids[n]);
          CHECK(j == f.starts[u] ||
                f.order[static_cast<size_t>(j) - 1] < f.order[static_cast<size_t>(j)]);
          ++seen[n];
        }
      }
      for (const int count : seen) CHECK(count == 1);
    }
  }
}

TEST(faults_are_found_before_memory_is_touched) {
  for (const int threads : {1, 3}) {
    for (const int64_t bad : {int64_t{-1}, int64_t{30}, int64_t{1} << 62}) {
      Fixture f(3);
      f.ids[f.ids.size() / 2] = bad;
      const int64_t cell = f.group(threads);
      CHECK(cell >= 0);
      std::vector<float> out(kExamples * 15);
      const GatherRequest request = {
          f.batch(true), f.slots(), {f.weights.data(), kWidth, kWidth}, {out.data(), 15, 15}};
      CHECK(gather_pool(request, threads) == cell);
      CHECK(wide_forward({f.batch(true),
                          f.slots(),
                          {f.weights.data(), kWidth, kWidth},
                          {out.data(), 15, kWidth}},
                         threads) == cell);
    }
    for (const int64_t bad : {int64_t{-5}, int64_t{1} << 40}) {
      Fixture f(3);
      f.offsets[20] = bad;
      CHECK(f.group(threads) >= 0);
    }
    // Each of the first feature's cells is a good span by itself; together they exceed the ids.
    Fixture overlapping(3);
    for (size_t i = 0; i < overlapping.offsets.size(); ++i) {
      overlapping.offsets[i] =
          i % kFeatures == 1 ? static_cast<int64_t>(overlapping.ids.size()) : 0;
    }
    overlapping.features = {0};
    overlapping.tables = {0};
    CHECK(
        group_ids({overlapping.batch(false), overlapping.features.data(), overlapping.tables.data(),
                   1, overlapping.bases.data(), overlapping.sizes.data(), 3},
                  {overlapping.rows.data(), overlapping.table_starts.data(),
                   overlapping.starts.data(), overlapping.order.data(), overlapping.cells.data()},
                  threads) == 0);
  }
}

TEST(forward_backward_and_updates_do_not_depend_on_threads) {
  for (const bool with_values : {false, true}) {
    std::vector<std::vector<float>> results;
    for (const int threads : {1, 3}) {
      Fixture f(3);
      f.group(threads);
      const CsrBatch batch = f.batch(with_values);
      std::vector<float> out(kExamples * 17), logits(kExamples * kWidth);
      CHECK(
          gather_pool({batch, f.slots(), {f.weights.data(), kWidth, kWidth}, {out.data(), 17, 17}},
                      threads) == kNoFault);
      CHECK(wide_forward({batch,
                          f.slots(),
                          {f.weights.data(), kWidth, kWidth},
                          {logits.data(), kWidth, kWidth}},
                         threads) == kNoFault);
      std::vector<float> scale(kExamples * kFeatures, 1.0f);
      CHECK(cell_scales(batch, f.slots(), scale.data(), threads) == kNoFault);
      const int64_t n = f.table_starts[3];
      std::vector<float> sums(static_cast<size_t>(n * kWidth));
      segment_sum({f.starts.data(),
                   f.order.data(),
                   f.cells.data(),
                   n,
                   kFeatures,
                   f.columns.data(),
                   scale.data(),
                   batch.values,
                   {out.data(), 17, 17},
                   nullptr,
                   {nullptr, 0, kWidth},
                   {sums.data(), kWidth, kWidth}},
                  threads);
      std::vector<float> z(f.weights.size()), accumulator(f.weights.size(), 0.1f);
      const RowGradients gradients = {f.rows.data(), n, {sums.data(), kWidth, kWidth}, 0.5f};
      const Rows weights = {f.weights.data(), kWidth, kWidth};
      const Rows first = {z.data(), kWidth, kWidth}, second = {accumulator.data(), kWidth, kWidth};
      ftrl_rows({gradients, weights, first, second, 10.0f, 0.1f, 0.1f, 1.0f, -0.5f, 0.0f}, threads);
      ftrl_rows({gradients, weights, first, second, 10.0f, 0.1f, 0.1f, 1.0f, -0.3f, 0.1f}, threads);
      adagrad_rows({gradients, weights, second, 0.1f, 1e-7f, 0.01f}, threads);
      adam_rows({gradients, weights, first, second, 0.1f, 0.9f, 0.1f, 0.99f, 0.01f, 1e-8f, 0.99f},
                threads);
      momentum_rows({gradients, weights, first, 0.1f, 0.9f, true}, threads);
      rmsprop_rows({gradients, weights, second, {}, {}, 0.9f, 0.1f, 0.0f, 0.0f, 1e-3f, 1.0f, 0.1f},
                   threads);
      rmsprop_rows(
          {gradients, weights, second, {}, first, 0.9f, 0.1f, 0.5f, 1e-3f, 0.0f, 0.1f, 1.0f},
          threads);
      sgd_rows({{nullptr, kRows, {f.weights.data(), kWidth, kWidth}, 0.5f}, weights, 0.1f},
               threads);
      results.push_back(f.weights);
      results.push_back(out);
      results.push_back(logits);
    }
    for (size_t i = 0; i < 3; ++i) {
      CHECK(std::memcmp(results[i].data(), results[i + 3].data(),
                        results[i].size() * sizeof(float)) == 0);
      for (const float x : results[i]) CHECK(std::isfinite(x));
    }
  }
}

TEST(rows_are_copied_whole) {
  Fixture f(3);
  const std::vector<int64_t> picks = {36, 0, 5, 5, 17};
  std::vector<int64_t> offsets(picks.size() * kFeatures + 1);
  const int64_t n = take_offsets(f.batch(true), picks.data(), 5, offsets.data());
  CHECK(n == offsets.back());
  std::vector<int64_t> ids(static_cast<size_t>(n));
  std::vector<float> values(static_cast<size_t>(n));
  take_ids(f.batch(true), picks.data(), 5, offsets.data(), ids.data(), values.data(), 3);
  CHECK(std::memcmp(ids.data(), f.ids.data() + f.offsets[36 * kFeatures],
                    static_cast<size_t>(offsets[3]) * sizeof(int64_t)) == 0);
  f.offsets[4] = 1 << 20;
  CHECK(take_offsets(f.batch(true), picks.data(), 5, offsets.data()) == n);
  const std::vector<int64_t> bad = {1};
  CHECK(take_offsets(f.batch(true), bad.data(), 1, offsets.data()) == -1);
}

TEST(initial_rows_do_not_depend_on_where_they_are_made) {
  std::vector<float> whole(20 * kWidth), part(5 * kWidth);
  init_rows({{whole.data(), kWidth, kWidth}, 99, 0, 0.5f}, 20, 3);
  init_rows({{part.data(), kWidth, kWidth}, 99, 10, 0.5f}, 5, 1);
  CHECK(std::memcmp(part.data(), whole.data() + 10 * kWidth, part.size() * sizeof(float)) == 0);
}
