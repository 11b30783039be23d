// The optimizers' equations over the touched rows, and initial rows.
#include "rows_isa.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

// What is called from several loops is part of each, so that each is vectorised as it stands.
#define WIDEDEEP_INLINE __attribute__((always_inline))

constexpr int64_t kAheadRows = 16;  // touched rows

// Two rounds of multiplication and shifting (Wellons 2018, "lowbias32"), a row's key between them.
inline uint32_t random_bits(uint64_t row, int64_t column) {
  uint32_t x = static_cast<uint32_t>(row) + static_cast<uint32_t>(column) * 0x9E3779B9U;
  x = (x ^ (x >> 16)) * 0x7FEB352DU;
  x ^= static_cast<uint32_t>(row >> 32);
  x = (x ^ (x >> 15)) * 0x846CA68BU;
  return x >> 16;
}

// One of the two bfloat16 next to a number, the upper one (by magnitude) with the fraction of the
// way there; what is not finite is cut off.
inline uint16_t rounded(float number, uint32_t random) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, number);
  const uint32_t is_finite = (bits & 0x7F800000U) != 0x7F800000U ? 0xFFFFU : 0U;
  return static_cast<uint16_t>((bits + (random & is_finite)) >> 16);
}

// splitmix64's finalizer (Steele, Lea & Flood 2014).
inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

inline uint64_t row_key(const WeightRows& weights, int64_t row, int64_t place) {
  const auto id = static_cast<uint64_t>(weights.ids == nullptr ? row : weights.ids[place]);
  return mix(weights.key + id * 0x9E3779B97F4A7C15ULL);
}

inline void round_row(const float* __restrict row, uint64_t key, int64_t width,
                      uint16_t* __restrict out) {
  WIDEDEEP_SIMD
  for (int64_t d = 0; d < width; ++d) out[d] = rounded(row[d], random_bits(key, d));
}

// The rows of for_each_row where weights are bfloat16: each is updated in a float32 copy.
template <class Update, class... Prefetches>
__attribute__((noinline)) void for_each_half_row(const RowGradients& gradients,
                                                 const WeightRows& weights, int64_t first,
                                                 int64_t last, Update update,
                                                 Prefetches... prefetch) {
  const int64_t* rows = gradients.rows;
  float* const copy = static_cast<float*>(
      __builtin_alloca_with_align(static_cast<size_t>(weights.width) * sizeof(float), 512));
  for (int64_t i = first; i < last; ++i) {
    if (rows != nullptr) (prefetch(rows[i + kAheadRows < last ? i + kAheadRows : last - 1]), ...);
    const int64_t row = rows == nullptr ? i : rows[i];
    uint16_t* __restrict half = weights.half + row * weights.stride;
    WIDEDEEP_SIMD
    for (int64_t d = 0; d < weights.width; ++d) copy[d] = widened(half[d]);
    update(row, copy, gradients.grads.data + i * gradients.grads.stride, i);
    round_row(copy, row_key(weights, row, i), weights.width, half);
  }
}

// Calls update(row, weights of the row, gradient, place among the touched) for each touched row,
// some rows after it asked for their lines.
template <class Update, class... Prefetches>
inline void for_each_row(const RowGradients& gradients, const WeightRows& weights, int64_t first,
                         int64_t last, Update update, Prefetches... prefetch) {
  if (weights.half != nullptr) {
    return for_each_half_row(gradients, weights, first, last, update, prefetch...);
  }
  const float* grads = gradients.grads.data;
  const int64_t stride = gradients.grads.stride;
  const int64_t* rows = gradients.rows;
  float* const data = weights.data;
  const int64_t row_stride = weights.stride;
  if (rows == nullptr) {
    for (int64_t i = first; i < last; ++i) update(i, data + i * row_stride, grads + i * stride, i);
    return;
  }
  for (int64_t i = first; i < last && i < first + kAheadRows; ++i) (prefetch(rows[i]), ...);
  for (int64_t i = first; i < last; ++i) {
    const int64_t ahead = i + kAheadRows;
    (prefetch(rows[ahead < last ? ahead : last - 1]), ...);
    update(rows[i], data + rows[i] * row_stride, grads + i * stride, i);
  }
}

template <int kWidth>
void sgd(const SgdRequest& request, int64_t first, int64_t last) {
  const int64_t width = kWidth > 0 ? kWidth : request.weights.width;
  const float scale = request.gradients.grad_scale;
  for_each_row(
      request.gradients, request.weights, first, last,
      [=, &request](int64_t, float* __restrict w, const float* grad, int64_t) WIDEDEEP_INLINE {
        WIDEDEEP_SIMD
        for (int64_t d = 0; d < width; ++d) w[d] -= request.lr * (grad[d] * scale);
      },
      RowPrefetch(request.weights));
}

