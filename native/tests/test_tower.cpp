#include <cmath>
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "tower.hpp"

namespace {

using widedeep::ConstRows;
using widedeep::Rows;
using widedeep::TowerLayer;

// A tower of three layers over `rows` rows; numbers are small integers, so that sums are exact.
struct Tower {
  explicit Tower(std::int64_t n) : rows(n) {
    for (std::size_t i = 0; i < 3; ++i) {
      fill(weights[i], widths[i] * widths[i + 1]);
      fill(biases[i], widths[i + 1]);
      outs[i].assign(size(widths[i + 1]), -1.0f);
      grads[i].assign(size(widths[i + 1]), -1.0f);
      weight_grads[i].assign(weights[i].size(), -1.0f);
      bias_grads[i].assign(biases[i].size(), -1.0f);
    }
    fill(in, rows * widths[0]);
    fill(grads[2], rows * widths[3]);
    grad_in.assign(in.size(), -1.0f);
  }

  std::size_t size(std::int64_t width) const { return static_cast<std::size_t>(rows * width); }

  void fill(std::vector<float>& values, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      values.push_back(static_cast<float>(next));
      next = next == 3 ? -3 : next + 1;
    }
  }

  void run(int threads) {
    std::vector<TowerLayer> layers;
    std::vector<Rows> out_rows;
    std::vector<Rows> grad_rows;
    std::vector<Rows> weight_rows;
    std::vector<ConstRows> read;
    std::vector<float*> bias_rows;
    for (std::size_t i = 0; i < 3; ++i) {
      const std::int64_t inputs = widths[i];
      const std::int64_t outputs = widths[i + 1];
      const bool last = i == 2;
      layers.push_back(
          {{weights[i].data(), inputs, inputs}, outputs, last ? nullptr : biases[i].data()});
      out_rows.push_back({outs[i].data(), outputs, outputs});
      read.push_back({outs[i].data(), outputs, outputs});
      grad_rows.push_back({grads[i].data(), outputs, outputs});
      weight_rows.push_back({weight_grads[i].data(), inputs, inputs});
      bias_rows.push_back(last ? nullptr : bias_grads[i].data());
    }
    const ConstRows input{in.data(), widths[0], widths[0]};
    widedeep::tower_forward({bf16, input, rows, layers.data(), 3, out_rows.data()}, threads);
    widedeep::TowerGradients gradients({bf16,
                                        input,
                                        rows,
                                        layers.data(),
                                        3,
                                        read.data(),
                                        {grads[2].data(), widths[3], widths[3]},
                                        grad_rows.data(),
                                        {grad_in.data(), widths[0], widths[0]},
                                        weight_rows.data(),
                                        bias_rows.data()},
                                       threads);
    gradients.wait();
  }

  // The same by plain loops, from what the forward pass left.
  void check() const {
    std::vector<float> below = in;
    for (std::size_t i = 0; i < 3; ++i) {
      check_layer(i, below);
      below = outs[i];
    }
  }

  void check_layer(std::size_t i, const std::vector<float>& below) const {
    const std::int64_t inputs = widths[i];
    const std::int64_t outputs = widths[i + 1];
    for (std::int64_t n = 0; n < outputs; ++n) {
      float bias_sum = 0.0f;
      for (std::int64_t b = 0; b < rows; ++b) {
        float sum = 0.0f;
        for (std::int64_t k = 0; k < inputs; ++k) {
          sum += at(below, b, k, inputs) * at(weights[i], n, k, inputs);
        }
        if (i < 2) sum = std::fmax(0.0f, sum + biases[i][static_cast<std::size_t>(n)]);
        CHECK(at(outs[i], b, n, outputs) == sum);
        bias_sum += at(grads[i], b, n, outputs);
      }
      if (i < 2) CHECK(bias_grads[i][static_cast<std::size_t>(n)] == bias_sum);
    }
    for (std::int64_t k = 0; k < inputs; ++k) {
      for (std::int64_t b = 0; b < rows; ++b) {
        float sum = 0.0f;
        for (std::int64_t n = 0; n < outputs; ++n) {
          sum += at(grads[i], b, n, outputs) * at(weights[i], n, k, inputs);
        }
        const bool off = i > 0 && at(below, b, k, inputs) <= 0.0f;
        CHECK(at(i == 0 ? grad_in : grads[i - 1], b, k, inputs) == (off ? 0.0f : sum));
      }
      for (std::int64_t n = 0; n < outputs; ++n) {
        float sum = 0.0f;
        for (std::int64_t b = 0; b < rows; ++b) {
          sum += at(grads[i], b, n, outputs) * at(below, b, k, inputs);
        }
        CHECK(at(weight_grads[i], n, k, inputs) == sum);
      }
    }
  }

  static float at(const std::vector<float>& values, std::int64_t row, std::int64_t column,
                  std::int64_t width) {
    return values[static_cast<std::size_t>(row * width + column)];
  }

  std::int64_t rows;
  bool bf16 = false;
  int next = -3;
  std::int64_t widths[4] = {35, 17, 5, 2};
  std::vector<float> in{};
  std::vector<float> weights[3]{};
  std::vector<float> biases[3]{};
  std::vector<float> outs[3]{};
  std::vector<float> grads[3]{};
  std::vector<float> weight_grads[3]{};
  std::vector<float> bias_grads[3]{};
  std::vector<float> grad_in{};
};

}  // namespace

TEST(a_tower_is_the_sum_that_plain_loops_make) {
  for (const std::int64_t rows : {1, 2, 13, 16, 61}) {
    for (const int threads : {1, 3}) {
      Tower tower(rows);
      tower.run(threads);
      tower.check();
    }
  }
}

TEST(a_tower_in_bfloat16_does_not_depend_on_threads) {
  if (!widedeep::has_bf16_products()) return;
  for (const std::int64_t rows : {1, 16, 61, 200}) {
    Tower one(rows);
    Tower many(rows);
    one.bf16 = many.bf16 = true;
    one.run(1);
    many.run(3);
    CHECK(one.grad_in == many.grad_in);
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(one.outs[i] == many.outs[i]);
      CHECK(one.weight_grads[i] == many.weight_grads[i]);
    }
  }
}
