// Blocks of towers, forward and backward, against the same equations in double precision: outputs
// as they are, gradients against central differences of a weighed sum of the outputs. Arrays are as
// long as they must be, so that a sanitizer sees what reaches beyond them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <numeric>
#include <vector>

#include "bilinear_products.hpp"
#include "check.hpp"
#include "dice.hpp"
#include "exp_norm.hpp"
#include "field_attention.hpp"
#include "field_convolution.hpp"
#include "gru.hpp"
#include "pair_attention.hpp"
#include "pair_products.hpp"

namespace {

using Floats = std::vector<float>;
using Numbers = std::vector<double>;
using Block = std::function<Numbers(const Numbers&)>;  // all inputs, one after the other -> outputs

std::size_t as_size(std::int64_t n) { return static_cast<std::size_t>(n); }

// Numbers between -1 and 1 that a position decides.
Floats numbers(std::int64_t count, std::uint32_t seed) {
  Floats values(as_size(count));
  std::uint32_t state = seed * 2654435761u + 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
  }
  return values;
}

Floats zeros(std::int64_t count) { return Floats(as_size(count), 0.0f); }

Floats joined(std::initializer_list<Floats> parts) {
  Floats all;
  for (const Floats& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

bool close(const Floats& got, const Numbers& expected) {
  if (got.size() != expected.size()) return false;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (!(std::fabs(got[i] - expected[i]) <= 2e-4 * std::max(1.0, std::fabs(expected[i])))) {
      std::printf("at %zu: got %g, expected %g\n", i, static_cast<double>(got[i]), expected[i]);
      return false;
    }
  }
  return true;
}

Numbers outputs(const Block& block, const Floats& inputs) {
  return block(Numbers(inputs.begin(), inputs.end()));
}

// d/dx_i sum_j weights_j block(x)_j
Numbers slopes(const Block& block, const Floats& inputs, const Floats& weights) {
  constexpr double kStep = 1e-5;
  Numbers x(inputs.begin(), inputs.end());
  Numbers result(x.size());
  const auto total = [&] {
    const Numbers out = block(x);
    return std::inner_product(out.begin(), out.end(), weights.begin(), 0.0);
  };
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double before = x[i];
    x[i] = before + kStep;
    const double above = total();
    x[i] = before - kStep;
    result[i] = (above - total()) / (2.0 * kStep);
    x[i] = before;
  }
  return result;
}

widedeep::ConstRows read_rows(const Floats& values, std::int64_t width) {
  return {values.data(), width, width};
}

widedeep::Rows write_rows(Floats& values, std::int64_t width) {
  return {values.data(), width, width};
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// Mean and variance of every column of (rows, width).
void moments(const double* values, std::int64_t rows, std::int64_t width, Numbers& mean,
             Numbers& variance) {
  mean.assign(as_size(width), 0.0);
  variance.assign(as_size(width), 0.0);
  for (std::int64_t i = 0; i < rows * width; ++i) {
    mean[as_size(i % width)] += values[i] / static_cast<double>(rows);
  }
  for (std::int64_t i = 0; i < rows * width; ++i) {
    const double difference = values[i] - mean[as_size(i % width)];
    variance[as_size(i % width)] += difference * difference / static_cast<double>(rows);
  }
}

constexpr int kThreads[] = {1, 3};

}  // namespace

// ---- gated recurrent unit -----------------------------------------------------------------------

namespace {

struct GruShape {
  std::int64_t steps, width;
  std::vector<std::uint8_t> mask;

  std::int64_t rows() const { return static_cast<std::int64_t>(mask.size()) / steps; }
  std::int64_t events() const { return std::accumulate(mask.begin(), mask.end(), std::int64_t{0}); }

