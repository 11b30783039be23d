#include "transform_scaling.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace widedeep::transform {
namespace {

constexpr std::size_t kFan = QuantileCurve::kFan;

// Distances are counted in units of 1024: that of two huge numbers of different sign, and one over
// it, stay ordinary numbers.
constexpr double kUnit = 1.0 / 1024;

void pad(std::vector<double>& values) {
  while (values.size() % kFan != 0) values.push_back(std::numeric_limits<double>::infinity());
}

}  // namespace

Curve::Curve(Scaling scaling, std::vector<double> boundaries, double shift, double scale)
    : scaling_(scaling), n_cuts_(boundaries.size()), shift_(shift), scale_(scale) {
  add_segments(boundaries);
  levels_.push_back(std::move(boundaries));
  pad(levels_[0]);
  while (levels_.back().size() > kFan) {
    const std::vector<double>& below = levels_.back();
    std::vector<double> lasts;
    for (std::size_t end = kFan; end <= below.size(); end += kFan) lasts.push_back(below[end - 1]);
    pad(lasts);
    levels_.push_back(std::move(lasts));
  }
}

// One segment below the boundaries, one between each two, one above, with their slopes divided out.
void Curve::add_segments(const std::vector<double>& cuts) {
  const auto last = static_cast<double>(cuts.size()) - 1;
  segments_.push_back({0, 0, 0});
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
    const double start = cuts[i] * kUnit;
    const double slope = 1 / ((cuts[i + 1] * kUnit - start) * last);
    segments_.push_back({start, static_cast<double>(i) / last, std::isfinite(slope) ? slope : 0});
  }
  segments_.push_back({0, 1, 0});
}

QuantileCurve Curve::tree() const noexcept {
  QuantileCurve tree{};
  tree.n_levels = static_cast<int>(levels_.size());
  for (std::size_t level = 0; level < levels_.size(); ++level) {
    const std::vector<double>& values = levels_[levels_.size() - 1 - level];
    tree.levels[level] = values.data();
    tree.last_nodes[level] = static_cast<std::int64_t>(values.size() / kFan) - 1;
  }
  tree.segments = segments_.data();
  tree.last_segment = static_cast<std::int64_t>(segments_.size()) - 1;
  return tree;
}

void Curve::apply(const double* x, std::int64_t n, double* out) const noexcept {
  switch (scaling_) {
    case Scaling::quantile:
      if (n_cuts_ < 2) {
        std::fill_n(out, n, 0.0);
      } else {
        WIDEDEEP_DISPATCH(quantile_curve)(tree(), x, n, out);
      }
      return;
    case Scaling::affine:
      for (std::int64_t i = 0; i < n; ++i) out[i] = (x[i] - shift_) * scale_;
      return;
    case Scaling::log1p:
      for (std::int64_t i = 0; i < n; ++i) {
        out[i] = (std::copysign(std::log1p(std::fabs(x[i])), x[i]) - shift_) * scale_;
      }
      return;
    case Scaling::none:
      std::copy(x, x + n, out);
      return;
  }
}

}  // namespace widedeep::transform