void momentum(const MomentumRequest& request, int64_t first, int64_t last) {
  const int64_t width = request.weights.width;
  const float scale = request.gradients.grad_scale;
  // w - lr·v, or with a look ahead w - lr·(g + momentum·v)
  const float of_grad = request.nesterov ? 1.0f : 0.0f;
  const float of_velocity = request.nesterov ? request.momentum : 1.0f;
  for_each_row(
      request.gradients, request.weights, first, last,
      [=, &request](int64_t row, float* __restrict w, const float* grad, int64_t) WIDEDEEP_INLINE {
        float* __restrict v = request.velocity.data + row * request.velocity.stride;
        WIDEDEEP_SIMD
        for (int64_t d = 0; d < width; ++d) {
          const float g = grad[d] * scale;
          const float velocity = request.momentum * v[d] + g;
          v[d] = velocity;
          w[d] -= request.lr * (of_grad * g + of_velocity * velocity);
        }
      },
      RowPrefetch(request.weights), RowPrefetch(request.velocity));
}

template <bool kCentered, bool kMomentum>
void rmsprop(const RmspropRequest& request, int64_t first, int64_t last) {
  const int64_t width = request.weights.width;
  const float scale = request.gradients.grad_scale;
  const float decay = request.decay;
  for_each_row(
      request.gradients, request.weights, first, last,
      [=, &request](int64_t row, float* __restrict w, const float* grad, int64_t) WIDEDEEP_INLINE {
        float* __restrict s = request.square.data + row * request.square.stride;
        float* __restrict m = kCentered ? request.mean.data + row * request.mean.stride : nullptr;
        float* __restrict v =
            kMomentum ? request.velocity.data + row * request.velocity.stride : nullptr;
        WIDEDEEP_SIMD
        for (int64_t d = 0; d < width; ++d) {
          const float g = grad[d] * scale;
          const float square = decay * s[d] + request.one_minus_decay * (g * g);
          s[d] = square;
          float spread = square;
          if (kCentered) {
            const float mean = decay * m[d] + request.one_minus_decay * g;
            m[d] = mean;
            spread = square - mean * mean;
            spread = spread > 0.0f ? spread : 0.0f;
          }
          const float root =
              __builtin_sqrtf(spread + request.eps_in_root) + request.eps_beside_root;
          float change = request.lr_of_step * (g / root);
          if (kMomentum) {
            change = request.momentum * v[d] + change;
            v[d] = change;
          }
          w[d] -= request.lr_of_total * change;
        }
      },
      RowPrefetch(request.weights), RowPrefetch(request.square));
}

template <int kWidth>
void adagrad(const AdagradRequest& request, int64_t first, int64_t last) {
  const int64_t width = kWidth > 0 ? kWidth : request.weights.width;
  const float scale = request.gradients.grad_scale;
  const float lr = request.lr;
  const float eps = request.eps;
  const float l2 = request.l2;
  for_each_row(
      request.gradients, request.weights, first, last,
      [=, &request](int64_t row, float* __restrict w, const float* grad, int64_t) WIDEDEEP_INLINE {
        float* __restrict acc = request.accumulator.data + row * request.accumulator.stride;
        WIDEDEEP_SIMD
        for (int64_t d = 0; d < width; ++d) {
          const float g = grad[d] * scale + l2 * w[d];
          const float n = acc[d] + g * g;
          acc[d] = n;
          w[d] -= lr * g / (__builtin_sqrtf(n) + eps);
        }
      },
      RowPrefetch(request.weights), RowPrefetch(request.accumulator));
}

constexpr int64_t kSums = 16;

// The mean of a row's squared gradients, in the same order of sums for every instruction set.
template <int kWidth>
inline float mean_square(const float* __restrict grad, const float* __restrict w, int64_t row_width,
                         float scale, float l2) {
  const int64_t width = kWidth > 0 ? kWidth : row_width;
  float sums[kSums] = {};
  for (int64_t first = 0; first < width; first += kSums) {
    const int64_t n = width - first < kSums ? width - first : kSums;
    WIDEDEEP_SIMD
    for (int64_t i = 0; i < n; ++i) {
      const float g = grad[first + i] * scale + l2 * w[first + i];
      sums[i] += g * g;
    }
  }
  for (int64_t half = kSums / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0] / static_cast<float>(width);
}