  // Inputs (N, 3 H), state weight (3 H, H), weights (N) -> states (N, H).
  Numbers operator()(const Numbers& x) const {
    const std::int64_t h = width;
    const double* const weight = x.data() + events() * 3 * h;
    const double* const factors = weight + 3 * h * h;
    Numbers states(as_size(events() * h));
    std::int64_t event = 0;
    for (std::int64_t row = 0; row < rows(); ++row) {
      Numbers state(as_size(h), 0.0);
      for (std::int64_t t = 0; t < steps; ++t) {
        if (mask[as_size(row * steps + t)] == 0) continue;
        const Numbers before = state;
        const auto product = [&](std::int64_t unit) {
          return std::inner_product(before.begin(), before.end(), weight + unit * h, 0.0);
        };
        for (std::int64_t i = 0; i < h; ++i) {
          const double* const in = x.data() + event * 3 * h + i;
          const double update = sigmoid(in[0] + product(i));
          const double reset = sigmoid(in[h] + product(h + i));
          const double candidate = std::tanh(in[2 * h] + reset * product(2 * h + i));
          state[as_size(i)] += factors[event] * update * (candidate - before[as_size(i)]);
        }
        std::copy(state.begin(), state.end(), states.begin() + event * h);
        ++event;
      }
    }
    return states;
  }
};

void check_gru(const GruShape& shape) {
  const std::int64_t n = shape.events();
  const std::int64_t h = shape.width;
  const Floats inputs = numbers(n * 3 * h, 1);
  const Floats weight = numbers(3 * h * h, 2);
  const Floats factors = numbers(n, 3);
  const Floats grad_out = numbers(n * h, 4);
  const Floats all = joined({inputs, weight, factors});
  const Numbers expected = slopes(shape, all, grad_out);
  for (const int threads : kThreads) {
    Floats states = zeros(n * h);
    Floats saved = zeros(n * 4 * h);
    const widedeep::Gru request{shape.rows(),      shape.steps,   h,
                                shape.mask.data(), inputs.data(), weight.data(),
                                factors.data(),    states.data(), saved.data()};
    widedeep::gru(request, threads);
    CHECK(close(states, outputs(shape, all)));
    Floats grad_inputs = zeros(n * 3 * h);
    Floats grad_products = zeros(n * 3 * h);
    Floats grad_factors = zeros(n);
    widedeep::gru_grad(
        request, {grad_out.data(), grad_inputs.data(), grad_products.data(), grad_factors.data()},
        threads);
    // The products' gradients times the states before make those of the weight.
    Floats grad_weight = zeros(3 * h * h);
    std::int64_t event = 0;
    for (std::int64_t row = 0; row < shape.rows(); ++row) {
      bool has_state = false;
      for (std::int64_t t = 0; t < shape.steps; ++t) {
        if (shape.mask[as_size(row * shape.steps + t)] == 0) continue;
        for (std::int64_t i = 0; has_state && i < 3 * h * h; ++i) {
          grad_weight[as_size(i)] += grad_products[as_size(event * 3 * h + i / h)] *
                                     states[as_size((event - 1) * h + i % h)];
        }
        has_state = true;
        ++event;
      }
    }
    CHECK(close(joined({grad_inputs, grad_weight, grad_factors}), expected));
  }
}

}  // namespace

TEST(gru_is_its_equation_and_gradient) {
  check_gru({1, 1, {1}});
  check_gru({3, 5, {1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1}});
  std::vector<std::uint8_t> mask;
  for (std::int64_t row = 0; row < 2 * widedeep::kGruRows + 3; ++row) {
    for (std::int64_t t = 0; t < 2; ++t) mask.push_back(t <= row % 3 - 1 ? 1 : 0);
  }
  check_gru({2, 1, mask});
  check_gru({2, 17, {1, 1, 0, 1}});
}

// ---- Dice ---------------------------------------------------------------------------------------

