// Attention over pairs of fields.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "pair_attention.hpp"
#include "tower_vector.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int kTogether = 4;  // pairs whose sums are made side by side
constexpr int kVecs = static_cast<int>(kPairUnits) / kLanes;

// Lines of fields, filled up with zeros to whole tiles.
struct Room {
  float* input;       // (fields, line)
  float* grad_input;  // (fields, line)
  float* grad_out;    // (line)
  float* score_grad;  // (pairs)
};

Room room_of(const PairAttention& request, int64_t part) {
  float* const first = request.room + part * request.room_size;
  const int64_t lines = request.fields * request.line;
  return {first, first + lines, first + 2 * lines, first + 2 * lines + request.line};
}

void fill_line(float* line, int64_t size, const float* values, int64_t n) {
  memset(line, 0, static_cast<size_t>(size) * sizeof(float));
  memcpy(line, values, static_cast<size_t>(n) * sizeof(float));
}

float sum_lanes(Vec v) {
  float lanes[kLanes];
  vec_store(lanes, v);
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int l = 0; l < step; ++l) lanes[l] += lanes[l + step];
  }
  return lanes[0];
}

// The units' sums of pairs (i, j) to (i, j + kPairs - 1), for one tile.
template <int kPairs>
inline void unit_sums(const PairAttention& request, const float* tile, const float* left,
                      const float* right, Vec (&sums)[kPairs][kVecs]) {
  for (int v = 0; v < kVecs; ++v) {
    const Vec bias = vec_load(tile + request.dim * kPairUnits + v * kLanes);
    for (int k = 0; k < kPairs; ++k) sums[k][v] = bias;
  }
  for (int64_t d = 0; d < request.dim; ++d) {
    Vec weights[kVecs];
    for (int v = 0; v < kVecs; ++v) weights[v] = vec_load(tile + d * kPairUnits + v * kLanes);
    for (int k = 0; k < kPairs; ++k) {
      const Vec product = vec_all(left[d] * right[k * request.line + d]);
      for (int v = 0; v < kVecs; ++v) {
        sums[k][v] = vec_multiply_add(product, weights[v], sums[k][v]);
      }
    }
  }
}

template <int kPairs>
inline void pair_scores(const PairAttention& request, const float* left, const float* right,
                        float* scores) {
  Vec totals[kPairs];
  for (int k = 0; k < kPairs; ++k) totals[k] = vec_zero();
  for (int64_t t = 0; t < request.tiles; ++t) {
    const float* const tile = request.packed + t * (request.dim + 2) * kPairUnits;
    Vec sums[kPairs][kVecs];
    unit_sums<kPairs>(request, tile, left, right, sums);
    for (int v = 0; v < kVecs; ++v) {
      const Vec score = vec_load(tile + (request.dim + 1) * kPairUnits + v * kLanes);
      for (int k = 0; k < kPairs; ++k) {
        const Vec unit = vec_where_positive(sums[k][v], sums[k][v]);
        totals[k] = vec_multiply_add(unit, score, totals[k]);
      }
    }
  }
  for (int k = 0; k < kPairs; ++k) scores[k] = sum_lanes(totals[k]);
}

void softmax(float* values, int64_t n) {
  float most = values[0];
  for (int64_t i = 1; i < n; ++i) most = values[i] > most ? values[i] : most;
  float total = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    values[i] = expf(values[i] - most);
    total += values[i];
  }
  const float factor = 1.0f / total;
  for (int64_t i = 0; i < n; ++i) values[i] *= factor;
}

void attend_row(const PairAttention& request, const float* input, float* out, float* attention) {
  const int64_t line = request.line;
  float* scores = attention;
  for (int64_t i = 0; i + 1 < request.fields; ++i) {
    int64_t j = i + 1;
    for (; j + kTogether <= request.fields; j += kTogether, scores += kTogether) {
      pair_scores<kTogether>(request, input + i * line, input + j * line, scores);
    }
    for (; j < request.fields; ++j, ++scores) {
      pair_scores<1>(request, input + i * line, input + j * line, scores);
    }
  }
  softmax(attention, scores - attention);
  for (int64_t d = 0; d < line; d += kLanes) {
    const float* weight = attention;
    Vec pooled = vec_zero();
    for (int64_t i = 0; i + 1 < request.fields; ++i) {
      Vec partners = vec_zero();
      for (int64_t j = i + 1; j < request.fields; ++j, ++weight) {
        partners = vec_multiply_add(vec_all(*weight), vec_load(input + j * line + d), partners);
      }
      pooled = vec_multiply_add(vec_load(input + i * line + d), partners, pooled);
    }
    const int64_t count = request.dim - d < kLanes ? request.dim - d : kLanes;
    if (count > 0) vec_store_first(out + d, pooled, count);
  }
}

