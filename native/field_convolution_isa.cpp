// Convolutions over fields; lanes are dimensions, which do not meet.
#include <stdint.h>
#include <string.h>

#include "field_convolution.hpp"
#include "tower_vector.hpp"
#include "unit_math.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {
namespace {

constexpr int64_t kLines = kConvolutionLanes;
constexpr int kVecs = static_cast<int>(kLines) / kLanes;
constexpr int kTogether = 4 / kVecs > 0 ? 4 / kVecs : 1;  // fields that are summed side by side

// The room of one row, for some of its dimensions.
struct Room {
  float* input;        // (maps, fields + width, lanes), zeros around the fields
  float* input_grads;  // alike
  float* values;       // (filters, fields, lanes); backward: gradients of the sums
  float* sorted;       // (fields, lanes)
};

Room room_of(const FieldConvolution& request, float* room) {
  const int64_t padded = request.maps * (request.fields + request.width) * kLines;
  const int64_t values = request.filters * request.fields * kLines;
  return {room, room + padded, room + 2 * padded, room + 2 * padded + values};
}

int64_t padded_line(const FieldConvolution& request, int64_t map, int64_t field) {
  return (map * (request.fields + request.width) + field) * kLines;
}

// Dimensions [first, first + count) of a row, between zeros.
void load_input(const FieldConvolution& request, int64_t row, int64_t first, int64_t count,
                float* input) {
  const int64_t before = (request.width - 1) / 2;
  memset(input, 0,
         static_cast<size_t>(request.maps * (request.fields + request.width) * kLines) *
             sizeof(float));
  for (int64_t m = 0; m < request.maps; ++m) {
    for (int64_t f = 0; f < request.fields; ++f) {
      const float* const from =
          request.input + ((row * request.maps + m) * request.fields + f) * request.dim + first;
      memcpy(input + padded_line(request, m, f + before), from,
             static_cast<size_t>(count) * sizeof(float));
    }
  }
}

// The sums of fields f to f + kFields - 1 of one filter.
template <int kFields>
inline void sum_fields(const FieldConvolution& request, const float* input, int64_t n, int64_t f,
                       float* out) {
  Vec sums[kFields][kVecs];
  for (int k = 0; k < kFields; ++k) {
    for (int v = 0; v < kVecs; ++v) sums[k][v] = vec_all(request.bias[n]);
  }
  const float* weight = request.weight + n * request.maps * request.width;
  for (int64_t m = 0; m < request.maps; ++m) {
    const float* from = input + padded_line(request, m, f);
    for (int64_t w = 0; w < request.width; ++w, ++weight, from += kLines) {
      const Vec factor = vec_all(*weight);
      for (int k = 0; k < kFields; ++k) {
        for (int v = 0; v < kVecs; ++v) {
          sums[k][v] =
              vec_multiply_add(factor, vec_load(from + k * kLines + v * kLanes), sums[k][v]);
        }
      }
    }
  }
  for (int k = 0; k < kFields; ++k) {
    for (int v = 0; v < kVecs; ++v) vec_store(out + k * kLines + v * kLanes, sums[k][v]);
  }
}

void convolve(const FieldConvolution& request, const Room& room) {
  for (int64_t n = 0; n < request.filters; ++n) {
    float* const out = room.values + n * request.fields * kLines;
    int64_t f = 0;
    for (; f + kTogether <= request.fields; f += kTogether) {
      sum_fields<kTogether>(request, room.input, n, f, out + f * kLines);
    }
    for (; f < request.fields; ++f) {
      sum_fields<1>(request, room.input, n, f, out + f * kLines);
    }
#pragma omp simd
    for (int64_t i = 0; i < request.fields * kLines; ++i) out[i] = tanh_of(out[i]);
  }
}

// A value's rank is the number of those that are larger, or as large and further left.
void keep_largest(const FieldConvolution& request, int64_t row, int64_t n, int64_t first,
                  int64_t count, const float* values, float* sorted) {
  uint8_t fields[256 * kLines];
  for (int64_t f = 0; f < request.fields; ++f) {
    int32_t rank[kLines] = {};
    const float* const own = values + f * kLines;
    for (int64_t g = 0; g < f; ++g) {
      const float* const other = values + g * kLines;
#pragma omp simd
      for (int64_t i = 0; i < kLines; ++i) rank[i] += other[i] >= own[i] ? 1 : 0;
    }
    for (int64_t g = f + 1; g < request.fields; ++g) {
      const float* const other = values + g * kLines;
#pragma omp simd
      for (int64_t i = 0; i < kLines; ++i) rank[i] += other[i] > own[i] ? 1 : 0;
    }
    for (int64_t i = 0; i < kLines; ++i) {
      sorted[rank[i] * kLines + i] = own[i];
      fields[rank[i] * kLines + i] = static_cast<uint8_t>(f);
    }
  }
  const int64_t line = (row * request.filters + n) * request.k * request.dim + first;
  for (int64_t k = 0; k < request.k; ++k) {
    memcpy(request.out + line + k * request.dim, sorted + k * kLines,
           static_cast<size_t>(count) * sizeof(float));
    memcpy(request.positions + line + k * request.dim, fields + k * kLines,
           static_cast<size_t>(count));
  }
}

// A value that is no number has no rank: then all that are kept are none, so that it is seen.
void spoil(const FieldConvolution& request, int64_t row, int64_t n, int64_t first, int64_t count,
           const float* values) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < request.fields * kLines; ++i) total += values[i];
  if (total == total) return;
  for (int64_t k = 0; k < request.k; ++k) {
    const int64_t line = ((row * request.filters + n) * request.k + k) * request.dim + first;
    for (int64_t i = 0; i < count; ++i) {
      request.out[line + i] = total;
      request.positions[line + i] = static_cast<uint8_t>(k);
    }
  }
}