namespace {

constexpr float kEpsilon = 1e-3f;

void check_dice(std::int64_t rows, std::int64_t width) {
  const Block block = [&](const Numbers& x) {
    Numbers mean;
    Numbers variance;
    moments(x.data(), rows, width, mean, variance);
    Numbers out(as_size(rows * width));
    for (std::int64_t i = 0; i < rows * width; ++i) {
      const std::size_t column = as_size(i % width);
      const double sum = x[as_size(i)];
      const double gate = sigmoid((sum - mean[column]) / std::sqrt(variance[column] + kEpsilon));
      out[as_size(i)] = sum * (gate + (1.0 - gate) * x[as_size(rows * width) + column]);
    }
    return out;
  };
  const Floats sums = numbers(rows * width, 1);
  const Floats alpha = numbers(width, 2);
  const Floats grad_out = numbers(rows * width, 3);
  const Floats all = joined({sums, alpha});
  const Numbers expected = slopes(block, all, grad_out);
  for (const int threads : kThreads) {
    Floats mean = zeros(width);
    Floats variance = zeros(width);
    Floats out = zeros(rows * width);
    const widedeep::Dice request{rows,        width,           sums.data(), alpha.data(),
                                 mean.data(), variance.data(), kEpsilon,    out.data()};
    widedeep::dice(request, threads);
    CHECK(close(out, outputs(block, all)));
    Floats grad_sums = zeros(rows * width);
    Floats grad_alpha = zeros(width);
    widedeep::dice_grad(request, {grad_out.data(), grad_sums.data(), grad_alpha.data()}, threads);
    CHECK(close(joined({grad_sums, grad_alpha}), expected));
  }
}

}  // namespace

TEST(dice_is_its_equation_and_gradient) {
  check_dice(2, 1);
  check_dice(7, 19);
  check_dice(widedeep::kDiceRows + 5, 1);
}

// ---- attention between fields -------------------------------------------------------------------

namespace {

void check_field_attention(std::int64_t rows, std::int64_t fields, std::int64_t heads,
                           std::int64_t units) {
  const std::int64_t line = heads * units;
  constexpr float kScale = 0.7f;
  const Block block = [&](const Numbers& x) {
    Numbers out;
    for (std::int64_t i = 0; i < rows * fields; ++i) {
      const double* const row = x.data() + i / fields * fields * 4 * line;
      for (std::int64_t head = 0; head < heads; ++head) {
        const auto part = [&](std::int64_t field, std::int64_t which) {
          return row + (field * 4 + which) * line + head * units;
        };
        Numbers attention;
        for (std::int64_t j = 0; j < fields; ++j) {
          const double* const query = part(i % fields, 0);
          attention.push_back(
              std::exp(kScale * std::inner_product(query, query + units, part(j, 1), 0.0)));
        }
        const double total = std::accumulate(attention.begin(), attention.end(), 0.0);
        for (std::int64_t u = 0; u < units; ++u) {
          double sum = part(i % fields, 3)[u];
          for (std::int64_t j = 0; j < fields; ++j) {
            sum += attention[as_size(j)] / total * part(j, 2)[u];
          }
          out.push_back(std::max(sum, 0.0));
        }
      }
    }
    return out;
  };
  const Floats projected = numbers(rows * fields * 4 * line, 1);
  const Floats grad_out = numbers(rows * fields * line, 2);
  const Numbers expected = slopes(block, projected, grad_out);
  for (const int threads : kThreads) {
    Floats out = zeros(rows * fields * line);
    const widedeep::FieldAttention request{rows,   fields,           heads,     units,
                                           kScale, projected.data(), out.data()};
    widedeep::field_attention(request, threads);
    CHECK(close(out, outputs(block, projected)));
    Floats grad = zeros(rows * fields * 4 * line);
    widedeep::field_attention_grad(request, {grad_out.data(), grad.data()}, threads);
    CHECK(close(grad, expected));
  }
}

}  // namespace

TEST(field_attention_is_its_equation_and_gradient) {
  check_field_attention(1, 1, 1, 1);
  check_field_attention(3, 5, 2, 3);
  check_field_attention(2, 3, 1, 17);
}

