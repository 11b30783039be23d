// The tower's forward product for few rows: the weights are read where they lie, and turned round
// in registers.
#include "tower_isa.hpp"
#include "tower_vector.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {

#if defined(WIDEDEEP_ISA_IS_avx512) || defined(WIDEDEEP_ISA_IS_avx2)
namespace {

constexpr int64_t kOutputs = 8;  // of a register
constexpr int kGroups = 4;       // of outputs, whose sums do not wait for each other
constexpr int kMostRows = 4;     // of the batch, that go through the weights together

// Eight inputs of eight outputs, whose weights lie `stride` apart: to[k] holds those of input k.
inline void turn(const float* from, int64_t stride, __m256 (&to)[kOutputs]) {
  __m256 rows[kOutputs];  // inputs 0 to 3 of outputs n and n + 4, then inputs 4 to 7
  const float* const second = from + 4 * stride;
#pragma GCC unroll 4
  for (int64_t n = 0; n < 4; ++n) {
    const float* a = from + n * stride;
    const float* b = second + n * stride;
    rows[n] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1);
    rows[n + 4] =
        _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a + 4)), _mm_loadu_ps(b + 4), 1);
  }
#pragma GCC unroll 2
  for (int half = 0; half < 8; half += 4) {
    const __m256 low = _mm256_unpacklo_ps(rows[half], rows[half + 1]);
    const __m256 high = _mm256_unpackhi_ps(rows[half], rows[half + 1]);
    const __m256 next_low = _mm256_unpacklo_ps(rows[half + 2], rows[half + 3]);
    const __m256 next_high = _mm256_unpackhi_ps(rows[half + 2], rows[half + 3]);
    to[half] = _mm256_shuffle_ps(low, next_low, 0x44);
    to[half + 1] = _mm256_shuffle_ps(low, next_low, 0xee);
    to[half + 2] = _mm256_shuffle_ps(high, next_high, 0x44);
    to[half + 3] = _mm256_shuffle_ps(high, next_high, 0xee);
  }
}

float finished(const RowProduct& request, float sum, int64_t output) {
  if (request.bias != nullptr) sum += request.bias[output];
  return request.relu && 0.0f > sum ? 0.0f : sum;
}

// Adds inputs [first + skipped, first + 8).
template <int G, int R>
inline void add_inputs(const float* in, int64_t in_stride, const float* weight, int64_t stride,
                       int64_t skipped, __m256 (&sums)[G][R]) {
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) {
    __m256 turned[kOutputs];
    turn(weight + g * kOutputs * stride, stride, turned);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kOutputs; ++i) {
      if (i < skipped) continue;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        sums[g][r] = _mm256_fmadd_ps(_mm256_set1_ps(in[r * in_stride + i]), turned[i], sums[g][r]);
      }
    }
  }
}

// R rows from `row` on times the weights of G groups of outputs from `output` on.
template <int G, int R>
void product_of_few(const RowProduct& request, int64_t row, int64_t output) {
  const int64_t inputs = request.in.width;
  const float* in = request.in.data + row * request.in.stride;
  const float* weight = request.weight.data + output * request.weight.stride;
  __m256 sums[G][R];
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sums[g][r] = _mm256_setzero_ps();
  }
  for (int64_t left = inputs; left >= kOutputs; left -= kOutputs) {
    add_inputs<G, R>(in, request.in.stride, weight, request.weight.stride, 0, sums);
    in += kOutputs;
    weight += kOutputs;
  }
  const int64_t rest = inputs % kOutputs;  // are read with those before them
  const int64_t back = kOutputs - rest;
  if (rest > 0) {
    add_inputs<G, R>(in - back, request.in.stride, weight - back, request.weight.stride, back,
                     sums);
  }
  for (int g = 0; g < G; ++g) {
    for (int r = 0; r < R; ++r) {
      float found[kOutputs];
      _mm256_storeu_ps(found, sums[g][r]);
      const int64_t first = output + g * kOutputs;
      float* const out = request.out.data + (row + r) * request.out.stride + first;
      for (int64_t n = 0; n < kOutputs; ++n) out[n] = finished(request, found[n], first + n);
    }
  }
}

// From the last output down: the update, which goes up, has left the last ones in the cache.
template <int R>
void product_of_rows(const RowProduct& request, int64_t row) {
  int64_t output = request.outputs;
  for (; output % kOutputs != 0; --output) {
    const float* weight = request.weight.data + (output - 1) * request.weight.stride;
    for (int64_t r = row; r < row + R; ++r) {
      const float* in = request.in.data + r * request.in.stride;
      float sum = 0.0f;
      for (int64_t k = 0; k < request.in.width; ++k) sum = __builtin_fmaf(in[k], weight[k], sum);
      request.out.data[r * request.out.stride + output - 1] = finished(request, sum, output - 1);
    }
  }
  for (; output % (kGroups * kOutputs) != 0; output -= kOutputs) {
    product_of_few<1, R>(request, row, output - kOutputs);
  }
  for (; output > 0; output -= kGroups * kOutputs) {
    product_of_few<kGroups, R>(request, row, output - kGroups * kOutputs);
  }
}

}  // namespace

bool multiplies_few_rows(int64_t rows, int64_t inputs) {
  return rows <= kMostRows && inputs >= kOutputs;
}

void product_few_rows(const RowProduct& request, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end;) {
    switch (end - row) {
      case 1:
        product_of_rows<1>(request, row);
        return;
      case 2:
      case 3:
        product_of_rows<2>(request, row);
        row += 2;
        break;
      default:
        product_of_rows<kMostRows>(request, row);
        row += kMostRows;
    }
  }
}

#else

bool multiplies_few_rows(int64_t, int64_t) { return false; }

void product_few_rows(const RowProduct&, int64_t, int64_t) {}

#endif

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
