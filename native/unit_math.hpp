// exp, tanh and the logistic function as loops for the compiler's vectors call them. Only for
// *_isa.cpp.
#pragma once

#include <stdint.h>
#include <string.h>

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

inline float float_of(int32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline int32_t bits_of(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// a * b + c, in one rounding where the instruction set has it.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// exp within 2 units of the last place: 2^n times a polynomial in the rest (Cephes' coefficients).
inline float exp_of(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: its last bit stands for 1
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = multiply_add(x, 1.44269504f, kRound);
  const float n = shifted - kRound;
  const float r = multiply_add(n, 2.12194440e-4f, multiply_add(n, -0.693359375f, x));
  float sum = 1.9875691500e-4f;
  sum = multiply_add(sum, r, 1.3981999507e-3f);
  sum = multiply_add(sum, r, 8.3334519073e-3f);
  sum = multiply_add(sum, r, 4.1665795894e-2f);
  sum = multiply_add(sum, r, 1.6666665459e-1f);
  sum = multiply_add(sum, r, 5.0000001201e-1f);
  const float power = float_of((bits_of(shifted) - bits_of(kRound) + 127) * (1 << 23));
  return (multiply_add(sum, r * r, r) + 1.0f) * power;
}

inline float tanh_of(float x) {
  const float size = x < 0.0f ? -x : x;
  const float power = exp_of(-2.0f * size);
  const float far = (1.0f - power) / (1.0f + power);
  const float square = x * x;
  float near = -5.70498872745e-3f;
  near = multiply_add(near, square, 2.06390887954e-2f);
  near = multiply_add(near, square, -5.37397155531e-2f);
  near = multiply_add(near, square, 1.33314422036e-1f);
  near = multiply_add(near, square, -3.33332819422e-1f);
  near = multiply_add(near * square, x, x);
  const float signed_far = x < 0.0f ? -far : far;
  // By bits: a choice between two sums would become a branch, and no vector.
  const int32_t chosen = -static_cast<int32_t>(size < 0.625f);
  return float_of((bits_of(near) & chosen) | (bits_of(signed_far) & ~chosen));
}

inline float logistic_of(float x) { return 1.0f / (1.0f + exp_of(-x)); }

}  // namespace
}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
