// Factors of a wide table's learning rate, one a feature, moved by Adagrad on their logarithms.
#pragma once

#include <stdint.h>

namespace widedeep {

struct FeatureRates {
  double* log_rates;  // n_features
  double* evidence;
  int64_t n_features;
  double step;
  double lowest;  // of log_rates
  double highest;
};

// Moves each touched feature's rate by the products of its rows, gradient times weight;
// starts[t] is the first row of feature t, starts[n_features] their number. The factors of those
// that moved go to `factors`, by feature, unless it is null.
void learn_rates(const FeatureRates& rates, const float* products, const int64_t* starts,
                 float* factors);

// What rows add to the figures of a learn_rates() over several ranks, whose rows come in any order:
// their products, and the squares of these, cut to grids on each of which float64 sums are exact.
// The grids are `2^36` apart, the coarsest one has that number, and so do large products, as
// regressions have them. `sums` (2 * kRateGrids, n_features) start from 0.
constexpr int64_t kRateGrids = 4;
void sum_rates_on_grids(const float* products, const int64_t* starts, int64_t n_features,
                        double* sums);

// The factor of one feature.
float rate_factor(const FeatureRates& rates, int64_t feature);

// Fills the factor of each row's feature.
void fill_rates(const FeatureRates& rates, const int64_t* starts, float* factors);

}  // namespace widedeep
