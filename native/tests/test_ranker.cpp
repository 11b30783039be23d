#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "check.hpp"
#include "ranker.hpp"
#include "score.hpp"

namespace {

using widedeep::Activation;
using widedeep::AlignedFloats;
using widedeep::BatchMismatch;
using widedeep::DenseLayer;
using widedeep::kChunk;
using widedeep::kMean;
using widedeep::kSum;
using widedeep::Products;
using widedeep::RankRequest;
using widedeep::RankScorer;
using widedeep::round_up;
using widedeep::ScoreBatch;
using widedeep::Scorer;
using widedeep::Side;
using widedeep::SlotTable;

constexpr std::int64_t kRows = 4;
constexpr std::int64_t kClasses = 3;
constexpr std::int64_t kUnits = 21;
constexpr std::int64_t kDense = 2;
constexpr std::int64_t kWidth = 18;
constexpr std::int64_t kInputs = kDense + 3 * kWidth;

// One slot a side, each wide and embedded; the dense numbers are the query's.
struct Model {
  std::vector<float> wide = std::vector<float>(kRows * kClasses);
  std::vector<float> table = std::vector<float>(kRows * kWidth);
  std::vector<float> weight = std::vector<float>(kUnits * kInputs);
  std::vector<float> bias = std::vector<float>(kUnits);
  std::vector<float> head = std::vector<float>(kClasses * kUnits);
  Scorer whole{3, kDense, kClasses};
  RankScorer factored{{1, 1, 1}, kDense, kClasses};

  explicit Model(Activation activation, Products products = Products::float32) {
    float next = 0.0f;
    for (auto* values : {&wide, &table, &weight, &bias, &head}) {
      for (float& value : *values) {
        value = next - 0.5f;
        next = next > 0.9f ? next - 0.93f : next + 0.07f;
      }
    }
    const auto rows = [&](std::int64_t slot, const std::vector<float>& data, std::int64_t width) {
      return SlotTable{slot, {data.data(), width, width}, kRows, slot == 1 ? kMean : kSum};
    };
    whole.add_dense(0, kDense);
    factored.add_dense(Side::query, 0, kDense);
    for (int side = 0; side < 3; ++side) {
      whole.add_wide(rows(side, wide, kClasses), side > 0);
      if (side == 1) whole.start_item_inputs();
      whole.add_embedding(rows(side, table, kWidth));
      SlotTable own = rows(side, wide, kClasses);
      own.slot = 0;
      factored.add_wide(static_cast<Side>(side), own);
      own = rows(side, table, kWidth);
      own.slot = 0;
      factored.add_embedding(static_cast<Side>(side), own);
    }
    whole.add_layer(weight.data(), bias.data(), kUnits, activation);
    whole.add_layer(head.data(), nullptr, kClasses, Activation::none);
    factored.add_layer(weight.data(), bias.data(), kUnits, activation);
    factored.add_layer(head.data(), nullptr, kClasses, Activation::none, products);
  }
};

// Cells of one slot: cell b has b % 3 ids, or one.
struct Cells {
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> offsets{0};
  std::vector<float> dense;

  Cells(std::int64_t n, bool ragged, std::int64_t first) {
    for (std::int64_t b = 0; b < n; ++b) {
      for (std::int64_t i = 0; i < (ragged ? b % 3 : 1); ++i)
        ids.push_back((first + b + i) % kRows);
      offsets.push_back(static_cast<std::int64_t>(ids.size()));
      for (std::int64_t k = 0; k < kDense; ++k) dense.push_back(0.3f * static_cast<float>(k + 1));
    }
  }

  std::int64_t size() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
  ScoreBatch view() const {
    return {{ids.data(), offsets.data(), nullptr, static_cast<std::int64_t>(ids.size()), size(), 1},
            dense.data(),
            kDense};
  }
};

struct Sums {
  std::vector<float> wide;
  std::vector<float> hidden;

  Sums(const Model& model, Side side, const Cells& cells, int threads)
      : wide(static_cast<std::size_t>(cells.size() * kClasses)),
        hidden(static_cast<std::size_t>(cells.size() * kUnits)) {
    model.factored.sums(side, cells.view(), threads, wide.data(), hidden.data());
  }
};

struct Logits {
  std::vector<float> wide;
  std::vector<float> deep;
};

struct Request {
  Cells query{1, false, 2};
  Cells items;
  Cells pairs;
  std::vector<std::int64_t> positions;

  Request(std::int64_t n_items, std::int64_t n) : items(n_items, true, 1), pairs(n, true, 3) {
    for (std::int64_t i = 0; i < n; ++i) positions.push_back((i * 7 + 3) % n_items);
  }

  // Each candidate as a whole row.
  Logits whole(const Model& model) const {
    std::vector<std::int64_t> ids;
    std::vector<std::int64_t> offsets{0};
    std::vector<float> dense;
    const auto n = static_cast<std::int64_t>(positions.size());
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t rows[] = {0, positions[static_cast<std::size_t>(i)], i};
      const Cells* const sides[] = {&query, &items, &pairs};
      for (int side = 0; side < 3; ++side) {
        const auto at = static_cast<std::size_t>(rows[side]);
        const auto begin = sides[side]->ids.begin();
        ids.insert(ids.end(), begin + sides[side]->offsets[at],
                   begin + sides[side]->offsets[at + 1]);
        offsets.push_back(static_cast<std::int64_t>(ids.size()));
      }
      dense.insert(dense.end(), query.dense.begin(), query.dense.end());
    }
    const ScoreBatch batch = {
        {ids.data(), offsets.data(), nullptr, static_cast<std::int64_t>(ids.size()), n, 3},
        dense.data(),
        kDense};
    Logits logits = empty();
    model.whole.forward(batch, 1, logits.wide.data(), logits.deep.data());
    return logits;
  }

