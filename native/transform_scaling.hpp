// The curves that numbers go through.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quantile_curve.hpp"

namespace widedeep::transform {

enum class Scaling : std::uint8_t { quantile, affine, log1p, none };

// What was learned for one component of a feature.
class Curve {
 public:
  // `boundaries` are those of quantile, strictly increasing.
  Curve(Scaling scaling, std::vector<double> boundaries, double shift, double scale);

  // Numbers after their transform, before they are rounded to float32; NaN gives any number.
  //
  // quantile: with boundaries b_0 < ... < b_(m-1), the piecewise linear curve through
  // (b_i, i / (m - 1)), 0 below b_0 and 1 above b_(m-1) (Cheng et al. 2016, section 4.1).
  // affine: (x - shift) * scale; log1p: the same of sign(x) log(1 + |x|).
  void apply(const double* x, std::int64_t n, double* out) const noexcept;

 private:
  void add_segments(const std::vector<double>& cuts);
  QuantileCurve tree() const noexcept;

  Scaling scaling_;
  std::vector<std::vector<double>> levels_;  // of the tree, the boundaries first
  std::size_t n_cuts_;
  std::vector<QuantileCurve::Segment> segments_;
  double shift_;
  double scale_;
};

}  // namespace widedeep::transform
