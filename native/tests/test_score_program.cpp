#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "score_program.hpp"

namespace {

using widedeep::Activation;
using widedeep::AlignedFloats;
using widedeep::DenseLayer;
using widedeep::kChunk;
using widedeep::LayerWeights;
using widedeep::MapFunction;
using widedeep::ProgramRows;
using widedeep::ProgramView;
using widedeep::Reduction;
using widedeep::round_up;
using widedeep::rows_of_blocks;
using widedeep::ScoreProgram;
using widedeep::Side;

// Query and item have three fields of five numbers; out comes a layer of 20 units over attention
// of the item's fields on the query's, with the three largest of each line beside.
struct Model {
  std::vector<float> weight = std::vector<float>(20 * 24);
  std::vector<float> bias = std::vector<float>(20);
  std::vector<float> half{0.5f};
  ScoreProgram program{{15, 15, 0}};

  Model() {
    float next = 0.0f;
    for (auto* values : {&weight, &bias}) {
      for (float& value : *values)
        value = (next = next > 0.9f ? next - 0.93f : next + 0.07f) - 0.5f;
    }
    const std::int64_t scale = program.add_constant(half.data(), 1);
    const ProgramView one{0, 0, {0, 0, 0, 1}};
    const std::int64_t query =
        program.add_map(Side::query, MapFunction::tanh, {1, 1, 1, 15}, {one}, 0, 0);
    const std::int64_t turned = program.add_map(Side::query, MapFunction::copy, {1, 1, 5, 3},
                                                {{query, 0, {0, 0, 1, 5}}}, 0, 0);
    const std::int64_t item =
        program.add_map(Side::item, MapFunction::mul, {1, 1, 3, 5},
                        {{1, 0, {0, 0, 5, 1}}, {scale, 0, {0, 0, 0, 0}}}, 0, 0);
    const std::int64_t products = program.add_matmul(
        Side::pair, {1, 3, 5, 3}, {item, 0, {15, 5, 1, 0}}, {turned, 0, {15, 3, 1, 0}});
    const std::int64_t powers = program.add_map(Side::pair, MapFunction::exp, {1, 1, 1, 9},
                                                {{products, 0, {0, 0, 0, 1}}}, 0, 0);
    const std::int64_t sums =
        program.add_reduce(Side::pair, Reduction::sum, {1, 1, 3, 3}, {powers, 0, {0, 0, 3, 1}});
    const std::int64_t gates =
        program.add_map(Side::pair, MapFunction::div, {1, 1, 3, 3},
                        {{powers, 0, {0, 0, 3, 1}}, {sums, 0, {0, 0, 1, 0}}}, 0, 0);
    const std::int64_t mixed = program.add_matmul(
        Side::pair, {1, 3, 3, 5}, {gates, 0, {9, 3, 1, 0}}, {query, 0, {15, 5, 1, 0}});
    const std::int64_t top = program.add_top(Side::pair, 3, {1, 1, 3, 5}, {mixed, 0, {0, 0, 5, 1}});
    const std::int64_t beside = program.add_gather(Side::pair, {{mixed, 0, 15}, {top, 0, 9}});
    program.finish(program.add_linear(Side::pair, beside,
                                      LayerWeights{weight.data(), 24, bias.data(), 20, 24},
                                      Activation::relu));
  }
};

std::vector<float> numbers(std::size_t n) {
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) values[i] = std::sin(static_cast<float>(i) * 0.7f);
  return values;
}

