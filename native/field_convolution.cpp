#include "field_convolution.hpp"

#include <cstddef>
#include <vector>

#include "thread_pool.hpp"

namespace widedeep {
namespace {

std::size_t as_size(int64_t n) { return static_cast<std::size_t>(n); }

}  // namespace

int64_t field_convolution_room(const FieldConvolution& request) {
  const int64_t padded = request.maps * (request.fields + request.width);
  return (2 * padded + (request.filters + 1) * request.fields) * kConvolutionLanes;
}

void field_convolution(const FieldConvolution& request, int threads) {
  parallel_for(request.rows, threads, [&](int64_t begin, int64_t end, int) {
    std::vector<float> room(as_size(field_convolution_room(request)));
    WIDEDEEP_DISPATCH(field_convolution_rows)(request, begin, end, room.data());
  });
}

void field_convolution_grad(const FieldConvolution& request, FieldConvolutionGrad grad,
                            float* grad_weight, float* grad_bias, int threads) {
  const int64_t parts = (request.rows + kConvolutionRows - 1) / kConvolutionRows;
  const int64_t weights = request.maps * request.width;
  const int64_t size = request.filters * (weights + 1);
  std::vector<float> sums(as_size(parts * size), 0.0f);
  grad.sums = sums.data();
  parallel_for(parts, threads, [&](int64_t begin, int64_t end, int) {
    std::vector<float> room(as_size(field_convolution_room(request)));
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * kConvolutionRows;
      const int64_t last =
          first + kConvolutionRows < request.rows ? first + kConvolutionRows : request.rows;
      WIDEDEEP_DISPATCH(field_convolution_grad_rows)
      (request, grad, first, last, sums.data() + part * size, room.data());
    }
  });
  for (int64_t filter = 0; filter < request.filters; ++filter) {
    for (int64_t i = 0; i <= weights; ++i) {
      double total = 0.0;
      for (int64_t part = 0; part < parts; ++part) {
        total += sums[as_size(part * size + filter * (weights + 1) + i)];
      }
      (i < weights ? grad_weight[filter * weights + i] : grad_bias[filter]) =
          static_cast<float>(total);
    }
  }
}

}  // namespace widedeep
