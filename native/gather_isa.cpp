// Pooled embeddings, straight into their columns of the deep network's input, and the wide sums.
#include "rows_isa.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

// How many cells ahead rows are asked for: far enough to hide a miss in DRAM behind the copies
// between, near enough that the lines are still in the second-level cache.
constexpr int64_t kAheadCells = 64;
constexpr int64_t kAheadIds = 8;  // of one cell; a longer bag is read in order and hides its own
constexpr int64_t kSlotsAtOnce = 128;

// A slot's constants, gathered once so that the inner loop reads one stream.
template <class T>
struct Place {
  const T* rows;  // row 0 of its table
  uint64_t size;
  int64_t column;
  int32_t feature;
  int8_t combiner;
};

template <class T>
const T* weights_of(const GatherRequest& request) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return request.weights.data;
  } else {
    return request.half;
  }
}

template <class T>
int64_t make_places(const GatherRequest& request, int64_t first, Place<T>* places) {
  const SlotList& slots = request.slots;
  const int64_t rest = slots.n - first;
  const int64_t n = rest < kSlotsAtOnce ? rest : kSlotsAtOnce;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t s = first + i;
    places[i] = {weights_of<T>(request) + slots.bases[s] * request.weights.stride,
                 static_cast<uint64_t>(slots.sizes[s]),
                 slots.columns == nullptr ? 0 : slots.columns[s], slots.features[s],
                 slots.combiners[s]};
  }
  return n;
}

int64_t examples_ahead(int64_t n_slots) { return 1 + kAheadCells / (n_slots < 1 ? 1 : n_slots); }

// Asks for the rows of a cell. kSingle: every cell holds exactly one id.
template <bool kSingle, class T>
WIDEDEEP_PREFETCHES void prefetch_cell(const GatherRequest& request, const Place<T>& place,
                                       int64_t cell, int64_t lines) {
  const CsrBatch& batch = request.batch;
  const int64_t stride = request.weights.stride;
  if (kSingle) {
    prefetch_row(place.rows, stride, batch.ids[cell], lines);
    return;
  }
  const int64_t begin = batch.offsets[cell];
  int64_t end = batch.offsets[cell + 1];
  if (bad_span(batch, begin, end)) return;
  end = end - begin > kAheadIds ? begin + kAheadIds : end;
  for (int64_t n = begin; n < end; ++n) {
    prefetch_row(place.rows, stride, batch.ids[n], lines);
  }
}

// Calls use(place, row_out, cell) for every cell of [first, last) x places, some cells after it
// asked for the cell's rows. Stops at the first for which `use` is false, and returns that cell.
template <bool kSingle, class T, class Use>
inline int64_t for_each_cell(const GatherRequest& request, const Place<T>* places, int64_t n_places,
                             int64_t first, int64_t last, Use use) {
  const int64_t n_features = request.batch.n_features;
  const int64_t ahead = examples_ahead(n_places);
  const int64_t lines =
      lines_of_row(weights_of<T>(request), request.weights.stride, request.weights.width);
  for (int64_t b = first; b < first + ahead && b < last; ++b) {
    for (int64_t i = 0; i < n_places; ++i) {
      prefetch_cell<kSingle>(request, places[i], b * n_features + places[i].feature, lines);
    }
  }
  for (int64_t b = first; b < last; ++b) {
    float* row_out = request.out.data + b * request.out.stride;
    const int64_t cells = b * n_features;
    // At the end of the range the prefetches repeat the last example's: no branch, no harm.
    const int64_t cells_ahead = (b + ahead < last ? b + ahead : last - 1) * n_features;
    for (int64_t i = 0; i < n_places; ++i) {
      prefetch_cell<kSingle>(request, places[i], cells_ahead + places[i].feature, lines);
      const int64_t cell = cells + places[i].feature;
      if (!use(places[i], row_out, cell)) return cell;
    }
  }
  return kNoFault;
}

