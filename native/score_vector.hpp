// One register of floats in the instruction set that this file is compiled for. Only for
// *_isa.cpp and *_avx512bf16.cpp.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

#if defined(WIDEDEEP_ISA_IS_avx512) || defined(WIDEDEEP_ISA_IS_avx512bf16)

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kBlockRows = 6;
constexpr int kPanelVecs = 4;  // 6 x 4 sums, 4 weights, 1 input: 29 of 32 registers
inline Vec vec_zero() { return _mm512_setzero_ps(); }
inline Vec vec_load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec vec_load_bfloat16(const uint16_t* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xffff, halves);
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, wide, 16));
}
inline void vec_store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec vec_all(float x) { return _mm512_set1_ps(x); }
inline Vec vec_add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec vec_max(Vec a, Vec b) { return _mm512_maskz_max_ps(0xffff, a, b); }
inline Vec vec_sqrt(Vec a) { return _mm512_maskz_sqrt_ps(0xffff, a); }
inline Vec vec_multiply_add(Vec a, Vec b, Vec sum) { return _mm512_fmadd_ps(a, b, sum); }

#elif defined(WIDEDEEP_ISA_IS_avx2)

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kBlockRows = 6;
constexpr int kPanelVecs = 2;  // 6 x 2 sums, 2 weights, 1 input: 15 of 16 registers
inline Vec vec_zero() { return _mm256_setzero_ps(); }
inline Vec vec_load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec vec_load_bfloat16(const uint16_t* p) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
inline void vec_store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec vec_all(float x) { return _mm256_set1_ps(x); }
inline Vec vec_add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec vec_max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec vec_sqrt(Vec a) { return _mm256_sqrt_ps(a); }
inline Vec vec_multiply_add(Vec a, Vec b, Vec sum) { return _mm256_fmadd_ps(a, b, sum); }

#elif defined(__x86_64__)

using Vec = __m128;
constexpr int kLanes = 4;
constexpr int kBlockRows = 4;
constexpr int kPanelVecs = 2;  // 4 x 2 sums, 2 weights, 1 input, 2 products: 13 of 16 registers
inline Vec vec_zero() { return _mm_setzero_ps(); }
inline Vec vec_load(const float* p) { return _mm_loadu_ps(p); }
inline Vec vec_load_bfloat16(const uint16_t* p) {
  const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), halves));
}
inline void vec_store(float* p, Vec v) { _mm_storeu_ps(p, v); }
inline Vec vec_all(float x) { return _mm_set1_ps(x); }
inline Vec vec_add(Vec a, Vec b) { return _mm_add_ps(a, b); }
inline Vec vec_max(Vec a, Vec b) { return _mm_max_ps(a, b); }
inline Vec vec_sqrt(Vec a) { return _mm_sqrt_ps(a); }
inline Vec vec_multiply_add(Vec a, Vec b, Vec sum) { return _mm_add_ps(_mm_mul_ps(a, b), sum); }

#elif defined(__aarch64__)

using Vec = float32x4_t;
constexpr int kLanes = 4;
constexpr int kBlockRows = 8;
constexpr int kPanelVecs = 2;  // 8 x 2 sums, 2 weights, 1 input: 19 of 32 registers
inline Vec vec_zero() { return vdupq_n_f32(0.0f); }
inline Vec vec_load(const float* p) { return vld1q_f32(p); }
inline Vec vec_load_bfloat16(const uint16_t* p) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16));
}
inline void vec_store(float* p, Vec v) { vst1q_f32(p, v); }
inline Vec vec_all(float x) { return vdupq_n_f32(x); }
inline Vec vec_add(Vec a, Vec b) { return vaddq_f32(a, b); }
inline Vec vec_max(Vec a, Vec b) { return vmaxq_f32(a, b); }
inline Vec vec_sqrt(Vec a) { return vsqrtq_f32(a); }
inline Vec vec_multiply_add(Vec a, Vec b, Vec sum) { return vfmaq_f32(sum, a, b); }

#else
#error "score_vector.hpp knows x86-64 and arm64"
#endif

}  // namespace
}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
