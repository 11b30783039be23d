// What the tower's kernels do with parts of a register. Only for *_isa.cpp and
// *_avx512bf16.cpp.
#pragma once

#include <string.h>

#if defined(WIDEDEEP_ISA_IS_avx512bf16) && !defined(WIDEDEEP_ISA_IS_avx512)
#define WIDEDEEP_ISA_IS_avx512 1
#endif
#include "score_vector.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

// Rows of a tile of sums, two registers wide: with the two of the right side and one of the left
// they fill the register file.
#if defined(WIDEDEEP_ISA_IS_avx512)
constexpr int kTileRows = 14;
#elif defined(WIDEDEEP_ISA_IS_avx2)
constexpr int kTileRows = 6;
#elif defined(__x86_64__)
constexpr int kTileRows = 4;
#else
constexpr int kTileRows = 8;
#endif

// The first `count` numbers, and zeros; 0 <= count <= kLanes.
inline Vec vec_load_first(const float* p, int64_t count) {
#if defined(WIDEDEEP_ISA_IS_avx512)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#else
  if (count == kLanes) return vec_load(p);
  float numbers[kLanes] = {};
  memcpy(numbers, p, static_cast<size_t>(count) * sizeof(float));
  return vec_load(numbers);
#endif
}

inline void vec_store_first(float* p, Vec v, int64_t count) {
#if defined(WIDEDEEP_ISA_IS_avx512)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v);
#else
  if (count == kLanes) return vec_store(p, v);
  float numbers[kLanes];
  vec_store(numbers, v);
  memcpy(p, numbers, static_cast<size_t>(count) * sizeof(float));
#endif
}

// `v` where `by` is above 0 (or no number), else 0.
inline Vec vec_where_positive(Vec v, Vec by) {
#if defined(WIDEDEEP_ISA_IS_avx512)
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(by, vec_zero(), _CMP_NLE_UQ), v);
#elif defined(WIDEDEEP_ISA_IS_avx2)
  return _mm256_and_ps(_mm256_cmp_ps(by, vec_zero(), _CMP_NLE_UQ), v);
#elif defined(__x86_64__)
  return _mm_and_ps(_mm_cmpnle_ps(by, vec_zero()), v);
#else
  const uint32x4_t dropped = vcleq_f32(by, vec_zero());
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), dropped));
#endif
}

// Four rows of four numbers, transposed: to[k][r] = from[r][k].
inline void transpose_4x4(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
#if defined(__x86_64__)
  __m128 a = _mm_loadu_ps(from);
  __m128 b = _mm_loadu_ps(from + from_stride);
  __m128 c = _mm_loadu_ps(from + 2 * from_stride);
  __m128 d = _mm_loadu_ps(from + 3 * from_stride);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(to, a);
  _mm_storeu_ps(to + to_stride, b);
  _mm_storeu_ps(to + 2 * to_stride, c);
  _mm_storeu_ps(to + 3 * to_stride, d);
#else
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t k = 0; k < 4; ++k) to[k * to_stride + r] = from[r * from_stride + k];
  }
#endif
}

#if defined(WIDEDEEP_ISA_IS_avx512)
// The same for sixteen.
inline void transpose_16x16(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  constexpr __mmask16 kAll = 0xffff;
  __m512 rows[16];  // then of each four rows: columns j, 4 + j, 8 + j and 12 + j
  for (int g = 0; g < 16; g += 4) {
    const __m512 a = _mm512_loadu_ps(from + g * from_stride);
    const __m512 b = _mm512_loadu_ps(from + (g + 1) * from_stride);
    const __m512 c = _mm512_loadu_ps(from + (g + 2) * from_stride);
    const __m512 d = _mm512_loadu_ps(from + (g + 3) * from_stride);
    const __m512d ab = _mm512_castps_pd(_mm512_maskz_unpacklo_ps(kAll, a, b));
    const __m512d ab_high = _mm512_castps_pd(_mm512_maskz_unpackhi_ps(kAll, a, b));
    const __m512d cd = _mm512_castps_pd(_mm512_maskz_unpacklo_ps(kAll, c, d));
    const __m512d cd_high = _mm512_castps_pd(_mm512_maskz_unpackhi_ps(kAll, c, d));
    rows[g] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, ab, cd));
    rows[g + 1] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, ab, cd));
    rows[g + 2] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, ab_high, cd_high));
    rows[g + 3] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, ab_high, cd_high));
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 even = _mm512_maskz_shuffle_f32x4(kAll, rows[j], rows[4 + j], 0x88);
    const __m512 odd = _mm512_maskz_shuffle_f32x4(kAll, rows[j], rows[4 + j], 0xdd);
    const __m512 even_high = _mm512_maskz_shuffle_f32x4(kAll, rows[8 + j], rows[12 + j], 0x88);
    const __m512 odd_high = _mm512_maskz_shuffle_f32x4(kAll, rows[8 + j], rows[12 + j], 0xdd);
    _mm512_storeu_ps(to + j * to_stride, _mm512_maskz_shuffle_f32x4(kAll, even, even_high, 0x88));
    _mm512_storeu_ps(to + (4 + j) * to_stride,
                     _mm512_maskz_shuffle_f32x4(kAll, odd, odd_high, 0x88));
    _mm512_storeu_ps(to + (8 + j) * to_stride,
                     _mm512_maskz_shuffle_f32x4(kAll, even, even_high, 0xdd));
    _mm512_storeu_ps(to + (12 + j) * to_stride,
                     _mm512_maskz_shuffle_f32x4(kAll, odd, odd_high, 0xdd));
  }
}
#endif

}  // namespace
}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
