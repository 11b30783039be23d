#include "tower.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "buffer_pool.hpp"
#include "thread_pool.hpp"
#include "tower_isa.hpp"

namespace widedeep {
namespace {

constexpr int64_t kGroupBlocks = 8;  // blocks of rows that go through the layers together
constexpr int64_t kLine = 16;        // floats of a cache line
constexpr int64_t kFewRows = 32;     // not worth a second thread
constexpr int kPartsOfThread = 6;
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

// The kernels for one kind of numbers.
struct Functions {
  int64_t (*tower_panel)();
  int64_t (*tower_block)();
  void (*pack_panels)(const float*, int64_t, int64_t, int64_t, int64_t, float*, int64_t, int64_t);
  void (*product_rows)(const RowProduct&, int64_t, int64_t, float*);
  int64_t (*gradient_room)(int64_t);
  void (*weight_gradient_tiles)(const WeightGradient&, int64_t, int64_t, float*);
};

Functions functions(bool bf16) {
  if (bf16 && !has_bf16_products()) throw std::invalid_argument("no products in bfloat16 here");
#if defined(__x86_64__)
  if (bf16) {
    return {&avx512bf16::tower_panel,   &avx512bf16::tower_block,
            &avx512bf16::pack_panels,   &avx512bf16::product_rows,
            &avx512bf16::gradient_room, &avx512bf16::weight_gradient_tiles};
  }
#endif
  return {WIDEDEEP_DISPATCH(tower_panel),   WIDEDEEP_DISPATCH(tower_block),
          WIDEDEEP_DISPATCH(pack_panels),   WIDEDEEP_DISPATCH(product_rows),
          WIDEDEEP_DISPATCH(gradient_room), WIDEDEEP_DISPATCH(weight_gradient_tiles)};
}

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
  PackedTower(const Functions& use, const TowerLayer* layers, int64_t n_layers, bool backward,
              int threads)
      : use_(use), layers_(layers), backward_(backward) {
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
      use_.pack_panels(weight.data, row, column, layer.inputs, layer.outputs, layer.panels, first,
                       last);
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

  const Functions& use_;
  const TowerLayer* layers_;
  bool backward_;
  int64_t panel_ = use_.tower_panel();
  int64_t n_panels_ = 0;
  std::vector<PackedWeight> packed_{};
  Buffer data_{};
};

// Calls rows(begin, end, scratch) for groups of rows, small enough for the second cache.
template <class Fn>
void over_rows(const Functions& use, int64_t n_rows, int64_t width, int threads, Fn&& rows) {
  const int64_t group = kGroupBlocks * use.tower_block();
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
  explicit GradientWork(const TowerBackward& request) : use_(functions(request.bf16)) {
    const int64_t block = use_.tower_block();
    const int64_t panel = use_.tower_panel();
    for (int64_t i = 0; i < request.n_layers; ++i) {
      const int64_t outputs = request.layers[i].outputs;
      const ConstRows grad =
          i + 1 == request.n_layers ? request.grad_logits : read(request.grads[i]);
      const ConstRows in = i == 0 ? request.in : request.outs[i - 1];
      const int64_t tiles = (outputs + block - 1) / block * ((in.width + panel - 1) / panel);
      const int64_t sums =
          request.bias_grads[i] == nullptr ? 0 : (outputs + kColumnsOfSum - 1) / kColumnsOfSum;
      layers_.push_back({{grad, in, request.rows, request.weight_grads[i]},
                         outputs,
                         request.bias_grads[i],
                         pieces_,
                         pieces_ + tiles});
      pieces_ += tiles + sums;
    }
  }

  int64_t pieces() const { return pieces_; }

  void run(int64_t begin, int64_t end) const {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      const int64_t stop = i + 1 < layers_.size() ? layers_[i + 1].first_tile : pieces_;
      const int64_t first = std::max(begin, layer.first_tile);
      const int64_t last = std::min(end, layer.first_sum);
      if (first < last) {
        const Buffer scratch = allocate(use_.gradient_room(layer.outputs));
        use_.weight_gradient_tiles(layer.weights, first - layer.first_tile, last - layer.first_tile,
                                   scratch.get());
      }
      const int64_t first_sum = std::max(begin, layer.first_sum) - layer.first_sum;
      const int64_t last_sum = std::min(end, stop) - layer.first_sum;
      if (first_sum < last_sum) {
        WIDEDEEP_DISPATCH(column_sums)
        (layer.weights.grad, layer.weights.rows, layer.bias_grad, first_sum * kColumnsOfSum,
         std::min(last_sum * kColumnsOfSum, layer.outputs));
      }
    }
  }

 private:
  struct Layer {
    WeightGradient weights;
    int64_t outputs;
    float* bias_grad;
    int64_t first_tile;
    int64_t first_sum;
  };
  Functions use_;
  int64_t pieces_ = 0;
  std::vector<Layer> layers_{};
};

}  // namespace

bool has_bf16_products() { return has_avx512bf16(); }

void tower_forward(const TowerForward& request, int threads) {
  const Functions use = functions(request.bf16);
  const PackedTower packed(use, request.layers, request.n_layers, false, threads);
  over_rows(use, request.rows, packed.widest(), threads,
            [&](int64_t begin, int64_t end, float* scratch) {
              for (int64_t i = 0; i < request.n_layers; ++i) {
                const ConstRows in = i == 0 ? request.in : read(request.outs[i - 1]);
                RowProduct layer = packed.product(i, in, request.outs[i]);
                layer.relu = i + 1 < request.n_layers;
                use.product_rows(layer, begin, end, scratch);
              }
            });
}

struct TowerGradients::State {
  State(const TowerBackward& request, int threads)
      : work(request),
        background(work.pieces(), parts_of(work.pieces(), request.rows, threads),
                   request.rows < kFewRows ? 0 : threads - 1, &run_part, &work) {}

  // More than one a thread: whoever comes late finds something left to do.
  static int parts_of(int64_t pieces, int64_t rows, int threads) {
    const int64_t wanted = rows < kFewRows || threads < 2 ? 1 : int64_t{kPartsOfThread} * threads;
    return static_cast<int>(std::min(pieces, wanted));
  }

  static void run_part(void* work, int64_t begin, int64_t end, int) {
    static_cast<const GradientWork*>(work)->run(begin, end);
  }

  GradientWork work;
  Background background;
};

TowerGradients::TowerGradients(const TowerBackward& request, int threads) {
  const Functions use = functions(request.bf16);
  const PackedTower packed(use, request.layers, request.n_layers, true, threads);
  over_rows(use, request.rows, packed.widest(), threads,
            [&](int64_t begin, int64_t end, float* scratch) {
              ConstRows grad = request.grad_logits;
              for (int64_t i = request.n_layers - 1; i >= 0; --i) {
                const Rows& out = i == 0 ? request.grad_in : request.grads[i - 1];
                RowProduct layer = packed.product(i, grad, out);
                if (i > 0) layer.mask = request.outs[i - 1];
                use.product_rows(layer, begin, end, scratch);
                grad = read(out);
              }
            });
  state_ = std::make_unique<State>(request, threads);
}

TowerGradients::~TowerGradients() = default;

void TowerGradients::wait() { state_->background.wait(); }

}  // namespace widedeep
