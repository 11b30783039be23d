#include <string.h>

#include "sparse.hpp"
#include "thread_pool.hpp"

namespace widedeep {
namespace {

constexpr int64_t kAhead = 8;  // rows, which lie anywhere

// Asks for the lines of `bytes` bytes.
inline void prefetch(const void* data, int64_t bytes) {
  const char* const first = static_cast<const char*>(data);
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(first + at, 0, 3);
}

}  // namespace

int64_t take_offsets(const CsrBatch& batch, const int64_t* rows, int64_t n, int64_t* out_offsets) {
  const int64_t cells = batch.n_features;
  int64_t at = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (i + kAhead < n) {
      prefetch(batch.offsets + rows[i + kAhead] * cells, (cells + 1) * int64_t{sizeof(int64_t)});
    }
    const int64_t* offsets = batch.offsets + rows[i] * cells;
    const int64_t shift = at - offsets[0];
    bool bad = offsets[0] < 0 || offsets[cells] > batch.n_ids;
    for (int64_t f = 0; f < cells; ++f) {
      bad |= offsets[f] > offsets[f + 1];
      out_offsets[i * cells + f] = offsets[f] + shift;
    }
    if (bad) return kNoFault;
    at = offsets[cells] + shift;
  }
  out_offsets[n * cells] = at;
  return at;
}

void take_ids(const CsrBatch& batch, const int64_t* rows, int64_t n, const int64_t* out_offsets,
              int64_t* out_ids, float* out_values, int threads) {
  const int64_t cells = batch.n_features;
  parallel_for(n, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      // Where a row's ids start is itself read early enough: take_offsets has just been there.
      if (i + kAhead < end) {
        const int64_t* const offsets = batch.offsets + rows[i + kAhead] * cells;
        prefetch(batch.ids + offsets[0], (offsets[cells] - offsets[0]) * int64_t{sizeof(int64_t)});
      }
      const int64_t first = batch.offsets[rows[i] * cells];
      const int64_t to = out_offsets[i * cells];
      const auto count = static_cast<size_t>(out_offsets[(i + 1) * cells] - to);
      memcpy(out_ids + to, batch.ids + first, count * sizeof(int64_t));
      if (out_values != nullptr)
        memcpy(out_values + to, batch.values + first, count * sizeof(float));
    }
  });
}

}  // namespace widedeep