// ---- convolution over fields --------------------------------------------------------------------

namespace {

void check_field_convolution(widedeep::FieldConvolution request) {
  const auto& r = request;
  const std::int64_t inputs = r.rows * r.maps * r.fields * r.dim;
  const std::int64_t count = r.rows * r.filters * r.k * r.dim;
  const Block block = [&](const Numbers& x) {
    const double* const weight = x.data() + inputs;
    const double* const bias = weight + r.filters * r.maps * r.width;
    Numbers out(as_size(count));
    for (std::int64_t at = 0; at < r.rows * r.filters * r.dim; ++at) {
      const std::int64_t row = at / (r.filters * r.dim);
      const std::int64_t filter = at / r.dim % r.filters;
      Numbers values;
      for (std::int64_t field = 0; field < r.fields; ++field) {
        double sum = bias[filter];
        for (std::int64_t m = 0; m < r.maps * r.width; ++m) {
          const std::int64_t from = field + m % r.width - (r.width - 1) / 2;
          if (from < 0 || from >= r.fields) continue;
          sum += weight[filter * r.maps * r.width + m] *
                 x[as_size(((row * r.maps + m / r.width) * r.fields + from) * r.dim + at % r.dim)];
        }
        values.push_back(std::tanh(sum));
      }
      std::sort(values.rbegin(), values.rend());
      for (std::int64_t i = 0; i < r.k; ++i) {
        out[as_size(((row * r.filters + filter) * r.k + i) * r.dim + at % r.dim)] =
            values[as_size(i)];
      }
    }
    return out;
  };
  const Floats input = numbers(inputs, 1);
  const Floats weight = numbers(r.filters * r.maps * r.width, 2);
  const Floats bias = numbers(r.filters, 3);
  const Floats grad_out = numbers(count, 4);
  const Floats all = joined({input, weight, bias});
  const Numbers expected = slopes(block, all, grad_out);
  for (const int threads : kThreads) {
    Floats out = zeros(count);
    std::vector<std::uint8_t> positions(as_size(count));
    request.input = input.data();
    request.weight = weight.data();
    request.bias = bias.data();
    request.out = out.data();
    request.positions = positions.data();
    widedeep::field_convolution(request, threads);
    CHECK(close(out, outputs(block, all)));
    Floats grad_input = zeros(inputs);
    Floats grad_weight = zeros(r.filters * r.maps * r.width);
    Floats grad_bias = zeros(r.filters);
    widedeep::field_convolution_grad(request, {grad_out.data(), grad_input.data(), nullptr},
                                     grad_weight.data(), grad_bias.data(), threads);
    CHECK(close(joined({grad_input, grad_weight, grad_bias}), expected));
  }
}

widedeep::FieldConvolution convolution(std::int64_t rows, std::int64_t maps, std::int64_t fields,
                                       std::int64_t dim, std::int64_t filters, std::int64_t width,
                                       std::int64_t k) {
  return {rows, maps, fields, dim, filters, width, k, nullptr, nullptr, nullptr, nullptr, nullptr};
}

}  // namespace

TEST(field_convolution_is_its_equation_and_gradient) {
  check_field_convolution(convolution(1, 1, 1, 1, 1, 1, 1));
  check_field_convolution(convolution(3, 2, 5, 3, 2, 4, 2));
  check_field_convolution(convolution(2, 1, 3, widedeep::kConvolutionLanes + 1, 3, 5, 3));
  check_field_convolution(convolution(widedeep::kConvolutionRows + 1, 1, 2, 1, 1, 2, 1));
}

// ---- bilinear products --------------------------------------------------------------------------

