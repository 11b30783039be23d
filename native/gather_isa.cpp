// Pooled embeddings, straight into their columns of the deep network's input.
#include "rows_isa.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

// How many examples ahead rows are asked for: far enough to hide a miss in DRAM behind the copies
// of the examples between, near enough that the lines are still in the first-level cache.
constexpr int64_t kAhead = 2;
constexpr int64_t kAheadIds = 8;  // of one cell; a longer bag is read in order and hides its own

void prefetch_example(const GatherRequest& request, int64_t b) {
  const CsrBatch& batch = request.batch;
  const int64_t* offsets = batch.offsets + b * batch.n_features;
  for (int64_t s = 0; s < request.slots.n; ++s) {
    const int32_t feature = request.slots.features[s];
    const int64_t begin = offsets[feature];
    int64_t end = offsets[feature + 1];
    if (bad_span(batch, begin, end)) return;
    end = end - begin > kAheadIds ? begin + kAheadIds : end;
    for (int64_t n = begin; n < end; ++n) {
      prefetch_row(request.weights, request.slots.bases[s] + batch.ids[n]);
    }
  }
}

template <int kWidth>
int64_t gather(const GatherRequest& request, int64_t first, int64_t last) {
  const CsrBatch& batch = request.batch;
  const SlotList& slots = request.slots;
  const int64_t width = kWidth > 0 ? kWidth : request.weights.width;
  for (int64_t b = first; b < first + kAhead && b < last; ++b) prefetch_example(request, b);
  for (int64_t b = first; b < last; ++b) {
    if (b + kAhead < last) prefetch_example(request, b + kAhead);
    float* row_out = request.out.data + b * request.out.stride;
    for (int64_t s = 0; s < slots.n; ++s) {
      const int64_t cell = b * batch.n_features + slots.features[s];
      const int64_t begin = batch.offsets[cell];
      const int64_t end = batch.offsets[cell + 1];
      if (bad_cell(batch, begin, end, slots.sizes[s])) return cell;
      float* out = row_out + slots.columns[s];
      if (end - begin == 1 && batch.values == nullptr) {
        const float* row =
            request.weights.data + (slots.bases[s] + batch.ids[begin]) * request.weights.stride;
        for (int64_t d = 0; d < width; ++d) out[d] = row[d] + 0.0f;  // as the sum: no -0
      } else {
        pool_bag<kWidth>(batch, begin, end, request.weights, slots.bases[s], slots.combiners[s],
                         out);
      }
    }
  }
  return kNoFault;
}

// Adds the bag's combined weights of every slot to one row of logits, in the order of the slots.
template <int kWidth>
int64_t wide(const GatherRequest& request, int64_t first, int64_t last) {
  const CsrBatch& batch = request.batch;
  const SlotList& slots = request.slots;
  for (int64_t b = first; b < first + kAhead && b < last; ++b) prefetch_example(request, b);
  float bag[kWidth];
  for (int64_t b = first; b < last; ++b) {
    if (b + kAhead < last) prefetch_example(request, b + kAhead);
    float* logits = request.out.data + b * request.out.stride;
    for (int64_t s = 0; s < slots.n; ++s) {
      const int64_t cell = b * batch.n_features + slots.features[s];
      const int64_t begin = batch.offsets[cell];
      const int64_t end = batch.offsets[cell + 1];
      if (bad_cell(batch, begin, end, slots.sizes[s])) return cell;
      // In chunks of the classes, so that a bag of any width fits in a small array.
      for (int64_t c = 0; c < request.weights.width; c += kWidth) {
        const int64_t rest = request.weights.width - c;
        const ConstRows part = {request.weights.data + c, request.weights.stride,
                                rest < kWidth ? rest : kWidth};
        if (rest >= kWidth) {
          pool_bag<kWidth>(batch, begin, end, part, slots.bases[s], slots.combiners[s], bag);
        } else {
          pool_bag<0>(batch, begin, end, part, slots.bases[s], slots.combiners[s], bag);
        }
        for (int64_t i = 0; i < part.width; ++i) logits[c + i] += bag[i];
      }
    }
  }
  return kNoFault;
}

}  // namespace

int64_t gather_pool_range(const GatherRequest& request, int64_t begin, int64_t end) {
  switch (request.weights.width) {
    case 4:
      return gather<4>(request, begin, end);
    case 8:
      return gather<8>(request, begin, end);
    case 16:
      return gather<16>(request, begin, end);
    case 32:
      return gather<32>(request, begin, end);
    case 64:
      return gather<64>(request, begin, end);
    default:
      return gather<0>(request, begin, end);
  }
}

int64_t wide_forward_range(const GatherRequest& request, int64_t begin, int64_t end) {
  return request.weights.width == 1 ? wide<1>(request, begin, end) : wide<16>(request, begin, end);
}

int64_t cell_scales_range(const CsrBatch& batch, const SlotList& slots, float* scale, int64_t first,
                          int64_t last) {
  for (int64_t b = first; b < last; ++b) {
    for (int64_t s = 0; s < slots.n; ++s) {
      const int64_t cell = b * batch.n_features + slots.features[s];
      const int64_t begin = batch.offsets[cell];
      const int64_t end = batch.offsets[cell + 1];
      if (bad_span(batch, begin, end)) return cell;
      scale[cell] = bag_scale(batch, begin, end, slots.combiners[s]);
    }
  }
  return kNoFault;
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
