// Gradients summed by row: the transpose of gathering.
#include "rows_isa.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int32_t kAhead = 16;    // occurrences whose gradients are asked for before they are read
constexpr int32_t kBlock = 1024;  // occurrences whose places are worked out together

// n / d for 32-bit n by one multiplication (Lemire, Kaser & Kurz 2019).
class Divider {
 public:
  explicit Divider(uint32_t d) : divisor_(d), inverse_(d > 1 ? UINT64_MAX / d + 1 : 0) {}
  uint32_t divide(uint32_t n) const {
    if (divisor_ == 1) return n;
    return static_cast<uint32_t>((static_cast<unsigned __int128>(inverse_) * n) >> 64);
  }

 private:
  uint32_t divisor_;
  uint64_t inverse_;
};

// Where the gradients of some occurrences lie, what they are multiplied by, and which of them is
// its row's first. Rows are short and of any length: told by a mask, a new row costs no branch.
struct Block {
  const float* gradient[kBlock + kAhead];
  float factor[kBlock];
  uint32_t keep[kBlock];  // 0 for a row's first occurrence, all bits otherwise
};

void fill_gradients(const SegmentRequest& request, int32_t first, int32_t n, Block& block) {
  const uint32_t n_features = static_cast<uint32_t>(request.n_features);
  const Divider by_features(n_features);
  const float* grad = request.grad.data;
  const int64_t stride = request.grad.stride;
  const int64_t* column = request.column_of_feature;
  const int32_t* cells = request.cells + first;
  for (int32_t i = 0; i < n; ++i) {
    const uint32_t cell = static_cast<uint32_t>(cells[i]);
    const uint32_t b = by_features.divide(cell);
    block.gradient[i] = grad + static_cast<int64_t>(b) * stride + column[cell - b * n_features];
  }
  for (int32_t i = n; i < n + kAhead; ++i) block.gradient[i] = n > 0 ? block.gradient[n - 1] : grad;
}

void fill_factors(const SegmentRequest& request, int32_t first, int32_t n, Block& block) {
  for (int32_t i = 0; i < n; ++i) {
    const int32_t occurrence = request.order[first + i];
    const int32_t cell = request.cells[first + i];
    float factor = request.scale_of_cell != nullptr ? request.scale_of_cell[cell] : 1.0f;
    if (request.values != nullptr) factor *= request.values[occurrence];
    const int64_t place =
        request.sequence_place != nullptr ? request.sequence_place[occurrence] : -1;
    block.factor[i] = place >= 0 ? 1.0f : factor;
    if (place >= 0) {
      block.gradient[i] = request.sequence_grad.data + place * request.sequence_grad.stride;
    }
  }
}

// Marks the first occurrences among [first, first + n); `row` is the first row that starts there
// or later. Returns the first row that starts after them.
int64_t fill_keep(const SegmentRequest& request, int64_t row, int32_t first, int32_t n,
                  Block& block) {
  memset(block.keep, 0xFF, static_cast<size_t>(n) * sizeof(uint32_t));
  while (row < request.n_rows && request.starts[row] < first + n) {
    block.keep[request.starts[row] - first] = 0;
    ++row;
  }
  return row;
}

// Adds up the rows that the block's occurrences belong to; `row` is that of the last one seen, and
// `sum` its running sum. Every occurrence writes its row's sum so far: the last one's stays.
template <int kWidth, bool kFactors>
void sum_block(const SegmentRequest& request, const Block& block, int32_t n, int64_t& row,
               float* running) {
  // A single column is summed in a vector of four: the mask then stays out of integer registers.
  constexpr int kUsed = kWidth < 16 ? kWidth : 16;
  constexpr int kLanes = kUsed < 4 ? 4 : kUsed;
  constexpr int kParts = kWidth / kUsed;
  constexpr size_t kBytes = kUsed * sizeof(float);
  typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
  typedef uint32_t Bits __attribute__((vector_size(kLanes * sizeof(float))));
  Vector sum[kParts] = {};
  for (int p = 0; p < kParts; ++p) memcpy(&sum[p], running + p * kUsed, kBytes);
  const int64_t stride = request.out.stride;
  int64_t at = row * stride;
  for (int32_t i = 0; i < n; ++i) {
    __builtin_prefetch(block.gradient[i + kAhead], 0, 3);
    const uint32_t keep = block.keep[i];
    at += keep == 0 ? stride : 0;
    for (int p = 0; p < kParts; ++p) {
      Vector gradient = {};
      memcpy(&gradient, block.gradient[i] + p * kUsed, kBytes);
      if (kFactors) gradient *= block.factor[i];
      sum[p] = reinterpret_cast<Vector>(reinterpret_cast<Bits>(sum[p]) & keep) + gradient;
      memcpy(request.out.data + at + p * kUsed, &sum[p], kBytes);
    }
  }
  for (int p = 0; p < kParts; ++p) memcpy(running + p * kUsed, &sum[p], kBytes);
  row = at / stride;
}

// The same for any width, in place.
void sum_block_of_any_width(const SegmentRequest& request, const Block& block, int32_t n,
                            int64_t& row) {
  const int64_t width = request.out.width;
  for (int32_t i = 0; i < n; ++i) {
    __builtin_prefetch(block.gradient[i + kAhead], 0, 3);
    row += block.keep[i] == 0 ? 1 : 0;
    float* __restrict out = request.out.data + row * request.out.stride;
    if (block.keep[i] == 0) memset(out, 0, static_cast<size_t>(width) * sizeof(float));
    const float* __restrict gradient = block.gradient[i];
    const float factor = block.factor[i];
    WIDEDEEP_SIMD
    for (int64_t d = 0; d < width; ++d) out[d] += factor * gradient[d];
  }
}

template <int kWidth>
void segment(const SegmentRequest& request, int64_t first_row, int64_t last_row) {
  const bool factors = kWidth == 0 || request.scale_of_cell != nullptr ||
                       request.values != nullptr || request.sequence_place != nullptr;
  Block block;
  float running[kWidth > 0 ? kWidth : 1] = {};
  const int32_t last = request.starts[last_row];
  int64_t row = first_row - 1;   // of the last occurrence added
  int64_t next_row = first_row;  // the first one that is not marked yet
  for (int32_t first = request.starts[first_row]; first < last; first += kBlock) {
    const int32_t n = last - first < kBlock ? last - first : kBlock;
    fill_gradients(request, first, n, block);
    next_row = fill_keep(request, next_row, first, n, block);
    if (factors) fill_factors(request, first, n, block);
    if constexpr (kWidth == 0) {
      sum_block_of_any_width(request, block, n, row);
    } else if (factors) {
      sum_block<kWidth, true>(request, block, n, row, running);
    } else {
      sum_block<kWidth, false>(request, block, n, row, running);
    }
  }
}

}  // namespace

void segment_sum_range(const SegmentRequest& request, int64_t begin, int64_t end) {
  switch (request.out.width) {
    case 1:
      return segment<1>(request, begin, end);
    case 4:
      return segment<4>(request, begin, end);
    case 8:
      return segment<8>(request, begin, end);
    case 16:
      return segment<16>(request, begin, end);
    case 32:
      return segment<32>(request, begin, end);
    case 64:
      return segment<64>(request, begin, end);
    default:
      return segment<0>(request, begin, end);
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
