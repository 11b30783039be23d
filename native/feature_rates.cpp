#include "feature_rates.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace widedeep {
namespace {

constexpr int64_t kBlock = 128;  // numbers that eight sums add up side by side

// The sum of term(i) for begin <= i < end, pairwise.
template <class Term>
double pairwise_sum(int64_t begin, int64_t end, Term term) {
  const int64_t n = end - begin;
  if (n < 8) {
    double sum = -0.0;
    for (int64_t i = begin; i < end; ++i) sum += term(i);
    return sum;
  }
  if (n > kBlock) {
    const int64_t half = n / 2 - n / 2 % 8;
    const double left = pairwise_sum(begin, begin + half, term);
    return left + pairwise_sum(begin + half, end, term);
  }
  double sums[8];
  for (int64_t i = 0; i < 8; ++i) sums[i] = term(begin + i);
  int64_t at = begin + 8;
  for (; at + 8 <= end; at += 8) {
    for (int64_t i = 0; i < 8; ++i) sums[i] += term(at + i);
  }
  double sum =
      ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  for (; at < end; ++at) sum += term(at);
  return sum;
}

// The first number, then the pairwise sum of the others.
template <class Term>
double segment_of(int64_t begin, int64_t end, Term term) {
  const double first = term(begin);
  return end - begin > 1 ? first + pairwise_sum(begin + 1, end, term) : first;
}

// Nearest whole number, ties to even.
double whole(double value) {
  constexpr double kLarge = 0x1.8p52;  // numbers beside it are whole
  return std::fabs(value) < 0x1p51 ? (value + kLarge) - kLarge : std::nearbyint(value);
}

void add_on_grids(double left, double* sums) {
  constexpr double kGrids[kRateGrids] = {0x1p36, 1.0, 0x1p-36, 0x1p-72};
  for (int64_t i = 0; i < kRateGrids; ++i) {
    if (std::fabs(left) <= kGrids[i] / 2) continue;  // nothing of it, on the coarse ones mostly
    const double on_grid = whole(left * (1.0 / kGrids[i])) * kGrids[i];
    left -= on_grid;
    sums[i] += on_grid;
  }
}

}  // namespace

void learn_rates(const FeatureRates& rates, const float* products, const int64_t* starts,
                 float* factors) {
  const auto product = [&](int64_t row) { return static_cast<double>(products[row]); };
  const auto square = [&](int64_t row) { return product(row) * product(row); };
  for (int64_t t = 0; t < rates.n_features; ++t) {
    const int64_t begin = starts[t];
    const int64_t end = starts[t + 1];
    if (begin == end) continue;
    // Rows whose weights are 0 say nothing: the usual case of a batch of one example.
    if (end - begin == 1 && products[begin] == 0.0f) continue;
    const double sum = segment_of(begin, end, product);
    double& evidence = rates.evidence[t];
    evidence += segment_of(begin, end, square);
    // A feature whose weights are all 0 so far has no evidence: its rate stays.
    const double root = std::sqrt(std::max(evidence, std::numeric_limits<double>::min()));
    const double moved = rates.log_rates[t] - rates.step * sum / root;
    rates.log_rates[t] = std::clamp(moved, rates.lowest, rates.highest);
    if (factors != nullptr) factors[t] = rate_factor(rates, t);
  }
}

void sum_rates_on_grids(const float* products, const int64_t* starts, int64_t n_features,
                        double* sums) {
  for (int64_t t = 0; t < n_features; ++t) {
    double of_products[kRateGrids] = {}, of_squares[kRateGrids] = {};
    for (int64_t i = starts[t]; i < starts[t + 1]; ++i) {
      const double product = products[i];
      if (product == 0.0) continue;  // of a weight that is 0 yet
      add_on_grids(product, of_products);
      add_on_grids(product * product, of_squares);
    }
    for (int64_t grid = 0; grid < kRateGrids; ++grid) {
      sums[grid * n_features + t] = of_products[grid];
      sums[(kRateGrids + grid) * n_features + t] = of_squares[grid];
    }
  }
}

float rate_factor(const FeatureRates& rates, int64_t feature) {
  return static_cast<float>(std::exp(rates.log_rates[feature]));
}

void fill_rates(const FeatureRates& rates, const int64_t* starts, float* factors) {
  for (int64_t t = 0; t < rates.n_features; ++t) {
    if (starts[t] == starts[t + 1]) continue;
    std::fill(factors + starts[t], factors + starts[t + 1], rate_factor(rates, t));
  }
}

}  // namespace widedeep
