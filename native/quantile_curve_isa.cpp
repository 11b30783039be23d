// Piecewise linear curves: the numbers of a node are all compared, so there is no branch to guess
// wrong.
#include <stdint.h>
#include <string.h>

#if defined(WIDEDEEP_ISA_IS_avx512) || defined(WIDEDEEP_ISA_IS_avx2)
#include <immintrin.h>
#endif

#include "quantile_curve.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int kFan = QuantileCurve::kFan;
constexpr double kUnit = 1.0 / 1024;  // as the segments count

// How many of kFan ascending values are at most x.
#if defined(WIDEDEEP_ISA_IS_avx512)
int64_t count_in_node(const double* values, double x) {
  const __m512d bound = _mm512_set1_pd(x);
  const unsigned low = _mm512_cmp_pd_mask(_mm512_loadu_pd(values), bound, _CMP_LE_OQ);
  const unsigned high = _mm512_cmp_pd_mask(_mm512_loadu_pd(values + 8), bound, _CMP_LE_OQ);
  return __builtin_popcount(low | high << 8);
}
#elif defined(WIDEDEEP_ISA_IS_avx2)
int64_t count_in_node(const double* values, double x) {
  const __m256d bound = _mm256_set1_pd(x);
  int bits = 0;
  for (int i = 0; i < kFan; i += 4) {
    const __m256d at_most = _mm256_cmp_pd(_mm256_loadu_pd(values + i), bound, _CMP_LE_OQ);
    bits |= _mm256_movemask_pd(at_most) << i;
  }
  return __builtin_popcount(static_cast<unsigned>(bits));
}
#else
// Two numbers in one register, of any processor.
typedef double Pair __attribute__((vector_size(16)));
typedef int64_t PairMask __attribute__((vector_size(16)));

int64_t count_in_node(const double* values, double x) {
  const Pair bound = {x, x};
  PairMask counts = {0, 0};
  for (int i = 0; i < kFan; i += 2) {
    Pair pair;
    memcpy(&pair, values + i, sizeof pair);
    counts -= pair <= bound;  // true is -1
  }
  return counts[0] + counts[1];
}
#endif

}  // namespace

void quantile_curve(const QuantileCurve& curve, const double* x, int64_t n, double* out) {
  for (int64_t i = 0; i < n; ++i) {
    // Down the tree; the last node where x is above all.
    int64_t node = 0;
    for (int level = 0; level < curve.n_levels; ++level) {
      node = node < curve.last_nodes[level] ? node : curve.last_nodes[level];
      node = node * kFan + count_in_node(curve.levels[level] + node * kFan, x[i]);
    }
    const QuantileCurve::Segment& segment =
        curve.segments[node < curve.last_segment ? node : curve.last_segment];
    out[i] = segment.base + (x[i] * kUnit - segment.start) * segment.slope;
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
