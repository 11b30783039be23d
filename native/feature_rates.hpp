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

// The factor of one feature.
float rate_factor(const FeatureRates& rates, int64_t feature);

// Fills the factor of each row's feature.
void fill_rates(const FeatureRates& rates, const int64_t* starts, float* factors);

}  // namespace widedeep