namespace {

void check_bilinear_products(std::int64_t rows, std::int64_t fields, std::int64_t dim,
                             std::int64_t extra) {
  const std::int64_t pairs = fields * (fields - 1) / 2;
  const std::int64_t width = 2 * pairs * dim + extra;
  const std::int64_t right_at = rows * pairs * dim;
  const std::int64_t gates_at = right_at + rows * fields * dim;
  const Floats further = numbers(rows * extra, 9);
  const Block block = [&](const Numbers& x) {
    Numbers out(as_size(rows * width));
    for (std::int64_t row = 0; row < rows; ++row) {
      double* const to = out.data() + row * width;
      std::int64_t pair = 0;
      for (std::int64_t i = 0; i < fields; ++i) {
        for (std::int64_t j = i + 1; j < fields; ++j, ++pair) {
          const double gate =
              x[as_size(gates_at + row * fields + i)] * x[as_size(gates_at + row * fields + j)];
          for (std::int64_t d = 0; d < dim; ++d) {
            const double product = x[as_size((row * pairs + pair) * dim + d)] *
                                   x[as_size(right_at + (row * fields + j) * dim + d)];
            to[pair * dim + d] = gate * product;
            to[(pairs + pair) * dim + d] = product;
          }
        }
      }
      std::copy_n(further.begin() + row * extra, extra, to + 2 * pairs * dim);
    }
    return out;
  };
  const Floats left = numbers(rows * pairs * dim, 1);
  const Floats right = numbers(rows * fields * dim, 2);
  const Floats gates = numbers(rows * fields, 3);
  const Floats grad_out = numbers(rows * width, 4);
  const Floats all = joined({left, right, gates});
  const Numbers expected = slopes(block, all, grad_out);
  for (const int threads : kThreads) {
    Floats out = zeros(rows * width);
    const widedeep::BilinearProducts request{fields,
                                             dim,
                                             read_rows(left, pairs * dim),
                                             read_rows(right, fields * dim),
                                             read_rows(gates, fields),
                                             read_rows(further, extra),
                                             write_rows(out, width)};
    widedeep::bilinear_products(request, rows, threads);
    CHECK(close(out, outputs(block, all)));
    Floats grad_left = zeros(rows * pairs * dim);
    Floats grad_right = zeros(rows * fields * dim);
    Floats grad_gates = zeros(rows * fields);
    widedeep::bilinear_products_grad(
        request,
        {read_rows(grad_out, width), write_rows(grad_left, pairs * dim),
         write_rows(grad_right, fields * dim), write_rows(grad_gates, fields)},
        rows, threads);
    CHECK(close(joined({grad_left, grad_right, grad_gates}), expected));
  }
}

}  // namespace

TEST(bilinear_products_are_their_equation_and_gradient) {
  check_bilinear_products(1, 2, 1, 0);
  check_bilinear_products(3, 4, 5, 2);
  check_bilinear_products(2, 3, 17, 1);
}

// ---- logarithmic neurons ------------------------------------------------------------------------

namespace {

void check_exp_norm(std::int64_t rows, std::int64_t dim, std::int64_t width) {
  const std::int64_t count = rows * dim * width;
  const Block block = [&](const Numbers& x) {
    Numbers values(as_size(count));
    for (std::int64_t i = 0; i < count; ++i) values[as_size(i)] = std::exp(x[as_size(i)]);
    Numbers mean;
    Numbers variance;
    moments(values.data(), rows * dim, width, mean, variance);
    Numbers out(as_size(count));
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t row = i / (dim * width);
      const std::int64_t d = i / width % dim;
      const std::size_t unit = as_size(i % width);
      const double normed =
          (values[as_size(i)] - mean[unit]) / std::sqrt(variance[unit] + kEpsilon);
      out[as_size((row * width + i % width) * dim + d)] =
          normed * x[as_size(count) + unit] + x[as_size(count + width) + unit];
    }
    return out;
  };
  const Floats sums = numbers(count, 1);
  const Floats weight = numbers(width, 2);
  const Floats bias = numbers(width, 3);
  const Floats grad_out = numbers(count, 4);
  const Floats all = joined({sums, weight, bias});
  const Numbers expected = slopes(block, all, grad_out);
  for (const int threads : kThreads) {
    Floats values = sums;
    Floats mean = zeros(width);
    Floats variance = zeros(width);
    Floats out = zeros(count);
    const widedeep::ExpNorm request{rows,          dim,         width,       values.data(),
                                    weight.data(), bias.data(), mean.data(), variance.data(),
                                    kEpsilon,      out.data()};
    widedeep::exp_norm(request, threads);
    CHECK(close(out, outputs(block, all)));
    Floats grad_sums = zeros(count);
    Floats grad_weight = zeros(width);
    Floats grad_bias = zeros(width);
    widedeep::exp_norm_grad(
        request, {grad_out.data(), grad_sums.data(), grad_weight.data(), grad_bias.data()},
        threads);
    CHECK(close(joined({grad_sums, grad_weight, grad_bias}), expected));
  }
}

}  // namespace

