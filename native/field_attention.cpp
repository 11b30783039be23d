#include "field_attention.hpp"

#include <cstddef>
#include <vector>

#include "thread_pool.hpp"

namespace widedeep {
namespace {

constexpr int64_t kFewRows = 16;  // not worth a second thread

template <class Fn>
void over_rows(const FieldAttention& request, int threads, Fn&& rows) {
  parallel_for(request.rows, request.rows < kFewRows ? 1 : threads,
               [&](int64_t begin, int64_t end, int) {
                 std::vector<float> room(static_cast<std::size_t>(field_attention_room(request)));
                 rows(begin, end, room.data());
               });
}

int64_t up_to_line(int64_t n) { return (n + 15) / 16 * 16; }

}  // namespace

int64_t field_attention_room(const FieldAttention& request) {
  const int64_t line = up_to_line(request.fields);
  const int64_t units = up_to_line(request.units);
  // Scores and their gradient; queries, outputs' gradients and sums by unit; both by field; figures
  return 2 * request.fields * line + 3 * units * line + 2 * request.fields * units + 2 * line;
}

void field_attention(const FieldAttention& request, int threads) {
  over_rows(request, threads, [&](int64_t begin, int64_t end, float* room) {
    WIDEDEEP_DISPATCH(field_attention_rows)(request, begin, end, room);
  });
}

void field_attention_grad(const FieldAttention& request, const FieldAttentionGrad& grad,
                          int threads) {
  over_rows(request, threads, [&](int64_t begin, int64_t end, float* room) {
    WIDEDEEP_DISPATCH(field_attention_grad_rows)(request, grad, begin, end, room);
  });
}

}  // namespace widedeep
