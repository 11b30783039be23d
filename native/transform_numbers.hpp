// Numeric features: numbers in, float32 columns out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "transform_parts.hpp"
#include "transform_scaling.hpp"

namespace widedeep::transform {

struct NumericFeature {
  std::string name;
  std::string transform;  // as declared, for messages
  std::int64_t size = 1;
  bool indicator = false;     // `size` more columns that are 1 where a number is missing
  std::vector<Curve> curves;  // one a component
  std::vector<float> fill;    // what a null becomes
  int column = -1;
  Storage storage;           // of the column
  std::vector<float> fixed;  // `width` values for every scored row, or empty

  std::int64_t width() const noexcept { return size * (indicator ? 2 : 1); }

  // Writes `width` values a row to out, out + stride, ...
  void encode(const Column& column, std::int64_t row_begin, std::int64_t row_end,
              const Where& where, Scratch& scratch, float* out, std::int64_t stride) const;

 private:
  bool encode_component(std::int64_t j, std::int64_t n_rows, const double* numbers, float* out,
                        std::int64_t stride) const;
  [[noreturn]] void throw_too_large(const Column& column, std::int64_t row_begin,
                                    std::int64_t row_end, const Where& where, const float* out,
                                    std::int64_t stride) const;
};

}  // namespace widedeep::transform