TEST(exp_norm_is_its_equation_and_gradient) {
  check_exp_norm(2, 1, 1);
  check_exp_norm(3, 4, 19);
  check_exp_norm(widedeep::kExpNormRows + 1, 2, 3);
}

// ---- attention over pairs -----------------------------------------------------------------------

namespace {

void check_pair_attention(std::int64_t rows, std::int64_t fields, std::int64_t dim,
                          std::int64_t units) {
  const std::int64_t pairs = fields * (fields - 1) / 2;
  const Block block = [&](const Numbers& x) {
    const double* const weight = x.data() + rows * fields * dim;
    const double* const bias = weight + units * dim;
    const double* const score = bias + units;
    Numbers out;
    for (std::int64_t row = 0; row < rows; ++row) {
      const double* const v = x.data() + row * fields * dim;
      Numbers sum(as_size(dim), 0.0);
      double total = 0.0;
      for (std::int64_t i = 0; i < fields; ++i) {
        for (std::int64_t j = i + 1; j < fields; ++j) {
          double logit = 0.0;
          for (std::int64_t u = 0; u < units; ++u) {
            double hidden = bias[u];
            for (std::int64_t d = 0; d < dim; ++d) {
              hidden += weight[u * dim + d] * v[i * dim + d] * v[j * dim + d];
            }
            logit += score[u] * std::max(hidden, 0.0);
          }
          total += std::exp(logit);
          for (std::int64_t d = 0; d < dim; ++d) {
            sum[as_size(d)] += std::exp(logit) * v[i * dim + d] * v[j * dim + d];
          }
        }
      }
      for (const double number : sum) out.push_back(number / total);
    }
    return out;
  };
  const Floats input = numbers(rows * fields * dim, 1);
  const Floats weight = numbers(units * dim, 2);
  const Floats bias = numbers(units, 3);
  const Floats score = numbers(units, 4);
  const Floats grad_out = numbers(rows * dim, 5);
  const Floats all = joined({input, weight, bias, score});
  const Numbers expected = slopes(block, all, grad_out);
  for (const int threads : kThreads) {
    Floats out = zeros(rows * dim);
    Floats attention = zeros(rows * pairs);
    widedeep::PairAttention request{};
    request.rows = rows;
    request.fields = fields;
    request.dim = dim;
    request.units = units;
    request.input = read_rows(input, fields * dim);
    request.weight = weight.data();
    request.bias = bias.data();
    request.score = score.data();
    request.out = write_rows(out, dim);
    request.attention = write_rows(attention, pairs);
    widedeep::attend_pairs(request, threads);
    CHECK(close(out, outputs(block, all)));
    Floats grad_input = zeros(rows * fields * dim);
    Floats grad_weight = zeros(units * dim);
    Floats grad_bias = zeros(units);
    Floats grad_score = zeros(units);
    widedeep::attend_pairs_grad(request, read_rows(grad_out, dim),
                                write_rows(grad_input, fields * dim), grad_weight.data(),
                                grad_bias.data(), grad_score.data(), threads);
    CHECK(close(joined({grad_input, grad_weight, grad_bias, grad_score}), expected));
  }
}

}  // namespace

