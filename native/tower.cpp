#include "tower.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "buffer_pool.hpp"
#include "thread_pool.hpp"

namespace widedeep {
namespace {

constexpr int64_t kGroupBlocks = 8;     // blocks of rows that go through the layers together
constexpr int64_t kLine = 16;           // floats of a cache line
constexpr int64_t kFewRows = 32;        // not worth a second thread
constexpr int64_t kColumnsOfSum = 128;  // of a bias's gradient: about a tile's worth of work

struct Free {
  void operator()(float* data) const noexcept { pooled_free(data); }
};
using Buffer = std::unique_ptr<float[], Free>;

Buffer allocate(int64_t floats) {
  const auto bytes = static_cast<std::size_t>(floats) * sizeof(float);
  return Buffer(static_cast<float*>(pooled_allocate(bytes)));
}

int64_t round_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// A layer's weight, packed as the right side of one direction's product.
struct PackedWeight {
  int64_t inputs;
  int64_t outputs;
  int64_t first_panel;  // among those of all layers
  float* panels;
  float* bias;  // padded to whole panels; null where the layer has none
};

class PackedTower {
 public:
  // Forward: inputs of a layer are the product's inputs. Backward: its outputs are.
  PackedTower(const TowerLayer* layers, int64_t n_layers, bool backward, int threads)
      : layers_(layers), backward_(backward) {
    int64_t floats = 0;
    for (int64_t i = 0; i < n_layers; ++i) {
      const int64_t inputs = backward ? layers[i].outputs : layers[i].weight.width;
      const int64_t outputs = backward ? layers[i].weight.width : layers[i].outputs;
      packed_.push_back({inputs, outputs, n_panels_, nullptr, nullptr});
      n_panels_ += panels_of(outputs);
      floats += round_to((inputs + 1) * panels_of(outputs) * panel_, kLine);
    }
    data_ = allocate(floats);
    float* at = data_.get();
    for (PackedWeight& layer : packed_) {
      const int64_t width = panels_of(layer.outputs) * panel_;
      layer.panels = at;
      layer.bias = at + layer.inputs * width;
      at += round_to((layer.inputs + 1) * width, kLine);
    }
    parallel_for(n_panels_, threads, [&](int64_t begin, int64_t end, int) { pack(begin, end); });
    if (!backward) pad_biases();
  }

  RowProduct product(int64_t layer, const ConstRows& in, const Rows& out) const {
    const PackedWeight& packed = packed_[static_cast<std::size_t>(layer)];
    RowProduct request{in, packed.panels, packed.outputs, nullptr, false, {nullptr, 0, 0}, out};
    if (!backward_ && layers_[layer].bias != nullptr) request.bias = packed.bias;
    return request;
  }

  // Floats a row of the widest layer's inputs takes, in whole cache lines.
  int64_t widest() const {
    int64_t found = 0;
    for (const PackedWeight& layer : packed_) found = std::max(found, layer.inputs);
    return round_to(found, kLine);
  }

 private:
  int64_t panels_of(int64_t outputs) const { return (outputs + panel_ - 1) / panel_; }

  void pack(int64_t begin, int64_t end) {
    for (std::size_t i = 0; i < packed_.size(); ++i) {
      const PackedWeight& layer = packed_[i];
      const int64_t first = std::max(begin - layer.first_panel, int64_t{0});
      const int64_t last = std::min(end - layer.first_panel, panels_of(layer.outputs));
      if (first >= last) continue;
      const ConstRows& weight = layers_[i].weight;
      const int64_t row = backward_ ? weight.stride : 1;
      const int64_t column = backward_ ? 1 : weight.stride;
      WIDEDEEP_DISPATCH(pack_panels)
      (weight.data, row, column, layer.inputs, layer.outputs, layer.panels, first, last);
    }
  }

  void pad_biases() {
    for (std::size_t i = 0; i < packed_.size(); ++i) {
      if (layers_[i].bias == nullptr) continue;
      const PackedWeight& layer = packed_[i];
      float* const end = layer.bias + panels_of(layer.outputs) * panel_;
      std::fill(std::copy_n(layers_[i].bias, layer.outputs, layer.bias), end, 0.0f);
    }
  }

