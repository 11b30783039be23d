// Activation, dropout and batch norm of a layer's rows; loops are written for the compiler's
// vectors.
#include <stdint.h>
#include <string.h>

#include "tower_units.hpp"
#include "unit_math.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int64_t kPiece = 128;      // columns whose factors lie on the stack
constexpr int64_t kSummedRows = 64;  // summed in float32 before they go into a double

// Each gives the output, and its derivative by the sum.
struct Linear {
  static float value(float x, float& slope) {
    slope = 1.0f;
    return x;
  }
};

struct Relu {
  static float value(float x, float& slope) {
    slope = x <= 0.0f ? 0.0f : 1.0f;
    return x <= 0.0f ? 0.0f : x;
  }
};

struct LeakyRelu {
  static float value(float x, float& slope) {
    slope = x <= 0.0f ? 0.01f : 1.0f;
    return x * slope;
  }
};

struct Elu {
  static float value(float x, float& slope) {
    const float power = exp_of(x < 0.0f ? x : 0.0f);
    slope = x <= 0.0f ? power : 1.0f;
    return x <= 0.0f ? power - 1.0f : x;
  }
};

struct Tanh {
  static float value(float x, float& slope) {
    const float result = tanh_of(x);
    slope = 1.0f - result * result;
    return result;
  }
};

struct Silu {
  static float value(float x, float& slope) {
    const float share = 1.0f / (1.0f + exp_of(-x));
    slope = share * (1.0f + x * (1.0f - share));
    return x * share;
  }
};

// x times the normal distribution function, which is 1/2 erfc(-x / sqrt 2); erfc by Abramowitz and
// Stegun 7.1.26, whose factor exp(-x^2 / 2) the derivative needs too.
struct Gelu {
  static float value(float x, float& slope) {
    const float size = (x < 0.0f ? -x : x) * 0.70710678f;
    const float power = exp_of(-0.5f * x * x);
    const float t = 1.0f / (1.0f + 0.3275911f * size);
    float sum = 1.061405429f;
    sum = multiply_add(sum, t, -1.453152027f);
    sum = multiply_add(sum, t, 1.421413741f);
    sum = multiply_add(sum, t, -0.284496736f);
    sum = multiply_add(sum, t, 0.254829592f);
    const float tail = 0.5f * (sum * t * power);
    // The tail below 0, and what it leaves of 1 above: a choice between sums would become a branch.
    const float share = (x < 0.0f ? 0.0f : 1.0f) + (x < 0.0f ? tail : -tail);
    slope = multiply_add(x, 0.39894228f * power, share);
    return x * share;
  }
};

uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// 0 where a unit is dropped, else what makes up for those: a hash of the row's key and the column.
void dropout_factors(uint64_t row_key, int64_t column, int64_t count, uint32_t below, float kept,
                     float* factors) {
  const uint32_t low = static_cast<uint32_t>(row_key);
  const uint32_t high = static_cast<uint32_t>(row_key >> 32) | 1u;
  const uint32_t first = static_cast<uint32_t>(column);
#pragma omp simd
  for (uint32_t i = 0; i < static_cast<uint32_t>(count); ++i) {
    uint32_t x = ((first + i) ^ low) * high;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    x ^= x >> 16;
    factors[i] = x < below ? 0.0f : kept;
  }
}

template <class Function>
void unit_rows_of(const UnitRows& request, int64_t begin, int64_t end) {
  const bool drops = request.dropout > 0.0f;
  const auto below = static_cast<uint32_t>(static_cast<double>(request.dropout) * 4294967296.0);
  const float kept = 1.0f / (1.0f - request.dropout);
  float factors[kPiece];
  for (int64_t i = 0; i < kPiece; ++i) factors[i] = 1.0f;
  for (int64_t row = begin; row < end; ++row) {
    const uint64_t key = mixed(request.key + static_cast<uint64_t>(row + 1) * 0x9e3779b97f4a7c15u);
    for (int64_t column = 0; column < request.width; column += kPiece) {
      const int64_t left = request.width - column;
      const int64_t count = left < kPiece ? left : kPiece;
      if (drops) dropout_factors(key, column, count, below, kept, factors);
      float* const out = request.out.data + row * request.out.stride + column;
      float* const slopes = request.slope.data + row * request.slope.stride + column;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        float slope;
        const float value = Function::value(out[i], slope);
        out[i] = value * factors[i];
        slopes[i] = slope * factors[i];
      }
    }
  }
}