// The gradient of each pair's score, by that of the pooled products.
void score_grads(const PairAttention& request, const Room& room, const float* attention) {
  const int64_t line = request.line;
  float* const grads = room.score_grad;
  float total = 0.0f;
  int64_t pair = 0;
  for (int64_t i = 0; i + 1 < request.fields; ++i) {
    for (int64_t j = i + 1; j < request.fields; ++j, ++pair) {
      Vec sum = vec_zero();
      for (int64_t d = 0; d < line; d += kLanes) {
        const Vec scaled = vec_multiply_add(vec_load(room.grad_out + d),
                                            vec_load(room.input + i * line + d), vec_zero());
        sum = vec_multiply_add(scaled, vec_load(room.input + j * line + d), sum);
      }
      grads[pair] = sum_lanes(sum);
      total += attention[pair] * grads[pair];
    }
  }
  for (int64_t p = 0; p < pair; ++p) grads[p] = attention[p] * (grads[p] - total);
}

// Adds what kPairs pairs give to a tile's gradients; fills the gradients by the units' sums.
template <int kPairs>
inline void tile_grads(const PairAttention& request, const float* tile, const float* left,
                       const float* right, const float* score_grad, float* grad,
                       float (*unit_grads)[kPairUnits]) {
  Vec sums[kPairs][kVecs];
  unit_sums<kPairs>(request, tile, left, right, sums);
  float* const bias_grad = grad + request.dim * kPairUnits;
  for (int v = 0; v < kVecs; ++v) {
    const Vec score = vec_load(tile + (request.dim + 1) * kPairUnits + v * kLanes);
    Vec by_bias = vec_load(bias_grad + v * kLanes);
    Vec by_score = vec_load(bias_grad + kPairUnits + v * kLanes);
    for (int k = 0; k < kPairs; ++k) {
      const Vec given = vec_all(score_grad[k]);
      by_score = vec_multiply_add(given, vec_where_positive(sums[k][v], sums[k][v]), by_score);
      const Vec product = vec_multiply_add(given, score, vec_zero());
      sums[k][v] = vec_where_positive(product, sums[k][v]);
      by_bias = vec_add(by_bias, sums[k][v]);
      vec_store(unit_grads[k] + v * kLanes, sums[k][v]);
    }
    vec_store(bias_grad + v * kLanes, by_bias);
    vec_store(bias_grad + kPairUnits + v * kLanes, by_score);
  }
  for (int64_t d = 0; d < request.dim; ++d) {
    Vec by_weight[kVecs];
    for (int v = 0; v < kVecs; ++v) by_weight[v] = vec_load(grad + d * kPairUnits + v * kLanes);
    for (int k = 0; k < kPairs; ++k) {
      const Vec product = vec_all(left[d] * right[k * request.line + d]);
      for (int v = 0; v < kVecs; ++v) {
        by_weight[v] = vec_multiply_add(product, sums[k][v], by_weight[v]);
      }
    }
    for (int v = 0; v < kVecs; ++v) vec_store(grad + d * kPairUnits + v * kLanes, by_weight[v]);
  }
}