  Logits factored(const Model& model, int threads, bool bfloat16 = false) const {
    const Sums kept_query(model, Side::query, query, 1);
    const Sums kept(model, Side::item, items, threads);
    std::vector<std::uint16_t> half;
    for (const float value : kept.hidden) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, &value, sizeof bits);
      half.push_back(static_cast<std::uint16_t>(bits >> 16));
    }
    Logits logits = empty();
    model.factored.rank({kept_query.wide.data(), kept_query.hidden.data(), kept.wide.data(),
                         bfloat16 ? nullptr : kept.hidden.data(), bfloat16 ? half.data() : nullptr,
                         items.size(), positions.data(), pairs.view()},
                        threads, logits.wide.data(), logits.deep.data());
    return logits;
  }

  Logits empty() const {
    const std::size_t size = positions.size() * kClasses;
    return {std::vector<float>(size), std::vector<float>(size)};
  }
};

}  // namespace

TEST(candidates_get_the_logits_of_whole_rows) {
  for (const Activation activation : {Activation::relu, Activation::tanh}) {
    const Model model(activation);
    for (const std::int64_t n : {0, 1, 5, 14, 15, 130, 400}) {
      const Request request(n % 7 + 1, n);
      const Logits expected = request.whole(model);
      for (const int threads : {1, 3}) {
        const Logits found = request.factored(model, threads);
        CHECK(found.wide == expected.wide);
        CHECK(found.deep == expected.deep);
      }
    }
  }
}

TEST(items_in_bfloat16_are_near) {
  const Model model(Activation::relu);
  const Request request(9, 50);
  const Logits expected = request.whole(model);
  const Logits found = request.factored(model, 1, true);
  CHECK(found.wide == expected.wide);
  CHECK(found.deep != expected.deep);
  for (std::size_t i = 0; i < found.deep.size(); ++i) {
    CHECK(std::abs(found.deep[i] - expected.deep[i]) < 0.05f);
  }
}

TEST(products_of_bfloat16_are_near_and_do_not_depend_on_threads) {
  const Model exact(Activation::relu);
  const Model model(Activation::relu, Products::bfloat16);
  for (const std::int64_t n : {0, 1, 7, 50, 301}) {
    const Request request(9, n);
    const Logits expected = request.whole(exact);
    const Logits found = request.factored(model, 1);
    CHECK(request.factored(model, 3).deep == found.deep);
    CHECK(n == 0 || found.deep != expected.deep);
    for (std::size_t i = 0; i < found.deep.size(); ++i) {
      CHECK(std::abs(found.deep[i] - expected.deep[i]) < 0.1f);
    }
  }
}

// One unit a sum, so that a wrong place of a unit, an input or a row shows.
TEST(layers_of_bfloat16_sum_small_integers_exactly) {
  for (const std::int64_t inputs : {1, 2, 15, 16, 31, 33, 64, 100}) {
    for (const std::int64_t outputs : {1, 16, 17, 32, 33, 64, 65, 130}) {
      std::vector<float> weight(static_cast<std::size_t>(outputs * inputs));
      std::vector<float> bias(static_cast<std::size_t>(outputs));
      for (std::size_t i = 0; i < weight.size(); ++i)
        weight[i] = static_cast<float>(i * 7 % 11) - 5;
      for (std::size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i % 3);
      const DenseLayer layer({weight.data(), inputs, bias.data(), outputs, inputs}, 0,
                             Activation::none, Products::bfloat16);
      const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
      const std::int64_t rows = block_rows + 3;
      const std::int64_t columns = std::max(round_up(inputs, kChunk), layer.tile_width());
      const std::int64_t stride = block_rows * columns;
      AlignedFloats in, out;
      in.reserve(2 * stride);
      out.reserve(2 * stride);
      const auto at = [&](std::int64_t row, std::int64_t column) {
        return row / block_rows * stride + column / kChunk * block_rows * kChunk +
               row % block_rows * kChunk + column % kChunk;
      };
      const auto value = [](std::int64_t row, std::int64_t k) {
        return k % 3 == 1 ? 0.0f : static_cast<float>((row * 5 + k * 3) % 9 - 4);
      };
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t k = 0; k < inputs; ++k) in.data()[at(row, k)] = value(row, k);
      }
      layer.run(in.data(), out.data(), stride, rows);
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t unit = 0; unit < outputs; ++unit) {
          float sum = bias[static_cast<std::size_t>(unit)];
          for (std::int64_t k = 0; k < inputs; ++k) {
            sum += value(row, k) * weight[static_cast<std::size_t>(unit * inputs + k)];
          }
          CHECK(out.data()[at(row, unit)] == sum);
        }
      }
    }
  }
}

TEST(requests_that_point_outside_are_refused) {
  const Model model(Activation::relu);
  const auto refused = [&](const Request& request) {
    try {
      request.factored(model, 2);
    } catch (const BatchMismatch&) {
      return true;
    }
    return false;
  };
  Request outside(5, 20);
  CHECK(!refused(outside));
  outside.positions[7] = 5;
  CHECK(refused(outside));
  outside.positions[7] = -1;
  CHECK(refused(outside));
  Request bad_pair(5, 20);
  bad_pair.pairs.ids[3] = kRows;
  CHECK(refused(bad_pair));
  Request bad_item(5, 20);
  bad_item.items.ids[1] = -2;
  CHECK(refused(bad_item));
  Request cut(5, 20);
  cut.pairs.ids.pop_back();
  CHECK(refused(cut));
}
