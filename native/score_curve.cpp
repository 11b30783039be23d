#include "score_curve.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "score_functions.hpp"

namespace widedeep {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// As numpy.interp.
double interpolated(const std::vector<double>& x, const std::vector<double>& y, double at) {
  if (std::isnan(at)) return at;
  if (at < x.front()) return y.front();
  if (at >= x.back()) return y.back();
  const auto above = std::upper_bound(x.begin(), x.end(), at);
  const auto i = static_cast<std::size_t>(above - x.begin()) - 1;
  if (x[i] == at) return y[i];
  const double slope = (y[i + 1] - y[i]) / (x[i + 1] - x[i]);
  return slope * (at - x[i]) + y[i];
}

bool is_binary(ScoreFormula::Kind kind) {
  return kind >= ScoreFormula::Kind::add && kind <= ScoreFormula::Kind::power;
}

double combined(ScoreFormula::Kind kind, double a, double b) {
  using Kind = ScoreFormula::Kind;
  switch (kind) {
    case Kind::add:
      return a + b;
    case Kind::subtract:
      return a - b;
    case Kind::multiply:
      return a * b;
    case Kind::divide:
      return a / b;
    case Kind::power:
      return std::pow(a, b);
    default:
      break;
  }
  // Either without a value leaves none.
  if (std::isnan(a) || std::isnan(b)) return kNone;
  return kind == Kind::minimum ? std::min(a, b) : std::max(a, b);
}

double changed(ScoreFormula::Kind kind, double a) {
  using Kind = ScoreFormula::Kind;
  switch (kind) {
    case Kind::negate:
      return -a;
    case Kind::absolute:
      return std::fabs(a);
    case Kind::exp:
      return apply(ScoreFunction::exp, a);
    case Kind::log:
      return apply(ScoreFunction::log, a);
    case Kind::log1p:
      return apply(ScoreFunction::log1p, a);
    default:
      return std::sqrt(a);
  }
}

}  // namespace

double ScoreCurve::score(const float* logits) const {
  const auto at = [&](std::int64_t i) { return static_cast<double>(logits[i]); };
  if (is_lognormal) return lognormal_mean(at(column), at(column + 1), at(column + 2));
  const double logit = at(column);
  if (!points.empty()) {
    const double value = interpolated(points, values, logit);
    if (link == ScoreFunction::identity) return value;
    const double beyond =
        std::min(logit - points.front(), 0.0) + std::max(logit - points.back(), 0.0);
    return sigmoid(value + slope * beyond);
  }
  if (link != ScoreFunction::sigmoid) return apply(link, logit);
  const double score = sigmoid(logit * slope + intercept);
  return through < 0 ? score : score * sigmoid(at(through));
}

void ScoreFormula::check(std::size_t n_heads, std::size_t n_columns) const {
  std::size_t depth = 0;
  for (const Step& step : steps) {
    const bool is_value = step.kind <= Kind::constant;
    const std::size_t limit = step.kind == Kind::head     ? n_heads
                              : step.kind == Kind::column ? n_columns
                                                          : 1;
    const std::size_t needed = is_value ? 0 : is_binary(step.kind) ? 2 : 1;
    if (step.index < 0 || static_cast<std::size_t>(step.index) >= limit || depth < needed) {
      throw std::invalid_argument("expected a formula over the heads and columns that are given");
    }
    depth = depth - needed + 1;
  }
  if (depth != 1) throw std::invalid_argument("expected a formula of one value");
}

double ScoreFormula::value(const std::vector<ScoreCurve>& curves, const float* logits,
                           const double* numbers, std::vector<double>& stack) const {
  stack.clear();
  for (const Step& step : steps) {
    double result = step.value;
    if (step.kind == Kind::head) {
      result = curves[static_cast<std::size_t>(step.index)].score(logits);
    } else if (step.kind == Kind::column) {
      result = numbers[step.index];
    } else if (step.kind != Kind::constant) {
      const double last = stack.back();
      stack.pop_back();
      if (is_binary(step.kind)) {
        result = combined(step.kind, stack.back(), last);
        stack.pop_back();
      } else {
        result = changed(step.kind, last);
      }
    }
    // Here, not at the end: one by infinity would be 0.
    stack.push_back(std::isfinite(result) ? result : kNone);
  }
  return stack.back();
}

}  // namespace widedeep
