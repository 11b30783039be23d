#include "pair_attention.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "thread_pool.hpp"

namespace widedeep {
namespace {

std::size_t as_size(int64_t n) { return static_cast<std::size_t>(n); }

int64_t tile_size(const PairAttention& request) { return (request.dim + 2) * kPairUnits; }

int64_t up_to_tile(int64_t n) { return (n + kPairUnits - 1) / kPairUnits * kPairUnits; }

// What a request's weights and rows need beside the arrays that it came with.
struct Buffers {
  std::vector<float> packed, lines, room;

  Buffers(PairAttention& request, int64_t parts) {
    request.line = up_to_tile(request.dim);
    request.tiles = up_to_tile(request.units) / kPairUnits;
    const int64_t pairs = request.fields * (request.fields - 1) / 2;
    request.room_size = (2 * request.fields + 1) * request.line + pairs;
    packed.assign(as_size(request.tiles * tile_size(request)), 0.0f);
    lines.assign(as_size(request.units * request.line), 0.0f);
    room.resize(as_size(parts * request.room_size));
    for (int64_t unit = 0; unit < request.units; ++unit) {
      const float* const weights = request.weight + unit * request.dim;
      std::copy_n(weights, request.dim, lines.data() + unit * request.line);
      float* const tile =
          packed.data() + unit / kPairUnits * tile_size(request) + unit % kPairUnits;
      for (int64_t d = 0; d < request.dim; ++d) tile[d * kPairUnits] = weights[d];
      tile[request.dim * kPairUnits] = request.bias[unit];
      tile[(request.dim + 1) * kPairUnits] = request.score[unit];
    }
    request.packed = packed.data();
    request.lines = lines.data();
    request.room = room.data();
  }
};

int64_t count_parts(const PairAttention& request) {
  return (request.rows + kPairRows - 1) / kPairRows;
}

}  // namespace

void attend_pairs(PairAttention request, int threads) {
  const int64_t n_parts = count_parts(request);
  const Buffers buffers(request, n_parts);
  const auto one_part = WIDEDEEP_DISPATCH(attend_pairs_part);
  parallel_for(n_parts, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t part = begin; part < end; ++part) one_part(request, part);
  });
}

void attend_pairs_grad(PairAttention request, ConstRows grad_out, Rows grad_input,
                       float* grad_weight, float* grad_bias, float* grad_score, int threads) {
  const int64_t n_parts = count_parts(request);
  const Buffers buffers(request, n_parts);
  const int64_t size = request.tiles * tile_size(request);
  std::vector<float> parts(as_size(n_parts * size), 0.0f);
  const PairAttentionGrad grad{grad_out, grad_input, parts.data(), size};
  const auto one_part = WIDEDEEP_DISPATCH(attend_pairs_grad_part);
  parallel_for(n_parts, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t part = begin; part < end; ++part) one_part(request, grad, part);
  });
  const auto sum = [&](int64_t unit, int64_t line) {
    const int64_t position =
        unit / kPairUnits * tile_size(request) + line * kPairUnits + unit % kPairUnits;
    double total = 0.0;
    for (int64_t part = 0; part < n_parts; ++part) total += parts[as_size(part * size + position)];
    return static_cast<float>(total);
  };
  for (int64_t unit = 0; unit < request.units; ++unit) {
    for (int64_t d = 0; d < request.dim; ++d) grad_weight[unit * request.dim + d] = sum(unit, d);
    grad_bias[unit] = sum(unit, request.dim);
    grad_score[unit] = sum(unit, request.dim + 1);
  }
}

}  // namespace widedeep
