#include "float_sum.hpp"

#include <bit>

namespace widedeep {
namespace {

#if defined(__aarch64__)
constexpr int kRegister = 4;
#else
constexpr int kRegister = 8;
#endif
constexpr int kSideBySide = 4;
constexpr int kLevels = 4;

int64_t log2_above(int64_t n) {
  return n <= 2 ? 1 : 64 - std::countl_zero(static_cast<uint64_t>(n - 1));
}

// Sums of kColumns columns of `rows` rows that lie one after the other. A level holds the sums of
// 2^power numbers of the level below it.
template <int kColumns>
void cascade(const float* x, int64_t rows, float* sums) {
  float level[kLevels][kColumns] = {};
  const int64_t part = log2_above(rows) / kLevels;
  const int64_t power = part > 4 ? part : 4;
  const int64_t step = int64_t{1} << power;
  int64_t row = 0;
  while (row + step <= rows) {
    for (const int64_t stop = row + step; row < stop; ++row) {
      for (int c = 0; c < kColumns; ++c) level[0][c] += x[row * kColumns + c];
    }
    for (int i = 1; i < kLevels; ++i) {
      for (int c = 0; c < kColumns; ++c) {
        level[i][c] += level[i - 1][c];
        level[i - 1][c] = 0.0f;
      }
      if ((row & ((step - 1) << (i * power))) != 0) break;
    }
  }
  for (; row < rows; ++row) {
    for (int c = 0; c < kColumns; ++c) level[0][c] += x[row * kColumns + c];
  }
  for (int i = 1; i < kLevels; ++i) {
    for (int c = 0; c < kColumns; ++c) level[0][c] += level[i][c];
  }
  for (int c = 0; c < kColumns; ++c) sums[c] = level[0][c];
}

// The sums of the kWidth columns of n rows: four rows side by side, then what is left.
template <int kWidth>
void add_rows(const float* x, int64_t n, float* sums) {
  float four[kSideBySide * kWidth];
  const int64_t fours = n / kSideBySide;
  cascade<kSideBySide * kWidth>(x, fours, four);
  for (int64_t row = fours * kSideBySide; row < n; ++row) {
    for (int c = 0; c < kWidth; ++c) four[c] += x[row * kWidth + c];
  }
  for (int i = 1; i < kSideBySide; ++i) {
    for (int c = 0; c < kWidth; ++c) four[c] += four[i * kWidth + c];
  }
  for (int c = 0; c < kWidth; ++c) sums[c] = four[c];
}

}  // namespace

float float_sum(const float* x, int64_t n) {
  float sum = 0.0f;
  if (n < kRegister) {
    add_rows<1>(x, n, &sum);
    return sum;
  }
  float lanes[kRegister];
  const int64_t registers = n / kRegister;
  add_rows<kRegister>(x, registers, lanes);
  for (int64_t i = registers * kRegister; i < n; ++i) sum += x[i];
  for (const float lane : lanes) sum += lane;
  return sum;
}

}  // namespace widedeep