template <int kWidth, class T>
int64_t gather(const GatherRequest& request, const Place<T>* places, int64_t n_places,
               int64_t first, int64_t last) {
  const CsrBatch& batch = request.batch;
  const ConstRows weights = request.weights;
  const int64_t width = kWidth > 0 ? kWidth : weights.width;
  const auto copy = [&](const Place<T>& place, float* row_out, int64_t n) {
    const T* __restrict row = place.rows + batch.ids[n] * weights.stride;
    float* __restrict out = row_out + place.column;
    WIDEDEEP_SIMD
    for (int64_t d = 0; d < width; ++d) out[d] = widened(row[d]) + 0.0f;  // as a sum from 0: no -0
  };
  if (request.single && batch.values == nullptr) {
    return for_each_cell<true>(request, places, n_places, first, last,
                               [&](const Place<T>& place, float* row_out, int64_t cell) {
                                 if (static_cast<uint64_t>(batch.ids[cell]) >= place.size) {
                                   return false;
                                 }
                                 copy(place, row_out, cell);
                                 return true;
                               });
  }
  return for_each_cell<false>(request, places, n_places, first, last,
                              [&](const Place<T>& place, float* row_out, int64_t cell) {
                                const int64_t begin = batch.offsets[cell];
                                const int64_t end = batch.offsets[cell + 1];
                                if (bad_cell(batch, begin, end, place.size)) return false;
                                if (end - begin == 1 && batch.values == nullptr) {
                                  copy(place, row_out, begin);
                                } else {
                                  const auto row_of = [&](int64_t n) {
                                    return place.rows + batch.ids[n] * weights.stride;
                                  };
                                  pool_rows<kWidth>(batch, begin, end, width, row_of,
                                                    place.combiner, row_out + place.column);
                                }
                                return true;
                              });
}

// Adds the bag's combined weights of every slot to one row of logits, in the order of the slots.
template <int kWidth>
int64_t wide(const GatherRequest& request, const Place<float>* places, int64_t n_places,
             int64_t first, int64_t last) {
  const CsrBatch& batch = request.batch;
  const ConstRows weights = request.weights;
  if (kWidth == 1 && request.single && batch.values == nullptr) {
    return for_each_cell<true>(request, places, n_places, first, last,
                               [&](const Place<float>& place, float* logits, int64_t cell) {
                                 const int64_t id = batch.ids[cell];
                                 if (static_cast<uint64_t>(id) >= place.size) return false;
                                 logits[0] += place.rows[id * weights.stride];
                                 return true;
                               });
  }
  return for_each_cell<false>(request, places, n_places, first, last,
                              [&](const Place<float>& place, float* logits, int64_t cell) {
                                const int64_t begin = batch.offsets[cell];
                                const int64_t end = batch.offsets[cell + 1];
                                if (bad_cell(batch, begin, end, place.size)) return false;
                                float bag[kWidth];
                                // In chunks of the classes, so that a bag of any width fits in a
                                // small array.
                                for (int64_t c = 0; c < weights.width; c += kWidth) {
                                  const int64_t rest = weights.width - c;
                                  const ConstRows part = {place.rows + c, weights.stride,
                                                          rest < kWidth ? rest : kWidth};
                                  if (rest >= kWidth) {
                                    pool_bag<kWidth>(batch, begin, end, part, place.combiner, bag);
                                  } else {
                                    pool_bag<0>(batch, begin, end, part, place.combiner, bag);
                                  }
                                  for (int64_t i = 0; i < part.width; ++i) logits[c + i] += bag[i];
                                }
                                return true;
                              });
}

template <class T>
using PlacesFunction = int64_t (*)(const GatherRequest&, const Place<T>*, int64_t, int64_t,
                                   int64_t);

// Runs `function` over all slots, some at a time; returns the smallest faulty cell.
template <class T>
int64_t over_slots(const GatherRequest& request, int64_t begin, int64_t end,
                   PlacesFunction<T> function) {
  Place<T> places[kSlotsAtOnce];
  int64_t fault = kNoFault;
  for (int64_t first = 0; first < request.slots.n; first += kSlotsAtOnce) {
    const int64_t n = make_places(request, first, places);
    const int64_t cell = function(request, places, n, begin, end);
    if (cell != kNoFault && (fault == kNoFault || cell < fault)) fault = cell;
  }
  return fault;
}

template <class T>
PlacesFunction<T> gather_of_width(int64_t width) {
  switch (width) {
    case 4:
      return gather<4, T>;
    case 8:
      return gather<8, T>;
    case 16:
      return gather<16, T>;
    case 32:
      return gather<32, T>;
    case 64:
      return gather<64, T>;
    default:
      return gather<0, T>;
  }
}

}  // namespace

int64_t gather_pool_range(const GatherRequest& request, int64_t begin, int64_t end) {
  const int64_t width = request.weights.width;
  return request.half == nullptr
             ? over_slots<float>(request, begin, end, gather_of_width<float>(width))
             : over_slots<uint16_t>(request, begin, end, gather_of_width<uint16_t>(width));
}

int64_t wide_forward_range(const GatherRequest& request, int64_t begin, int64_t end) {
  return over_slots<float>(request, begin, end, request.weights.width == 1 ? wide<1> : wide<16>);
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