template <int kWidth>
void adagrad_by_row(const AdagradRequest& request, int64_t first, int64_t last) {
  const int64_t width = kWidth > 0 ? kWidth : request.weights.width;
  const float scale = request.gradients.grad_scale;
  const float l2 = request.l2;
  for_each_row(
      request.gradients, request.weights, first, last,
      [=, &request](int64_t row, float* __restrict w, const float* grad, int64_t) WIDEDEEP_INLINE {
        float& total = request.accumulator.data[row * request.accumulator.stride];
        total += mean_square<kWidth>(grad, w, width, scale, l2);
        const float rate = request.lr / (__builtin_sqrtf(total) + request.eps);
        WIDEDEEP_SIMD
        for (int64_t d = 0; d < width; ++d) w[d] -= rate * (grad[d] * scale + l2 * w[d]);
      },
      RowPrefetch(request.weights), RowPrefetch(request.accumulator));
}

template <int kWidth>
void adam(const AdamRequest& request, int64_t first, int64_t last) {
  const int64_t width = kWidth > 0 ? kWidth : request.weights.width;
  const float scale = request.gradients.grad_scale;
  for_each_row(
      request.gradients, request.weights, first, last,
      [=, &request](int64_t row, float* __restrict w, const float* grad, int64_t) WIDEDEEP_INLINE {
        float* __restrict m = request.mean.data + row * request.mean.stride;
        float* __restrict v = request.square.data + row * request.square.stride;
        WIDEDEEP_SIMD
        for (int64_t d = 0; d < width; ++d) {
          const float g = grad[d] * scale;
          const float mean = request.beta1 * m[d] + request.one_minus_beta1 * g;
          const float square = request.beta2 * v[d] + request.one_minus_beta2 * (g * g);
          m[d] = mean;
          v[d] = square;
          const float change = request.lr * mean / (__builtin_sqrtf(square) + request.eps);
          w[d] = request.decay * w[d] - change;
        }
      },
      RowPrefetch(request.weights), RowPrefetch(request.mean), RowPrefetch(request.square));
}

inline float negative_power(float n, float lr_power) {
  return static_cast<float>(__builtin_pow(static_cast<double>(n), -static_cast<double>(lr_power)));
}

// kSquareRoot: lr_power is -0.5, as nearly always.
template <int kWidth, bool kSquareRoot>
int64_t ftrl(const FtrlRequest& request, int64_t first, int64_t last) {
  const int64_t width = kWidth > 0 ? kWidth : request.weights.width;
  const float scale = request.gradients.grad_scale;
  const float l1 = request.l1;
  const float l2 = request.l2;
  const float beta = request.beta;
  const float shrinkage = request.shrinkage;
  int64_t change = 0;
  for_each_row(
      request.gradients, request.weights, first, last,
      [=, &request, &change](int64_t row, float* __restrict w, const float* grad, int64_t place)
          WIDEDEEP_INLINE {
            const float inverse_lr = request.rates == nullptr
                                         ? request.inverse_lr
                                         : request.inverse_lr / request.rates[place];
            float product = 0.0f;
            float* __restrict z = request.z.data + row * request.z.stride;
            float* __restrict n = request.n.data + row * request.n.stride;
            int32_t nonzero = 0;
            WIDEDEEP_SIMD
            for (int64_t d = 0; d < width; ++d) {
              const float g = grad[d] * scale;
              const float old = w[d];
              product += g * old;
              const float total = n[d] + g * g;
              float root, old_root;
              if (kSquareRoot) {
                root = __builtin_sqrtf(total);
                old_root = __builtin_sqrtf(n[d]);
              } else {
                root = negative_power(total, request.lr_power);
                old_root = negative_power(n[d], request.lr_power);
              }
              const float sigma = (root - old_root) * inverse_lr;
              const float linear = z[d] + ((g + shrinkage * old) - sigma * old);
              const float moved =
                  -(linear - __builtin_copysignf(l1, linear)) / ((beta + root) * inverse_lr + l2);
              const float weight = __builtin_fabsf(linear) <= l1 ? 0.0f : moved;
              n[d] = total;
              z[d] = linear;
              w[d] = weight;
              nonzero += static_cast<int32_t>(weight != 0.0f) - static_cast<int32_t>(old != 0.0f);
            }
            change += nonzero;
            if (request.products != nullptr) request.products[place] = product;
          },
      RowPrefetch(request.weights), RowPrefetch(request.z), RowPrefetch(request.n));
  return change;
}

template <bool kSquareRoot>
int64_t ftrl_of_width(const FtrlRequest& request, int64_t begin, int64_t end) {
  switch (request.weights.width) {
    case 1:
      return ftrl<1, kSquareRoot>(request, begin, end);
    case 16:
      return ftrl<16, kSquareRoot>(request, begin, end);
    default:
      return ftrl<0, kSquareRoot>(request, begin, end);
  }
}

}  // namespace

