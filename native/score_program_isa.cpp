// Elementwise functions, reductions and small products of the rows of a tile.
//
// Every number is computed by the same sequence of operations, wherever it lies: a loop that the
// compiler splits into registers and a remainder gives one result for both.
#include "score_program_isa.hpp"

#include <math.h>
#include <stdint.h>

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int64_t kLanes16 = 16;

inline float as_float(int32_t bits) { return __builtin_bit_cast(float, bits); }
inline int32_t as_bits(float x) { return __builtin_bit_cast(int32_t, x); }

// By bits: a choice between two computed numbers would become a branch, and no vector.
inline float choose(bool condition, float a, float b) {
  const int32_t mask = -static_cast<int32_t>(condition);
  return as_float((as_bits(a) & mask) | (as_bits(b) & ~mask));
}

// 2^n for n in [-126, 127]; any bits for other n.
inline float power_of_two(int32_t n) {
  return as_float(static_cast<int32_t>((static_cast<uint32_t>(n) + 127u) << 23));
}

// e^x to 2 units in the last place: x = n ln 2 + r, a polynomial for e^r, and 2^n in two factors.
inline float exp_of(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 x 2^23: adding it rounds to a whole number
  float c = choose(x < -104.0f, -104.0f, x);
  c = choose(c > 89.0f, 89.0f, c);
  const float shifted = c * 1.44269504f + kMagic;
  const float n = shifted - kMagic;
  float r = c - n * 0.693145752f;  // ln 2 in two parts, the first of few bits
  r = r - n * 1.42860677e-6f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  const int32_t power = as_bits(shifted) - as_bits(kMagic);
  const int32_t half = power >> 1;
  return p * power_of_two(half) *
         power_of_two(power - half);  // no number from no number: p is none
}

inline float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(-x)); }

// Near zero by its continued fraction, where 1 - 2 / (e^2x + 1) would lose digits.
inline float tanh_of(float x) {
  const float t = fabsf(x);
  const float s = x * x;
  const float small =
      x * (10395.0f + s * (1260.0f + s * 21.0f)) / (10395.0f + s * (4725.0f + s * (210.0f + s)));
  const float large = 1.0f - 2.0f / (exp_of(2.0f * t) + 1.0f);
  return choose(t < 0.6f, small, copysignf(large, x));
}

// Near zero by its series, where e^x - 1 would lose digits.
inline float expm1_of(float x) {
  float p = 1.0f / 5040.0f;
  p = p * x + 1.0f / 720.0f;
  p = p * x + 1.0f / 120.0f;
  p = p * x + 1.0f / 24.0f;
  p = p * x + 1.0f / 6.0f;
  p = p * x + 0.5f;
  const float small = x + x * x * p;
  const float large = exp_of(x) - 1.0f;
  return choose(fabsf(x) < 0.35f, small, large);
}

