// Attention between fields. Lanes are the fields that ask, so that sums over the fields that answer
// need no step across lanes.
#include <stdint.h>
#include <string.h>

#include "field_attention.hpp"
#include "tower_vector.hpp"
#include "unit_math.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int kTogether = 8;  // sums that are made side by side

int64_t up_to_line(int64_t n) { return (n + 15) / 16 * 16; }

// One head of one row.
struct Head {
  int64_t fields, units;
  int64_t line;       // fields, filled up to whole registers
  int64_t unit_line;  // units, alike
  int64_t stride;     // from field to field among the projections
  const float* query;
  const float* key;
  const float* value;
  const float* residual;
  float* scores;       // (fields that answer, line): softmax by column
  float* score_grads;  // (fields that answer, line)
  float* by_unit;      // (unit_line, line): queries
  float* out_by_unit;  // (unit_line, line): outputs' gradients
  float* sums;         // (unit_line, line)
  float* by_field;     // (fields, unit_line): queries
  float* out_by_field;
  float* figures;  // (2, line)
};

Head head_of(const FieldAttention& request, float* room) {
  Head head{};
  head.fields = request.fields;
  head.units = request.units;
  head.line = up_to_line(request.fields);
  head.unit_line = up_to_line(request.units);
  head.stride = 4 * request.heads * request.units;
  head.scores = room;
  head.score_grads = head.scores + head.fields * head.line;
  head.by_unit = head.score_grads + head.fields * head.line;
  head.out_by_unit = head.by_unit + head.unit_line * head.line;
  head.sums = head.out_by_unit + head.unit_line * head.line;
  head.by_field = head.sums + head.unit_line * head.line;
  head.out_by_field = head.by_field + head.fields * head.unit_line;
  head.figures = head.out_by_field + head.fields * head.unit_line;
  return head;
}

void set_head(const FieldAttention& request, int64_t row, int64_t h, Head& head) {
  const int64_t width = request.heads * request.units;
  head.query = request.projected + row * request.fields * head.stride + h * request.units;
  head.key = head.query + width;
  head.value = head.key + width;
  head.residual = head.value + width;
}

// to[k][r] = from[r][k] for `rows` and `columns` of `from`.
void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
               int64_t to_stride) {
  const int64_t inner_rows = rows / 4 * 4;
  const int64_t inner_columns = columns / 4 * 4;
  for (int64_t r = 0; r < inner_rows; r += 4) {
    for (int64_t k = 0; k < inner_columns; k += 4) {
      transpose_4x4(from + r * from_stride + k, from_stride, to + k * to_stride + r, to_stride);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = r < inner_rows ? inner_columns : 0; k < columns; ++k) {
      to[k * to_stride + r] = from[r * from_stride + k];
    }
  }
}

// to[u][i] = from[i][u], zeros beyond the fields.
void by_unit(const float* from, int64_t stride, const Head& head, float* to) {
  transpose(from, stride, head.fields, head.units, to, head.line);
  for (int64_t u = 0; u < head.units; ++u) {
    for (int64_t i = head.fields; i < head.line; ++i) to[u * head.line + i] = 0.0f;
  }
}

// to[i][u] = from[i][u], zeros beyond the units.
void copy_by_field(const float* from, int64_t stride, const Head& head, float* to) {
  for (int64_t i = 0; i < head.fields; ++i) {
    memcpy(to + i * head.unit_line, from + i * stride,
           static_cast<size_t>(head.units) * sizeof(float));
    memset(to + i * head.unit_line + head.units, 0,
           static_cast<size_t>(head.unit_line - head.units) * sizeof(float));
  }
}

// A matrix of `rows` by `terms`, whose numbers lie at row * by_row + term * by_term.
struct Left {
  const float* data;
  int64_t by_row, by_term;
  int64_t rows, terms;
};

struct Lines {
  const float* data;
  int64_t stride;
};

// The sums of kRows rows from `row` on, for one register of columns.
template <int kRows>
__attribute__((always_inline)) inline void sum_rows(const Left& left, int64_t row,
                                                    const Lines& right, float* out,
                                                    int64_t out_stride, int64_t count) {
  Vec sums[kRows];
  for (int k = 0; k < kRows; ++k) sums[k] = vec_zero();
  const float* const factors = left.data + row * left.by_row;
  for (int64_t term = 0; term < left.terms; ++term) {
    const Vec other = vec_load(right.data + term * right.stride);
    for (int k = 0; k < kRows; ++k) {
      const float factor = factors[k * left.by_row + term * left.by_term];
      sums[k] = vec_multiply_add(vec_all(factor), other, sums[k]);
    }
  }
  for (int k = 0; k < kRows; ++k) vec_store_first(out + k * out_stride, sums[k], count);
}

// out[r][c] = sum_t left[r][t] right[t][c]
__attribute__((always_inline)) inline void multiply(const Left& left, const Lines& right,
                                                    int64_t columns, float* out,
                                                    int64_t out_stride) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    const int64_t count = columns - c < kLanes ? columns - c : kLanes;
    const Lines from{right.data + c, right.stride};
    float* const to = out + c;
    int64_t r = 0;
    for (; r + kTogether <= left.rows; r += kTogether) {
      sum_rows<kTogether>(left, r, from, to + r * out_stride, out_stride, count);
    }
    for (; r < left.rows; ++r) sum_rows<1>(left, r, from, to + r * out_stride, out_stride, count);
  }
}

