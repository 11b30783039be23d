// Functions between logits and scores, of doubles. Whoever tells a score takes these, so that a
// server and a bundle tell the same bits.
#pragma once

#include <cstdint>
#include <string_view>

namespace widedeep {

enum class ScoreFunction : std::uint8_t { identity, sigmoid, softplus, exp, expm1, log, log1p };

// The function of that name; throws std::invalid_argument if there is none.
ScoreFunction score_function(std::string_view name);

double apply(ScoreFunction function, double x);

// 1 / (1 + exp(-x)), without overflow.
double sigmoid(double x);

// sigmoid(p) exp(mu + softplus(sigma)^2 / 2): the mean of a zero-inflated log-normal.
double lognormal_mean(double p, double mu, double sigma);

}  // namespace widedeep