TEST(pair_attention_is_its_equation_and_gradient) {
  check_pair_attention(1, 2, 1, 1);
  check_pair_attention(3, 4, 5, 3);
  check_pair_attention(2, 3, 19, widedeep::kPairUnits + 1);
  check_pair_attention(widedeep::kPairRows + 1, 2, 2, 2);
}

// ---- products of pairs --------------------------------------------------------------------------

namespace {

void check_pair_products(std::int64_t rows, std::int64_t fields, std::int64_t dim) {
  const Block block = [&](const Numbers& x) {
    Numbers out(as_size(rows * dim), 0.0);
    for (std::int64_t row = 0; row < rows; ++row) {
      const double* const v = x.data() + row * fields * dim;
      for (std::int64_t i = 0; i < fields; ++i) {
        for (std::int64_t j = i + 1; j < fields; ++j) {
          for (std::int64_t d = 0; d < dim; ++d) {
            out[as_size(row * dim + d)] += v[i * dim + d] * v[j * dim + d];
          }
        }
      }
    }
    return out;
  };
  const Floats input = numbers(rows * fields * dim, 1);
  const Floats grad_out = numbers(rows * dim, 2);
  const Numbers expected = slopes(block, input, grad_out);
  for (const int threads : kThreads) {
    Floats out = zeros(rows * dim);
    Floats grad = zeros(rows * fields * dim);
    const widedeep::PairProducts request{read_rows(input, fields * dim), fields,
                                         write_rows(out, dim),           read_rows(grad_out, dim),
                                         write_rows(grad, fields * dim), dim};
    widedeep::pair_products(request, rows, threads);
    widedeep::pair_products_grad(request, rows, threads);
    CHECK(close(out, outputs(block, input)));
    CHECK(close(grad, expected));
  }
}

void check_aware_products(std::int64_t rows, std::int64_t fields, std::int64_t dim,
                          std::int64_t extra) {
  const std::int64_t line = fields * dim;
  const std::int64_t width = fields * line + extra;
  const std::int64_t out_width = line + fields * (fields - 1) / 2 + extra;
  const Block block = [&](const Numbers& x) {
    Numbers out;
    for (std::int64_t row = 0; row < rows; ++row) {
      const double* const from = x.data() + row * width;
      for (std::int64_t i = 0; i < fields; ++i) {
        out.insert(out.end(), from + i * line, from + i * line + dim);
      }
      for (std::int64_t i = 0; i < fields; ++i) {
        for (std::int64_t j = i + 1; j < fields; ++j) {
          const double* const left = from + i * line + j * dim;
          out.push_back(std::inner_product(left, left + dim, from + j * line + (i + 1) * dim, 0.0));
        }
      }
      out.insert(out.end(), from + fields * line, from + width);
    }
    return out;
  };
  const Floats input = numbers(rows * width, 1);
  const Floats grad_out = numbers(rows * out_width, 2);
  const Numbers expected = slopes(block, input, grad_out);
  for (const int threads : kThreads) {
    Floats out = zeros(rows * out_width);
    Floats grad = zeros(rows * width);
    const widedeep::AwareProducts request{read_rows(input, width),
                                          fields,
                                          dim,
                                          write_rows(out, out_width),
                                          read_rows(grad_out, out_width),
                                          write_rows(grad, width)};
    widedeep::aware_products(request, rows, threads);
    widedeep::aware_products_grad(request, rows, threads);
    CHECK(close(out, outputs(block, input)));
    CHECK(close(grad, expected));
  }
}

}  // namespace

TEST(pair_products_are_their_equation_and_gradient) {
  check_pair_products(1, 1, 1);
  check_pair_products(3, 4, 5);
  check_pair_products(1, 2, 67);
  check_aware_products(1, 2, 1, 0);
  check_aware_products(3, 3, 4, 2);
  check_aware_products(2, 4, 5, 1);
}