// out[j][i] = sum_u left[j][u] right[u][i]
void products(const float* left, const float* right, const Head& head, float* out) {
  multiply({left, head.stride, 1, head.fields, head.units}, {right, head.line}, head.line, out,
           head.line);
}

// out[u][i] = sum_j left[j][u] right[j][i]
void sums_over_fields(const float* left, const float* right, const Head& head, float* out) {
  multiply({left, 1, head.stride, head.units, head.fields}, {right, head.line}, head.line, out,
           head.line);
}

// to[j][u] = sum_i left[j][i] right[i][u]; `right` is by field.
void sums_over_lanes(const float* left, const float* right, const Head& head, float* to) {
  multiply({left, head.line, 1, head.fields, head.fields}, {right, head.unit_line}, head.units, to,
           head.stride);
}

// The softmax of the scores by column.
void attend(const Head& head, float scale) {
  by_unit(head.query, head.stride, head, head.by_unit);
  products(head.key, head.by_unit, head, head.scores);
  const int64_t line = head.line;
  float* const most = head.figures;
  float* const total = head.figures + line;
  memcpy(most, head.scores, static_cast<size_t>(line) * sizeof(float));
  for (int64_t j = 1; j < head.fields; ++j) {
    const float* const scores = head.scores + j * line;
#pragma omp simd
    for (int64_t i = 0; i < line; ++i) most[i] = scores[i] > most[i] ? scores[i] : most[i];
  }
  memset(total, 0, static_cast<size_t>(line) * sizeof(float));
  for (int64_t j = 0; j < head.fields; ++j) {
    float* const scores = head.scores + j * line;
#pragma omp simd
    for (int64_t i = 0; i < line; ++i) {
      scores[i] = exp_of(scale * (scores[i] - most[i]));
      total[i] += scores[i];
    }
  }
  for (int64_t i = 0; i < line; ++i) total[i] = 1.0f / total[i];
  for (int64_t j = 0; j < head.fields; ++j) {
    float* const scores = head.scores + j * line;
#pragma omp simd
    for (int64_t i = 0; i < line; ++i) scores[i] *= total[i];
  }
}

// From the gradients of the softmax to those of the products q . k.
void softmax_grad(const Head& head, float scale) {
  const int64_t line = head.line;
  float* const total = head.figures;
  memset(total, 0, static_cast<size_t>(line) * sizeof(float));
  for (int64_t j = 0; j < head.fields; ++j) {
    const float* const weights = head.scores + j * line;
    const float* const grads = head.score_grads + j * line;
#pragma omp simd
    for (int64_t i = 0; i < line; ++i) total[i] += weights[i] * grads[i];
  }
  for (int64_t j = 0; j < head.fields; ++j) {
    const float* const weights = head.scores + j * line;
    float* const grads = head.score_grads + j * line;
#pragma omp simd
    for (int64_t i = 0; i < line; ++i) grads[i] = scale * weights[i] * (grads[i] - total[i]);
  }
}

}  // namespace

void field_attention_rows(const FieldAttention& request, int64_t begin, int64_t end, float* room) {
  Head head = head_of(request, room);
  const int64_t width = request.heads * request.units;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t h = 0; h < request.heads; ++h) {
      set_head(request, row, h, head);
      attend(head, request.scale);
      sums_over_fields(head.value, head.scores, head, head.sums);
      float* const out = request.out + row * request.fields * width + h * request.units;
      transpose(head.sums, head.line, head.units, head.fields, out, width);
      for (int64_t i = 0; i < request.fields; ++i) {
        float* const line = out + i * width;
        const float* const residual = head.residual + i * head.stride;
#pragma omp simd
        for (int64_t u = 0; u < request.units; ++u) {
          const float sum = line[u] + residual[u];
          line[u] = sum <= 0.0f ? 0.0f : sum;
        }
      }
    }
  }
}

void field_attention_grad_rows(const FieldAttention& request, const FieldAttentionGrad& grad,
                               int64_t begin, int64_t end, float* room) {
  Head head = head_of(request, room);
  const int64_t width = request.heads * request.units;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t h = 0; h < request.heads; ++h) {
      set_head(request, row, h, head);
      attend(head, request.scale);
      const int64_t first = row * request.fields * width + h * request.units;
      float* const query =
          grad.grad_projected + row * request.fields * head.stride + h * request.units;
      float* const residual = query + 3 * width;
      for (int64_t i = 0; i < request.fields; ++i) {
        const float* const out = request.out + first + i * width;
        const float* const given = grad.grad_out + first + i * width;
        float* const line = residual + i * head.stride;
#pragma omp simd
        for (int64_t u = 0; u < request.units; ++u) line[u] = out[u] <= 0.0f ? 0.0f : given[u];
      }
      by_unit(residual, head.stride, head, head.out_by_unit);
      copy_by_field(residual, head.stride, head, head.out_by_field);
      copy_by_field(head.query, head.stride, head, head.by_field);
      sums_over_lanes(head.scores, head.out_by_field, head, query + 2 * width);
      products(head.value, head.out_by_unit, head, head.score_grads);
      softmax_grad(head, request.scale);
      sums_over_lanes(head.score_grads, head.by_field, head, query + width);
      sums_over_fields(head.key, head.score_grads, head, head.sums);
      transpose(head.sums, head.line, head.units, head.fields, query, head.stride);
    }
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