// The gradients of the sums: zero but for the values that went on.
void sum_grads(const FieldConvolution& request, const FieldConvolutionGrad& grad, int64_t row,
               int64_t first, int64_t count, float* grads) {
  memset(grads, 0, static_cast<size_t>(request.filters * request.fields * kLines) * sizeof(float));
  for (int64_t n = 0; n < request.filters; ++n) {
    for (int64_t k = 0; k < request.k; ++k) {
      const int64_t line = ((row * request.filters + n) * request.k + k) * request.dim + first;
      for (int64_t i = 0; i < count; ++i) {
        const float value = request.out[line + i];
        grads[(n * request.fields + request.positions[line + i]) * kLines + i] =
            grad.grad_out[line + i] * (1.0f - value * value);
      }
    }
  }
}

// Adds the gradients by kWeights neighbouring weights.
template <int kWeights>
inline void add_weight_grads(const FieldConvolution& request, const float* grads, const float* from,
                             float* out) {
  Vec sums[kWeights][kVecs];
  for (int k = 0; k < kWeights; ++k) {
    for (int v = 0; v < kVecs; ++v) sums[k][v] = vec_zero();
  }
  for (int64_t f = 0; f < request.fields; ++f) {
    for (int v = 0; v < kVecs; ++v) {
      const Vec grad = vec_load(grads + f * kLines + v * kLanes);
      for (int k = 0; k < kWeights; ++k) {
        sums[k][v] =
            vec_multiply_add(grad, vec_load(from + (f + k) * kLines + v * kLanes), sums[k][v]);
      }
    }
  }
  for (int k = 0; k < kWeights; ++k) {
    float lanes[kLines];
    for (int v = 0; v < kVecs; ++v) vec_store(lanes + v * kLanes, sums[k][v]);
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < kLines; ++i) total += lanes[i];
    out[k] += total;
  }
}

void weight_grads(const FieldConvolution& request, const Room& room, float* sums) {
  const int64_t weights = request.maps * request.width;
  for (int64_t n = 0; n < request.filters; ++n, sums += weights + 1) {
    const float* const grads = room.values + n * request.fields * kLines;
    float by_bias = 0.0f;
#pragma omp simd reduction(+ : by_bias)
    for (int64_t i = 0; i < request.fields * kLines; ++i) by_bias += grads[i];
    sums[weights] += by_bias;
    for (int64_t m = 0; m < request.maps; ++m) {
      const float* const from = room.input + padded_line(request, m, 0);
      float* const out = sums + m * request.width;
      int64_t w = 0;
      for (; w + kTogether <= request.width; w += kTogether) {
        add_weight_grads<kTogether>(request, grads, from + w * kLines, out + w);
      }
      for (; w < request.width; ++w) {
        add_weight_grads<1>(request, grads, from + w * kLines, out + w);
      }
    }
  }
}

void input_grads(const FieldConvolution& request, const FieldConvolutionGrad& grad,
                 const Room& room, int64_t row, int64_t first, int64_t count) {
  const int64_t before = (request.width - 1) / 2;
  memset(room.input_grads, 0,
         static_cast<size_t>(request.maps * (request.fields + request.width) * kLines) *
             sizeof(float));
  for (int64_t n = 0; n < request.filters; ++n) {
    for (int64_t m = 0; m < request.maps; ++m) {
      for (int64_t w = 0; w < request.width; ++w) {
        const float factor = request.weight[(n * request.maps + m) * request.width + w];
        const float* const from = room.values + n * request.fields * kLines;
        float* const to = room.input_grads + padded_line(request, m, w);
#pragma omp simd
        for (int64_t i = 0; i < request.fields * kLines; ++i) {
          to[i] = multiply_add(factor, from[i], to[i]);
        }
      }
    }
  }
  for (int64_t m = 0; m < request.maps; ++m) {
    for (int64_t f = 0; f < request.fields; ++f) {
      float* const to =
          grad.grad_input + ((row * request.maps + m) * request.fields + f) * request.dim + first;
      memcpy(to, room.input_grads + padded_line(request, m, f + before),
             static_cast<size_t>(count) * sizeof(float));
    }
  }
}

int64_t lanes_from(const FieldConvolution& request, int64_t first) {
  return request.dim - first < kLines ? request.dim - first : kLines;
}

}  // namespace

void field_convolution_rows(const FieldConvolution& request, int64_t begin, int64_t end,
                            float* floats) {
  const Room room = room_of(request, floats);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t first = 0; first < request.dim; first += kLines) {
      const int64_t count = lanes_from(request, first);
      load_input(request, row, first, count, room.input);
      convolve(request, room);
      for (int64_t n = 0; n < request.filters; ++n) {
        const float* const values = room.values + n * request.fields * kLines;
        keep_largest(request, row, n, first, count, values, room.sorted);
        spoil(request, row, n, first, count, values);
      }
    }
  }
}

void field_convolution_grad_rows(const FieldConvolution& request, const FieldConvolutionGrad& grad,
                                 int64_t begin, int64_t end, float* sums, float* floats) {
  const Room room = room_of(request, floats);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t first = 0; first < request.dim; first += kLines) {
      const int64_t count = lanes_from(request, first);
      load_input(request, row, first, count, room.input);
      sum_grads(request, grad, row, first, count, room.values);
      weight_grads(request, room, sums);
      if (grad.grad_input != nullptr) input_grads(request, grad, room, row, first, count);
    }
  }
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