  const TowerLayer* layers_;
  bool backward_;
  int64_t panel_ = WIDEDEEP_DISPATCH(tower_panel)();
  int64_t n_panels_ = 0;
  std::vector<PackedWeight> packed_{};
  Buffer data_{};
};

// Calls rows(begin, end, scratch) for groups of rows, small enough for the second cache.
template <class Fn>
void over_rows(int64_t n_rows, int64_t width, int threads, Fn&& rows) {
  const int64_t group = kGroupBlocks * WIDEDEEP_DISPATCH(tower_block)();
  parallel_for(n_rows, n_rows < kFewRows ? 1 : threads, [&](int64_t begin, int64_t end, int) {
    const Buffer scratch = allocate(std::min(group, end - begin) * width);
    for (; begin < end; begin += group) rows(begin, std::min(begin + group, end), scratch.get());
  });
}

ConstRows read(const Rows& rows) { return {rows.data, rows.stride, rows.width}; }

// What the weights' gradients consist of, as a list of pieces of about the same work: tiles of the
// products, then the columns of the biases' sums.
class GradientWork {
 public:
  explicit GradientWork(const TowerBackward& request) : request_(request) {
    const int64_t block = WIDEDEEP_DISPATCH(tower_block)();
    const int64_t panel = WIDEDEEP_DISPATCH(tower_panel)();
    for (int64_t i = 0; i < request.n_layers; ++i) {
      const TowerLayer& layer = request.layers[i];
      const int64_t blocks = (layer.outputs + block - 1) / block;
      add(blocks * ((layer.weight.width + panel - 1) / panel));
      add(request.bias_grads[i] == nullptr ? 0
                                           : (layer.outputs + kColumnsOfSum - 1) / kColumnsOfSum);
    }
  }

  int64_t pieces() const { return starts_.back(); }

  void run(int64_t begin, int64_t end) const {
    for (std::size_t i = 0; i + 1 < starts_.size(); ++i) {
      const int64_t first = std::max(begin, starts_[i]) - starts_[i];
      const int64_t last = std::min(end, starts_[i + 1]) - starts_[i];
      if (first < last) run_of(static_cast<int64_t>(i), first, last);
    }
  }

 private:
  void add(int64_t pieces) { starts_.push_back(starts_.back() + pieces); }

  void run_of(int64_t kind, int64_t first, int64_t last) const {
    const int64_t i = kind / 2;
    const bool is_last = i + 1 == request_.n_layers;
    const ConstRows grad = is_last ? request_.grad_logits : read(request_.grads[i]);
    if (kind % 2 == 1) {
      const int64_t end = std::min(last * kColumnsOfSum, request_.layers[i].outputs);
      WIDEDEEP_DISPATCH(column_sums)
      (grad, request_.rows, request_.bias_grads[i], first * kColumnsOfSum, end);
      return;
    }
    const ConstRows in = i == 0 ? request_.in : request_.outs[i - 1];
    WIDEDEEP_DISPATCH(weight_gradient_tiles)
    ({grad, in, request_.rows, request_.weight_grads[i]}, first, last);
  }

  const TowerBackward& request_;
  std::vector<int64_t> starts_{0};
};

}  // namespace

void tower_forward(const TowerForward& request, int threads) {
  const PackedTower packed(request.layers, request.n_layers, false, threads);
  const auto product = WIDEDEEP_DISPATCH(product_rows);
  over_rows(request.rows, packed.widest(), threads,
            [&](int64_t begin, int64_t end, float* scratch) {
              for (int64_t i = 0; i < request.n_layers; ++i) {
                const ConstRows in = i == 0 ? request.in : read(request.outs[i - 1]);
                RowProduct layer = packed.product(i, in, request.outs[i]);
                layer.relu = i + 1 < request.n_layers;
                product(layer, begin, end, scratch);
              }
            });
}

void tower_backward(const TowerBackward& request, int threads) {
  const PackedTower packed(request.layers, request.n_layers, true, threads);
  const auto product = WIDEDEEP_DISPATCH(product_rows);
  over_rows(request.rows, packed.widest(), threads,
            [&](int64_t begin, int64_t end, float* scratch) {
              ConstRows grad = request.grad_logits;
              for (int64_t i = request.n_layers - 1; i >= 0; --i) {
                const Rows& out = i == 0 ? request.grad_in : request.grads[i - 1];
                RowProduct layer = packed.product(i, grad, out);
                if (i > 0) layer.mask = request.outs[i - 1];
                product(layer, begin, end, scratch);
                grad = read(out);
              }
            });
  const GradientWork work(request);
  parallel_for(work.pieces(), request.rows < kFewRows ? 1 : threads,
               [&](int64_t begin, int64_t end, int) { work.run(begin, end); });
}

}  // namespace widedeep