void sgd_rows_range(const SgdRequest& request, int64_t begin, int64_t end) {
  return request.weights.width == 16 ? sgd<16>(request, begin, end) : sgd<0>(request, begin, end);
}

void momentum_rows_range(const MomentumRequest& request, int64_t begin, int64_t end) {
  momentum(request, begin, end);
}

void rmsprop_rows_range(const RmspropRequest& request, int64_t begin, int64_t end) {
  const bool centered = request.mean.data != nullptr;
  const bool adds_up = request.velocity.data != nullptr;
  if (centered) {
    adds_up ? rmsprop<true, true>(request, begin, end) : rmsprop<true, false>(request, begin, end);
  } else {
    adds_up ? rmsprop<false, true>(request, begin, end)
            : rmsprop<false, false>(request, begin, end);
  }
}

void adagrad_rows_range(const AdagradRequest& request, int64_t begin, int64_t end) {
  if (request.accumulator.width != request.weights.width) {
    switch (request.weights.width) {
      case 16:
        return adagrad_by_row<16>(request, begin, end);
      case 32:
        return adagrad_by_row<32>(request, begin, end);
      default:
        return adagrad_by_row<0>(request, begin, end);
    }
  }
  switch (request.weights.width) {
    case 1:
      return adagrad<1>(request, begin, end);
    case 8:
      return adagrad<8>(request, begin, end);
    case 16:
      return adagrad<16>(request, begin, end);
    case 32:
      return adagrad<32>(request, begin, end);
    default:
      return adagrad<0>(request, begin, end);
  }
}

void adam_rows_range(const AdamRequest& request, int64_t begin, int64_t end) {
  return request.weights.width == 16 ? adam<16>(request, begin, end) : adam<0>(request, begin, end);
}

int64_t ftrl_rows_range(const FtrlRequest& request, int64_t begin, int64_t end) {
  return request.lr_power == -0.5f ? ftrl_of_width<true>(request, begin, end)
                                   : ftrl_of_width<false>(request, begin, end);
}

namespace {

// The quantile of a standard normal variable that is known to lie within 2 of 0, by Acklam's
// rational approximation (2003) of the inverse of its distribution.
inline double normal_within_two(double uniform) {
  const double q = (uniform - 0.5) * 0.9544997361036416;  // twice the mass from 0 to 2
  const double r = q * q;
  const double above =
      ((((-39.69683028665376 * r + 220.9460984245205) * r - 275.9285104469687) * r +
        138.3577518672690) *
           r -
       30.66479806628331) *
          r +
      2.506628277459239;
  const double below =
      ((((-54.47609879822406 * r + 161.5858368580409) * r - 155.6989798598866) * r +
        66.80131188771972) *
           r -
       13.28068155288572) *
          r +
      1.0;
  return above * q / below;
}

}  // namespace

void round_rows_range(const ConstRows& rows, const WeightRows& out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    round_row(rows.data + i * rows.stride, row_key(out, i, i), rows.width,
              out.half + i * out.stride);
  }
}

void init_rows_range(const InitRequest& request, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t id = request.ids != nullptr ? request.ids[i] : request.first_row + i;
    const uint64_t row = mix(request.key + static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15ULL);
    float* out = request.out.data + i * request.out.stride;
    if (request.init == RowInit::truncated_normal) {
      WIDEDEEP_SIMD
      for (int64_t d = 0; d < request.out.width; ++d) {
        const uint64_t bits = mix(row + static_cast<uint64_t>(d) * 0xD1B54A32D192ED03ULL);
        const double uniform = static_cast<double>(static_cast<int64_t>(bits >> 11)) * 0x1p-53;
        out[d] = static_cast<float>(normal_within_two(uniform)) * request.scale;
      }
      continue;
    }
    if (request.init == RowInit::uniform) {
      WIDEDEEP_SIMD
      for (int64_t d = 0; d < request.out.width; ++d) {
        const uint64_t bits = mix(row + static_cast<uint64_t>(d) * 0xD1B54A32D192ED03ULL);
        // An odd integer between -2^24 and 2^24, which float32 holds.
        out[d] = static_cast<float>(2 * static_cast<int32_t>(bits >> 40) + 1 - (1 << 24)) *
                 request.scale;
      }
      continue;
    }
    WIDEDEEP_SIMD
    for (int64_t d = 0; d < request.out.width; ++d) {
      const uint64_t bits = mix(row + static_cast<uint64_t>(d) * 0xD1B54A32D192ED03ULL);
      const int32_t sum = static_cast<int32_t>((bits & 0xFFFF) + (bits >> 16 & 0xFFFF) +
                                               (bits >> 32 & 0xFFFF) + (bits >> 48));
      out[d] = static_cast<float>(sum - 131070) * request.scale;
    }
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