template <int kPairs>
inline void pairs_backward(const PairAttention& request, const Room& room, int64_t i, int64_t j,
                           const float* attention, const float* score_grad, float* part) {
  const int64_t line = request.line;
  const float* const left = room.input + i * line;
  const float* const right = room.input + j * line;
  float product_grad[kPairs][kMaxPairDim];
  for (int k = 0; k < kPairs; ++k) {
    const Vec weight = vec_all(attention[k]);
    for (int64_t d = 0; d < line; d += kLanes) {
      const Vec grad = vec_multiply_add(weight, vec_load(room.grad_out + d), vec_zero());
      vec_store(product_grad[k] + d, grad);
    }
  }
  for (int64_t t = 0; t < request.tiles; ++t) {
    const int64_t tile = t * (request.dim + 2) * kPairUnits;
    const int64_t first = t * kPairUnits;
    const int64_t units = request.units - first < kPairUnits ? request.units - first : kPairUnits;
    float unit_grads[kPairs][kPairUnits];
    tile_grads<kPairs>(request, request.packed + tile, left, right, score_grad, part + tile,
                       unit_grads);
    for (int64_t d = 0; d < line; d += kLanes) {
      Vec sums[kPairs];
      for (int k = 0; k < kPairs; ++k) sums[k] = vec_load(product_grad[k] + d);
      for (int64_t u = 0; u < units; ++u) {
        const Vec weights = vec_load(request.lines + (first + u) * line + d);
        for (int k = 0; k < kPairs; ++k) {
          sums[k] = vec_multiply_add(vec_all(unit_grads[k][u]), weights, sums[k]);
        }
      }
      for (int k = 0; k < kPairs; ++k) vec_store(product_grad[k] + d, sums[k]);
    }
  }
  float* const left_grad = room.grad_input + i * line;
  float* const right_grad = room.grad_input + j * line;
  for (int64_t d = 0; d < line; d += kLanes) {
    Vec by_left = vec_load(left_grad + d);
    const Vec left_values = vec_load(left + d);
    for (int k = 0; k < kPairs; ++k) {
      const Vec grad = vec_load(product_grad[k] + d);
      float* const by_right = right_grad + k * line + d;
      by_left = vec_multiply_add(grad, vec_load(right + k * line + d), by_left);
      vec_store(by_right, vec_multiply_add(grad, left_values, vec_load(by_right)));
    }
    vec_store(left_grad + d, by_left);
  }
}

int64_t last_row(const PairAttention& request, int64_t part) {
  const int64_t end = (part + 1) * kPairRows;
  return end < request.rows ? end : request.rows;
}

}  // namespace

void attend_pairs_part(const PairAttention& request, int64_t part) {
  const Room room = room_of(request, part);
  for (int64_t row = part * kPairRows; row < last_row(request, part); ++row) {
    const float* const input = request.input.data + row * request.input.stride;
    for (int64_t f = 0; f < request.fields; ++f) {
      fill_line(room.input + f * request.line, request.line, input + f * request.dim, request.dim);
    }
    attend_row(request, room.input, request.out.data + row * request.out.stride,
               request.attention.data + row * request.attention.stride);
  }
}

void attend_pairs_grad_part(const PairAttention& request, const PairAttentionGrad& grad,
                            int64_t part) {
  const Room room = room_of(request, part);
  const int64_t dim = request.dim;
  const int64_t line = request.line;
  float* const sums = grad.parts + part * grad.part_size;
  for (int64_t row = part * kPairRows; row < last_row(request, part); ++row) {
    const float* const input = request.input.data + row * request.input.stride;
    for (int64_t f = 0; f < request.fields; ++f) {
      fill_line(room.input + f * line, line, input + f * dim, dim);
    }
    fill_line(room.grad_out, line, grad.grad_out.data + row * grad.grad_out.stride, dim);
    const float* attention = request.attention.data + row * request.attention.stride;
    score_grads(request, room, attention);
    memset(room.grad_input, 0, static_cast<size_t>(request.fields * line) * sizeof(float));
    const float* score_grad = room.score_grad;
    for (int64_t i = 0; i + 1 < request.fields; ++i) {
      int64_t j = i + 1;
      for (; j + kTogether <= request.fields; j += kTogether) {
        pairs_backward<kTogether>(request, room, i, j, attention, score_grad, sums);
        attention += kTogether;
        score_grad += kTogether;
      }
      for (; j < request.fields; ++j) {
        pairs_backward<1>(request, room, i, j, attention++, score_grad++, sums);
      }
    }
    float* const grad_input = grad.grad_input.data + row * grad.grad_input.stride;
    for (int64_t f = 0; f < request.fields; ++f) {
      memcpy(grad_input + f * dim, room.grad_input + f * line,
             static_cast<size_t>(dim) * sizeof(float));
    }
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