bool is_refused(ScoreProgram& program, std::int64_t value, std::int64_t stride) {
  try {
    program.add_map(Side::item, MapFunction::relu, {1, 1, 2, 4}, {{value, 0, {0, 0, stride, 1}}}, 0,
                    0);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace

TEST(a_ranking_by_a_program_has_the_bits_of_its_rows) {
  const Model model;
  const ScoreProgram& program = model.program;
  const std::int64_t n = program.tile_rows();
  const std::vector<float> query = numbers(15);
  const std::vector<float> items = numbers(40 * 15);
  std::vector<std::int64_t> positions;
  std::vector<float> rows;
  for (std::int64_t row = 0; row < n; ++row) {
    positions.push_back(row * 7 % 40);
    const float* const item = items.data() + positions.back() * 15;
    rows.insert(rows.end(), query.begin(), query.end());
    rows.insert(rows.end(), item, item + 15);
  }
  std::vector<float> whole(static_cast<std::size_t>(n) * 20);
  program.run(rows.data(), n, whole.data());

  std::vector<float> kept_query(static_cast<std::size_t>(program.record_size(Side::query)));
  std::vector<float> kept_items(static_cast<std::size_t>(program.record_size(Side::item)) * 40);
  program.run_side(Side::query, query.data(), 1, kept_query.data());
  program.run_side(Side::item, items.data(), 40, kept_items.data());
  std::vector<float> ranked(whole.size());
  const ProgramRows records = {kept_items.data(), program.record_size(Side::item),
                               positions.data()};
  program.run_pair(kept_query.data(), records, nullptr, n, ranked.data());
  CHECK(std::memcmp(whole.data(), ranked.data(), whole.size() * sizeof(float)) == 0);

  for (std::int64_t row = 0; row < n; ++row) {
    std::vector<float> alone(20);
    program.run(rows.data() + row * 30, 1, alone.data());
    CHECK(std::memcmp(alone.data(), whole.data() + row * 20, 20 * sizeof(float)) == 0);
  }
}

TEST(a_program_refuses_what_lies_outside_of_its_values) {
  ScoreProgram program({0, 8, 4});
  CHECK(is_refused(program, 0, 1));  // the query's, and empty
  CHECK(is_refused(program, 2, 0));  // the pair's
  CHECK(is_refused(program, 3, 0));  // not there yet
  CHECK(is_refused(program, 1, 5));
  CHECK(!is_refused(program, 1, 4));
}

TEST(a_layer_over_plain_rows_has_the_bits_of_one_over_blocks) {
  for (const std::int64_t outputs : {1, 5, 16, 36, 129}) {
    const std::int64_t inputs = outputs + 3;
    const std::vector<float> weight = numbers(static_cast<std::size_t>(inputs * outputs));
    const DenseLayer layer({weight.data(), inputs, weight.data(), outputs, inputs}, 0,
                           Activation::relu);
    const std::int64_t block_rows = WIDEDEEP_DISPATCH(block_rows)();
    const std::int64_t width = std::max(round_up(inputs, kChunk), layer.tile_width());
    for (std::int64_t rows = 1; rows <= 2 * block_rows + 1; ++rows) {
      const std::int64_t row_stride = inputs + 2;
      std::vector<float> plain = numbers(static_cast<std::size_t>(rows * row_stride));
      plain[0] = 0.0f;
      const std::int64_t stride = block_rows * width;
      AlignedFloats blocks, sums;
      blocks.reserve(round_up(rows, block_rows) / block_rows * stride);
      sums.reserve(round_up(rows, block_rows) / block_rows * stride);
      for (std::int64_t row = 0; row < rows; ++row) {
        float* const block = blocks.data() + row / block_rows * stride;
        for (std::int64_t k = 0; k < inputs; ++k) {
          block[k / kChunk * block_rows * kChunk + row % block_rows * kChunk + k % kChunk] =
              plain[static_cast<std::size_t>(row * row_stride + k)];
        }
      }
      layer.run(blocks.data(), sums.data(), stride, rows);
      std::vector<float> expected(static_cast<std::size_t>(rows * outputs));
      rows_of_blocks(sums.data(), stride, rows, outputs, expected.data());
      std::vector<float> actual(expected.size());
      layer.run_rows(plain.data(), row_stride, rows, actual.data());
      CHECK(std::memcmp(actual.data(), expected.data(), actual.size() * sizeof(float)) == 0);
    }
  }
}