template <class Fn>
inline void run1(Fn fn, const float* a, int64_t sa, float* out, int64_t n) {
  if (sa == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = fn(a[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = fn(a[i * sa]);
  }
}

template <class Fn>
inline void run2(Fn fn, const float* a, int64_t sa, const float* b, int64_t sb, float* out,
                 int64_t n) {
  if (sa == 1 && sb == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = fn(a[i], b[i]);
  } else if (sa == 1 && sb == 0) {
    const float y = b[0];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = fn(a[i], y);
  } else if (sa == 0 && sb == 1) {
    const float x = a[0];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = fn(x, b[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = fn(a[i * sa], b[i * sb]);
  }
}

template <class Fn>
inline void run3(Fn fn, const float* a, int64_t sa, const float* b, int64_t sb, const float* c,
                 int64_t sc, float* out, int64_t n) {
  if (sa == 1 && sb == 1 && sc == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = fn(a[i], b[i], c[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = fn(a[i * sa], b[i * sb], c[i * sc]);
  }
}

inline const float* row_of(const RowView& view, int64_t row) {
  return view.base + (view.positions == nullptr ? row : view.positions[row]) * view.row_stride;
}

inline int64_t at(const RowView& view, int64_t i, int64_t j, int64_t k) {
  return i * view.strides[0] + j * view.strides[1] + k * view.strides[2];
}

// Calls line(row, i, j, k, out) for every last dimension.
template <class Fn>
inline void each_line(const int64_t (&dims)[kProgramDims], int64_t rows, float* out,
                      int64_t out_stride, int64_t step, Fn line) {
  for (int64_t row = 0; row < rows; ++row) {
    float* to = out + row * out_stride;
    for (int64_t i = 0; i < dims[0]; ++i) {
      for (int64_t j = 0; j < dims[1]; ++j) {
        for (int64_t k = 0; k < dims[2]; ++k, to += step) line(row, i, j, k, to);
      }
    }
  }
}

template <class Fn>
void map1(const MapTile& tile, int64_t rows, Fn fn) {
  const RowView& a = tile.inputs[0];
  const int64_t n = tile.dims[3];
  each_line(tile.dims, rows, tile.out, tile.out_stride, n,
            [&](int64_t row, int64_t i, int64_t j, int64_t k, float* out) {
              run1(fn, row_of(a, row) + at(a, i, j, k), a.strides[3], out, n);
            });
}

template <class Fn>
void map2(const MapTile& tile, int64_t rows, Fn fn) {
  const RowView& a = tile.inputs[0];
  const RowView& b = tile.inputs[1];
  const int64_t n = tile.dims[3];
  each_line(tile.dims, rows, tile.out, tile.out_stride, n,
            [&](int64_t row, int64_t i, int64_t j, int64_t k, float* out) {
              run2(fn, row_of(a, row) + at(a, i, j, k), a.strides[3],
                   row_of(b, row) + at(b, i, j, k), b.strides[3], out, n);
            });
}

template <class Fn>
void map3(const MapTile& tile, int64_t rows, Fn fn) {
  const RowView& a = tile.inputs[0];
  const RowView& b = tile.inputs[1];
  const RowView& c = tile.inputs[2];
  const int64_t n = tile.dims[3];
  each_line(tile.dims, rows, tile.out, tile.out_stride, n,
            [&](int64_t row, int64_t i, int64_t j, int64_t k, float* out) {
              run3(fn, row_of(a, row) + at(a, i, j, k), a.strides[3],
                   row_of(b, row) + at(b, i, j, k), b.strides[3], row_of(c, row) + at(c, i, j, k),
                   c.strides[3], out, n);
            });
}

inline float positive(float x) { return x <= 0.0f ? 0.0f : x; }

// ((0 + 8) + (4 + 12)) + ... : in halves.
inline float add_up(float (&parts)[kLanes16]) {
  for (int64_t width = kLanes16 / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) parts[i] += parts[i + width];
  }
  return parts[0];
}

inline float sum_of_line(const float* x, int64_t n) {
  float parts[kLanes16] = {};
  int64_t i = 0;
  for (; i + kLanes16 <= n; i += kLanes16) {
    for (int64_t lane = 0; lane < kLanes16; ++lane) parts[lane] += x[i + lane];
  }
  for (int64_t lane = 0; i + lane < n; ++lane) parts[lane] += x[i + lane];
  return add_up(parts);
}

inline float larger(float a, float b) { return a > b || a != a ? a : b; }
inline float smaller(float a, float b) { return a < b || a != a ? a : b; }

template <class Fn>
inline float fold_line(Fn fn, const float* x, int64_t stride, int64_t n) {
  float total = x[0];
  for (int64_t i = 1; i < n; ++i) total = fn(total, x[i * stride]);
  return total;
}

// Columns side by side: each is reduced in order, all at a time.
template <class Fn>
inline void fold_columns(Fn fn, const float* x, int64_t stride, int64_t n, int64_t columns,
                         float* out) {
  for (int64_t c = 0; c < columns; ++c) out[c] = x[c];
  for (int64_t i = 1; i < n; ++i) {
    const float* const from = x + i * stride;
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) out[c] = fn(out[c], from[c]);
  }
}

template <class Fn>
void reduce(const ReduceTile& tile, int64_t rows, bool is_sum, Fn fn) {
  const RowView& in = tile.input;
  const int64_t n = tile.dims[3];
  const int64_t columns = tile.dims[2];
  const int64_t stride = in.strides[3];
  for (int64_t row = 0; row < rows; ++row) {
    float* to = tile.out + row * tile.out_stride;
    const float* const from = row_of(in, row);
    for (int64_t i = 0; i < tile.dims[0]; ++i) {
      for (int64_t j = 0; j < tile.dims[1]; ++j, to += columns) {
        const float* const x = from + i * in.strides[0] + j * in.strides[1];
        if (in.strides[2] == 1 && stride != 1) {
          fold_columns(fn, x, stride, n, columns, to);
          continue;
        }
        for (int64_t c = 0; c < columns; ++c) {
          const float* const line = x + c * in.strides[2];
          to[c] = is_sum && stride == 1 ? sum_of_line(line, n) : fold_line(fn, line, stride, n);
        }
      }
    }
  }
}

// M lines of `left` times sixteen columns of `right`.
template <int M>
inline void products16(const float* left, int64_t m_stride, int64_t k_stride, const float* right,
                       int64_t right_stride, int64_t n_k, float* out, int64_t out_stride) {
  float sums[M][kLanes16] = {};
  for (int64_t k = 0; k < n_k; ++k) {
    const float* const b = right + k * right_stride;
    for (int m = 0; m < M; ++m) {
      const float a = left[m * m_stride + k * k_stride];
      for (int64_t lane = 0; lane < kLanes16; ++lane) sums[m][lane] += a * b[lane];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int64_t lane = 0; lane < kLanes16; ++lane) out[m * out_stride + lane] = sums[m][lane];
  }
}

inline void products_few(const float* left, int64_t k_stride, const float* right,
                         int64_t right_stride, int64_t n_k, int64_t columns, float* out) {
  float sums[kLanes16] = {};
  for (int64_t k = 0; k < n_k; ++k) {
    const float a = left[k * k_stride];
    const float* const b = right + k * right_stride;
    for (int64_t lane = 0; lane < columns; ++lane) sums[lane] += a * b[lane];
  }
  for (int64_t lane = 0; lane < columns; ++lane) out[lane] = sums[lane];
}

}  // namespace

#define WIDEDEEP_MAP1(name, expression) \
  case MapFunction::name:               \
    return map1(tile, rows, [=](float a) { return static_cast<float>(expression); })
#define WIDEDEEP_MAP2(name, expression) \
  case MapFunction::name:               \
    return map2(tile, rows, [=](float a, float b) { return static_cast<float>(expression); })
#define WIDEDEEP_MAP3(name, expression) \
  case MapFunction::name:               \
    return map3(tile, rows,             \
                [=](float a, float b, float c) { return static_cast<float>(expression); })

void map_rows(const MapTile& tile, int64_t rows) {
  const float first = tile.first;
  const float second = tile.second;
  (void)second;
  switch (tile.function) {
    WIDEDEEP_MAP1(copy, a);
    WIDEDEEP_MAP1(neg, -a);
    WIDEDEEP_MAP1(abs, fabsf(a));
    WIDEDEEP_MAP1(exp, exp_of(a));
    WIDEDEEP_MAP1(log, logf(a));
    WIDEDEEP_MAP1(log1p, log1pf(a));
    WIDEDEEP_MAP1(sqrt, sqrtf(a));
    WIDEDEEP_MAP1(reciprocal, 1.0f / a);
    WIDEDEEP_MAP1(square, a * a);
    WIDEDEEP_MAP1(sign, a > 0.0f ? 1.0f : a < 0.0f ? -1.0f : a);
    WIDEDEEP_MAP1(relu, positive(a));
    WIDEDEEP_MAP1(sigmoid, sigmoid_of(a));
    WIDEDEEP_MAP1(tanh, tanh_of(a));
    WIDEDEEP_MAP1(gelu, 0.5f * a * (1.0f + erff(a * 0.70710678118654752f)));
    WIDEDEEP_MAP1(silu, a * sigmoid_of(a));
    WIDEDEEP_MAP1(elu, choose(a > 0.0f, a, first * expm1_of(a)));
    WIDEDEEP_MAP1(leaky_relu, choose(a > 0.0f, a, first * a));
    WIDEDEEP_MAP1(clamp, a < first ? first : a > second ? second : a);
    WIDEDEEP_MAP1(softplus, a > 20.0f ? a : log1pf(exp_of(a)));
    WIDEDEEP_MAP1(erf, erff(a));
    WIDEDEEP_MAP1(sin, sinf(a));
    WIDEDEEP_MAP1(cos, cosf(a));
    WIDEDEEP_MAP1(power, powf(a, first));
    WIDEDEEP_MAP2(add, a + b);
    WIDEDEEP_MAP2(sub, a - b);
    WIDEDEEP_MAP2(mul, a * b);
    WIDEDEEP_MAP2(div, a / b);
    WIDEDEEP_MAP2(max, larger(a, b));
    WIDEDEEP_MAP2(min, smaller(a, b));
    WIDEDEEP_MAP2(greater, a > b ? 1.0f : 0.0f);
    WIDEDEEP_MAP2(greater_equal, a >= b ? 1.0f : 0.0f);
    WIDEDEEP_MAP2(equal, a == b ? 1.0f : 0.0f);
    WIDEDEEP_MAP2(not_equal, a != b ? 1.0f : 0.0f);
    WIDEDEEP_MAP2(add_relu, positive(a + b));
    WIDEDEEP_MAP3(add3, (a + b) + c);
    WIDEDEEP_MAP3(add3_relu, positive((a + b) + c));
    WIDEDEEP_MAP3(mul_add, a * b + c);
    WIDEDEEP_MAP3(where, a != 0.0f ? b : c);
  }
}

void reduce_rows(const ReduceTile& tile, int64_t rows) {
  switch (tile.reduction) {
    case Reduction::sum:
      return reduce(tile, rows, true, [](float a, float b) { return a + b; });
    case Reduction::max:
      return reduce(tile, rows, false, [](float a, float b) { return larger(a, b); });
    case Reduction::min:
      return reduce(tile, rows, false, [](float a, float b) { return smaller(a, b); });
  }
}

void top_rows(const TopTile& tile, int64_t rows) {
  const RowView& in = tile.input;
  each_line(tile.dims, rows, tile.out, tile.out_stride, tile.count,
            [&](int64_t row, int64_t i, int64_t j, int64_t k, float* out) {
              const float* const line = row_of(in, row) + at(in, i, j, k);
              int64_t n = 0;  // numbers in `out`, in falling order
              for (int64_t c = 0; c < tile.dims[3]; ++c) {
                const float x = line[c * in.strides[3]];
                if (n == tile.count && !(x > out[n - 1])) continue;
                int64_t place = n < tile.count ? n++ : n - 1;
                for (; place > 0 && x > out[place - 1]; --place) out[place] = out[place - 1];
                out[place] = x;
              }
            });
}

void matmul_rows(const MatmulTile& tile, int64_t rows) {
  const auto [n_b, n_m, n_k, n_n] = tile.dims;
  const int64_t m_stride = tile.left.strides[1];
  const int64_t k_stride = tile.left.strides[2];
  const int64_t right_stride = tile.right.strides[1];
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t b = 0; b < n_b; ++b) {
      const float* const left = row_of(tile.left, row) + b * tile.left.strides[0];
      const float* const right = row_of(tile.right, row) + b * tile.right.strides[0];
      float* const out = tile.out + row * tile.out_stride + b * n_m * n_n;
      int64_t n = 0;
      for (; n + kLanes16 <= n_n; n += kLanes16) {
        int64_t m = 0;
        for (; m + 4 <= n_m; m += 4) {
          products16<4>(left + m * m_stride, m_stride, k_stride, right + n, right_stride, n_k,
                        out + m * n_n + n, n_n);
        }
        for (; m < n_m; ++m) {
          products16<1>(left + m * m_stride, m_stride, k_stride, right + n, right_stride, n_k,
                        out + m * n_n + n, n_n);
        }
      }
      if (n == n_n) continue;
      for (int64_t m = 0; m < n_m; ++m) {
        products_few(left + m * m_stride, k_stride, right + n, right_stride, n_k, n_n - n,
                     out + m * n_n + n);
      }
    }
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
