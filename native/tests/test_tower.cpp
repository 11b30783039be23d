#include <cmath>
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "tower.hpp"

namespace {

using widedeep::Rows;
using widedeep::TowerBatch;
using widedeep::TowerLayer;
using widedeep::TowerNorm;
using widedeep::UnitActivation;

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
    for (std::size_t i = 0; i < 3; ++i) {
      const std::int64_t inputs = widths[i];
      const std::int64_t outputs = widths[i + 1];
      const bool last = i == 2;
      layers.push_back({{weights[i].data(), inputs, inputs},
                        outputs,
                        last ? nullptr : biases[i].data(),
                        last ? UnitActivation::linear : UnitActivation::relu,
                        0.0f,
                        nullptr,
                        {outs[i].data(), outputs, outputs},
                        {grads[i].data(), outputs, outputs},
                        {},
                        {weight_grads[i].data(), inputs, inputs},
                        last ? nullptr : bias_grads[i].data()});
    }
    const TowerBatch batch{bf16, {in.data(), widths[0], widths[0]},     rows, layers.data(),
                           3,    {grad_in.data(), widths[0], widths[0]}};
    widedeep::tower_forward(batch, 0, threads);
    widedeep::TowerGradients(batch, threads).wait();
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

TEST(dropout_and_norms_do_not_depend_on_threads) {
  for (const std::int64_t rows : {2, 13, 61, 200}) {
    std::vector<float> results[2];
    for (const int threads : {1, 3}) {
      const std::int64_t width = 70;
      const auto n = static_cast<std::size_t>(rows * width);
      std::vector<float> in(n), out(n), grad(n), slope(n), normed(n), grad_in(n);
      std::vector<float> weight(static_cast<std::size_t>(width * width));
      std::vector<float> weight_grad(weight.size());
      std::vector<float> ones(70, 1.0f), zeros(70), first(70), second(70), mean(70), var(70);
      std::vector<float> inverse(70);
      for (std::size_t i = 0; i < n; ++i) {
        in[i] = static_cast<float>(i % 11) - 5.0f;
        grad[i] = static_cast<float>(i % 7) - 3.0f;
      }
      for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<float>(i % 5) - 2.0f;
      const TowerNorm norm{ones.data(), zeros.data(), first.data(),   second.data(),
                           mean.data(), var.data(),   inverse.data(), {normed.data(), width, width},
                           0.1f,        1e-5f};
      const TowerLayer layer{{weight.data(), width, width},
                             width,
                             nullptr,
                             UnitActivation::silu,
                             0.3f,
                             &norm,
                             {out.data(), width, width},
                             {grad.data(), width, width},
                             {slope.data(), width, width},
                             {weight_grad.data(), width, width},
                             nullptr};
      const TowerBatch batch{false, {in.data(), width, width},     rows, &layer,
                             1,     {grad_in.data(), width, width}};
      widedeep::tower_forward(batch, 7, threads);
      widedeep::TowerGradients(batch, threads).wait();
      std::vector<float>& result = results[threads == 1 ? 0 : 1];
      for (const auto* part : {&out, &grad_in, &weight_grad, &first, &second, &mean, &var}) {
        result.insert(result.end(), part->begin(), part->end());
      }
    }
    CHECK(results[0] == results[1]);
  }
}
