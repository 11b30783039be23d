// Numeric features: numbers in, float32 columns out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "transform_parts.hpp"

namespace widedeep::transform {

enum class Scaling : std::uint8_t { quantile, affine, log1p, none };

// The value of a number after its transform, before it is rounded to float32.
//
// quantile: with boundaries b_0 < ... < b_(m-1), the piecewise linear curve through
// (b_i, i / (m - 1)), 0 below b_0 and 1 above b_(m-1) (Cheng et al. 2016, section 4.1).
// affine: (x - shift) * scale; log1p: the same of sign(x) log(1 + |x|).
double scale_number(Scaling scaling, double x, const std::vector<double>& boundaries, double shift,
                    double scale) noexcept;

struct NumericFeature {
  std::string name;
  std::string transform;  // as declared, for messages
  Scaling scaling = Scaling::none;
  std::int64_t size = 1;
  bool indicator = false;  // `size` more columns that are 1 where a number is missing
  std::vector<std::vector<double>> boundaries;  // one a component, for quantile
  std::vector<double> shift;
  std::vector<double> scale;
  std::vector<float> fill;  // what a null becomes
  int column = -1;
  std::vector<float> fixed;  // `width` values for every scored row, or empty

  std::int64_t width() const noexcept { return size * (indicator ? 2 : 1); }

  // Writes `width` values a row to out, out + stride, ...
  void encode(const Column& column, std::int64_t row_begin, std::int64_t row_end,
              const Where& where, Scratch& scratch, float* out, std::int64_t stride) const;

 private:
  void encode_component(const Column& column, std::int64_t j, std::int64_t row_begin,
                        std::int64_t row_end, const Where& where, const double* numbers, float* out,
                        std::int64_t stride) const;
};

}  // namespace widedeep::transform