// Adds kSummedRows at a time of `first` and `second`, functions of a row and a column.
template <class Pair>
void sum_columns(int64_t rows, int64_t begin, int64_t end, double* firsts, double* seconds,
                 Pair pair) {
  const int64_t width = end - begin;
  for (int64_t i = 0; i < width; ++i) firsts[i] = seconds[i] = 0.0;
  for (int64_t row = 0; row < rows; row += kSummedRows) {
    const int64_t stop = rows < row + kSummedRows ? rows : row + kSummedRows;
    float first[kNormColumns] = {};
    float second[kNormColumns] = {};
    for (int64_t r = row; r < stop; ++r) pair(r, first, second);
    for (int64_t i = 0; i < width; ++i) {
      firsts[i] += static_cast<double>(first[i]);
      seconds[i] += static_cast<double>(second[i]);
    }
  }
}

}  // namespace

void unit_rows(const UnitRows& request, int64_t begin, int64_t end) {
  switch (request.activation) {
    case UnitActivation::linear:
      return unit_rows_of<Linear>(request, begin, end);
    case UnitActivation::relu:
      return unit_rows_of<Relu>(request, begin, end);
    case UnitActivation::gelu:
      return unit_rows_of<Gelu>(request, begin, end);
    case UnitActivation::tanh:
      return unit_rows_of<Tanh>(request, begin, end);
    case UnitActivation::elu:
      return unit_rows_of<Elu>(request, begin, end);
    case UnitActivation::leaky_relu:
      return unit_rows_of<LeakyRelu>(request, begin, end);
    case UnitActivation::silu:
      return unit_rows_of<Silu>(request, begin, end);
  }
}

void norm_rows(const NormRows& request, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* const values = request.values.data + row * request.values.stride;
    float* const normed = request.normed.data + row * request.normed.stride;
#pragma omp simd
    for (int64_t i = 0; i < request.normed.width; ++i) {
      const float x = (values[i] - request.mean[i]) * request.inverse[i];
      normed[i] = x;
      values[i] = x * request.weight[i] + request.bias[i];
    }
  }
}

void norm_grad_rows(const NormRows& request, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* const grad = request.values.data + row * request.values.stride;
    const float* const normed = request.normed.data + row * request.normed.stride;
#pragma omp simd
    for (int64_t i = 0; i < request.normed.width; ++i) {
      const float centred =
          grad[i] - request.mean_grad[i] - normed[i] * request.mean_normed_grad[i];
      grad[i] = centred * (request.weight[i] * request.inverse[i]);
    }
  }
}

void scale_rows(const Rows& grad, const Rows& slope, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* const to = grad.data + row * grad.stride;
    const float* const by = slope.data + row * slope.stride;
#pragma omp simd
    for (int64_t i = 0; i < grad.width; ++i) to[i] *= by[i];
  }
}

void mask_rows(const Rows& grad, const ConstRows& out, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* const to = grad.data + row * grad.stride;
    const float* const by = out.data + row * out.stride;
#pragma omp simd
    for (int64_t i = 0; i < grad.width; ++i) to[i] = by[i] <= 0.0f ? 0.0f : to[i];
  }
}

void column_moments(const ConstRows& values, int64_t rows, int64_t begin, int64_t end, double* mean,
                    double* variance) {
  const int64_t width = end - begin;
  // About a value in their middle, sums of squares lose nothing.
  float shift[kNormColumns] = {};
  const int64_t few = rows < 16 ? rows : 16;
  for (int64_t row = 0; row < few; ++row) {
    for (int64_t i = 0; i < width; ++i) {
      shift[i] += values.data[row * values.stride + begin + i] / static_cast<float>(few);
    }
  }
  sum_columns(rows, begin, end, mean, variance, [&](int64_t row, float* first, float* second) {
    const float* const from = values.data + row * values.stride + begin;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const float x = from[i] - shift[i];
      first[i] += x;
      second[i] += x * x;
    }
  });
  const auto n = static_cast<double>(rows);
  for (int64_t i = 0; i < width; ++i) {
    const double centre = mean[i] / n;
    const double spread = variance[i] / n - centre * centre;
    mean[i] = static_cast<double>(shift[i]) + centre;
    variance[i] = spread < 0.0 ? 0.0 : spread;
  }
}

void column_products(const ConstRows& grad, const ConstRows& normed, int64_t rows, int64_t begin,
                     int64_t end, double* mean, double* mean_product) {
  const int64_t width = end - begin;
  sum_columns(rows, begin, end, mean, mean_product, [&](int64_t row, float* first, float* second) {
    const float* const g = grad.data + row * grad.stride + begin;
    const float* const x = normed.data + row * normed.stride + begin;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      first[i] += g[i];
      second[i] += g[i] * x[i];
    }
  });
  const auto n = static_cast<double>(rows);
  for (int64_t i = 0; i < width; ++i) {
    mean[i] /= n;
    mean_product[i] /= n;
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
