#include "transform_scaling.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace widedeep::transform {
namespace {

constexpr std::size_t kFan = 16;

// Distances are counted in units of 1024: that of two huge numbers of different sign, and one over
// it, stay ordinary numbers.
constexpr double kUnit = 1.0 / 1024;

// Two numbers in one register, of any processor.
typedef double Pair __attribute__((vector_size(16)));
typedef std::int64_t PairMask __attribute__((vector_size(16)));

// How many of kFan ascending values are at most x. All are compared: there is no branch to guess
// wrong.
std::size_t count_in_node(const double* values, double x) noexcept {
  const Pair bound = {x, x};
  PairMask counts = {0, 0};
  for (std::size_t i = 0; i < kFan; i += 2) {
    Pair pair;
    std::memcpy(&pair, values + i, sizeof pair);
    counts -= pair <= bound;  // true is -1
  }
  return static_cast<std::size_t>(counts[0] + counts[1]);
}

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

// Down a tree of kFan branches; the last node where x is above all.
std::size_t Curve::count_at_most(double x) const noexcept {
  std::size_t node = 0;
  for (std::size_t level = levels_.size(); level-- > 0;) {
    const std::vector<double>& values = levels_[level];
    node = std::min(node, values.size() / kFan - 1);
    node = node * kFan + count_in_node(values.data() + node * kFan, x);
  }
  return node;
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

double Curve::quantile(double x) const noexcept {
  const Segment& segment = segments_[std::min(count_at_most(x), segments_.size() - 1)];
  return segment.base + (x * kUnit - segment.start) * segment.slope;
}

void Curve::apply(const double* x, std::int64_t n, double* out) const noexcept {
  switch (scaling_) {
    case Scaling::quantile:
      for (std::int64_t i = 0; i < n; ++i) out[i] = n_cuts_ < 2 ? 0.0 : quantile(x[i]);
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
