#include "score_functions.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <stdexcept>
#include <string>

namespace widedeep {
namespace {

constexpr double kSmallestSigma = 0x1p-12;  // of a log-normal, as in training

// log(1 + exp(x)), without overflow.
double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

}  // namespace

ScoreFunction score_function(std::string_view name) {
  constexpr std::string_view kNames[] = {"identity", "sigmoid", "softplus", "exp",
                                         "expm1",    "log",     "log1p"};
  const auto at = std::find(std::begin(kNames), std::end(kNames), name) - std::begin(kNames);
  if (at == std::ssize(kNames)) {
    throw std::invalid_argument("expected a function of scores, got " + std::string(name));
  }
  return static_cast<ScoreFunction>(at);
}

double sigmoid(double x) {
  const double small = std::exp(-std::abs(x));
  return (x >= 0 ? 1.0 : small) / (1.0 + small);
}

double apply(ScoreFunction function, double x) {
  switch (function) {
    case ScoreFunction::sigmoid:
      return sigmoid(x);
    case ScoreFunction::softplus:
      return softplus(x);
    case ScoreFunction::exp:
      return std::exp(x);
    case ScoreFunction::expm1:
      return std::expm1(x);
    case ScoreFunction::log:
      return std::log(x);
    case ScoreFunction::log1p:
      return std::log1p(x);
    case ScoreFunction::identity:
      break;
  }
  return x;
}

double lognormal_mean(double p, double mu, double sigma) {
  const double scale = std::max(softplus(sigma), kSmallestSigma);
  return std::exp(mu + 0.5 * (scale * scale)) * sigmoid(p);
}

}  // namespace widedeep
