#include <cstring>
#include <vector>

#include "check.hpp"
#include "score.hpp"

namespace {

using widedeep::Activation;
using widedeep::BatchMismatch;
using widedeep::kMean;
using widedeep::kSum;
using widedeep::ScoreBatch;
using widedeep::Scorer;
using widedeep::SlotTable;

// Two slots (the second the item's), three dense numbers, 20 units, five classes.
struct Model {
  std::vector<float> wide = std::vector<float>(4 * 5);
  std::vector<float> table = std::vector<float>(4 * 18);
  std::vector<float> weight = std::vector<float>(20 * 39);
  std::vector<float> bias = std::vector<float>(20);
  std::vector<float> head = std::vector<float>(5 * 20);
  Scorer scorer{2, 3, 5};

  Model() {
    float next = 0.0f;
    for (auto* values : {&wide, &table, &weight, &bias, &head}) {
      for (float& value : *values) {
        value = next - 0.5f;
        next = next > 0.9f ? next - 0.93f : next + 0.07f;
      }
    }
    for (int slot = 0; slot < 2; ++slot) {
      scorer.add_wide(SlotTable{slot, {wide.data(), 5, 5}, 4, kSum}, slot == 1);
    }
    scorer.add_embedding(SlotTable{0, {table.data(), 18, 18}, 4, kMean});
    scorer.add_dense(0, 3);
    scorer.start_item_inputs();
    scorer.add_embedding(SlotTable{1, {table.data(), 18, 18}, 4, kSum});
    scorer.add_layer(weight.data(), bias.data(), 20, Activation::relu);
    scorer.add_layer(head.data(), nullptr, 5, Activation::none);
  }
};

// Row b has b % 3 ids in its first cell and one in its second.
struct Rows {
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> offsets{0};
  std::vector<float> values;
  std::vector<float> dense;

  explicit Rows(int n) {
    for (int b = 0; b < n; ++b) {
      for (int i = 0; i < b % 3 + 1; ++i) {
        if (i == b % 3) offsets.push_back(static_cast<std::int64_t>(ids.size()));
        ids.push_back((b + i) % 4);
        values.push_back(0.25f * static_cast<float>(i + 1));
      }
      offsets.push_back(static_cast<std::int64_t>(ids.size()));
      for (int k = 0; k < 3; ++k) dense.push_back(0.1f * static_cast<float>(b % 7 - k));
    }
  }

  ScoreBatch view(bool weighted) const {
    const auto n = static_cast<std::int64_t>(offsets.size()) / 2;
    return {{ids.data(), offsets.data(), weighted ? values.data() : nullptr,
             static_cast<std::int64_t>(ids.size()), n, 2},
            dense.data(),
            3};
  }
};

struct Logits {
  std::vector<float> wide;
  std::vector<float> deep;
};

Logits score(const Model& model, const Rows& rows, bool weighted, int threads) {
  const ScoreBatch batch = rows.view(weighted);
  const auto size = static_cast<std::size_t>(batch.csr.n_examples * 5);
  Logits logits{std::vector<float>(size), std::vector<float>(size)};
  model.scorer.forward(batch, threads, logits.wide.data(), logits.deep.data());
  return logits;
}

template <class Fn>
bool refused(Fn&& fn) {
  try {
    fn();
  } catch (const BatchMismatch&) {
    return true;
  }
  return false;
}

}  // namespace

TEST(logits_do_not_depend_on_threads_or_on_the_rows_beside) {
  const Model model;
  const Rows many(301);
  for (const bool weighted : {false, true}) {
    const Logits whole = score(model, many, weighted, 1);
    for (const int threads : {2, 3, 8}) {
      const Logits other = score(model, many, weighted, threads);
      CHECK(other.wide == whole.wide);
      CHECK(other.deep == whole.deep);
    }
    for (const int n : {1, 2, 13, 40}) {
      const Logits first = score(model, Rows(n), weighted, 1);
      CHECK(std::memcmp(first.deep.data(), whole.deep.data(), first.deep.size() * 4) == 0);
    }
  }
}

TEST(the_deep_input_is_laid_out_source_after_source) {
  const Model model;
  const Rows rows(50);
  std::vector<float> out(50 * 39);
  model.scorer.concat(rows.view(false), 2, out.data());
  for (std::size_t b = 0; b < 50; ++b) {
    const float* row = out.data() + b * 39;
    CHECK(std::memcmp(row + 18, rows.dense.data() + b * 3, 12) == 0);
    const std::int64_t id = rows.ids[static_cast<std::size_t>(rows.offsets[2 * b + 1])];
    CHECK(std::memcmp(row + 21, model.table.data() + id * 18, 18 * 4) == 0);
  }
}

TEST(batches_that_point_outside_are_refused) {
  const Model model;
  Rows bad_id(9);
  bad_id.ids[5] = 4;
  CHECK(refused([&] { score(model, bad_id, false, 2); }));
  Rows negative(9);
  negative.ids[5] = -1;
  CHECK(refused([&] { score(model, negative, true, 1); }));
  Rows falling(9);
  falling.offsets[4] = 1000;
  CHECK(refused([&] { score(model, falling, false, 1); }));
  Rows cut(9);
  cut.ids.pop_back();
  CHECK(refused([&] { score(model, cut, false, 1); }));
}
