#include "tower.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "buffer_pool.hpp"
#include "norm_passes.hpp"
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
  PackedTower(const Functions& use, const TowerBatch& batch, bool backward, int threads)
      : use_(use), layers_(batch.layers), backward_(backward) {
    const TowerLayer* const layers = batch.layers;
    const int64_t n_layers = batch.n_layers;
    few_ = !backward && !batch.bf16 &&
           std::all_of(layers, layers + n_layers, [&](const TowerLayer& layer) {
             return WIDEDEEP_DISPATCH(multiplies_few_rows)(batch.rows, layer.weight.width);
           });
    int64_t floats = 0;
    for (int64_t i = 0; i < n_layers; ++i) {
      const int64_t inputs = backward ? layers[i].outputs : layers[i].weight.width;
      const int64_t outputs = backward ? layers[i].weight.width : layers[i].outputs;
      packed_.push_back({inputs, outputs, n_panels_, nullptr, nullptr});
      n_panels_ += panels_of(outputs);
      floats += round_to((inputs + 1) * panels_of(outputs) * panel_, kLine);
    }
    if (few_) return;
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
    const float* const bias = backward_ ? nullptr : layers_[layer].bias;
    if (bias != nullptr) request.bias = few_ ? bias : packed.bias;
    if (few_) request.weight = layers_[layer].weight;
    return request;
  }

  void multiply(const RowProduct& product, int64_t first, int64_t last, float* scratch) const {
    if (few_) {
      WIDEDEEP_DISPATCH(product_few_rows)(product, first, last);
    } else {
      use_.product_rows(product, first, last, scratch);
    }
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
  bool few_;  // rows: nothing is packed
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
  explicit GradientWork(const TowerBatch& batch) : use_(functions(batch.bf16)) {
    const int64_t block = use_.tower_block();
    const int64_t panel = use_.tower_panel();
    for (int64_t i = 0; i < batch.n_layers; ++i) {
      const TowerLayer& layer = batch.layers[i];
      const ConstRows in = i == 0 ? batch.in : read(batch.layers[i - 1].out);
      const int64_t tiles = (layer.outputs + block - 1) / block * ((in.width + panel - 1) / panel);
      const int64_t sums =
          layer.bias_grad == nullptr ? 0 : (layer.outputs + kColumnsOfSum - 1) / kColumnsOfSum;
      layers_.push_back({{read(layer.grad), in, batch.rows, layer.weight_grad},
                         layer.outputs,
                         layer.bias_grad,
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

// Two figures of each column over the batch's rows.
struct ColumnFigures {
  explicit ColumnFigures(int64_t width) : first(allocate(width)), second(allocate(width)) {}
  Buffer first;
  Buffer second;
};

int norm_threads(int64_t rows, int threads) { return rows < kFewRows ? 1 : threads; }

// The means of a layer's outputs, and the deviations' inverses; the running figures follow them.
void find_moments(const TowerLayer& layer, int64_t rows, int threads, float* means) {
  const TowerNorm& norm = *layer.norm;
  const auto momentum = static_cast<double>(norm.momentum);
  const double unbiased =
      norm.biased ? 1.0
                  : static_cast<double>(rows) / static_cast<double>(std::max<int64_t>(rows - 1, 1));
  const auto follow = [momentum](float& running, double value) {
    running =
        static_cast<float>((1.0 - momentum) * static_cast<double>(running) + momentum * value);
  };
  over_columns(layer.outputs, norm_threads(rows, threads),
               [&](int64_t begin, int64_t end, double* mean, double* variance) {
                 WIDEDEEP_DISPATCH(column_moments)(read(layer.out), rows, begin, end, mean,
                                                   variance);
                 for (int64_t i = begin; i < end; ++i) {
                   const double spread = variance[i - begin];
                   means[i] = static_cast<float>(mean[i - begin]);
                   norm.inverse[i] =
                       static_cast<float>(1.0 / std::sqrt(spread + static_cast<double>(norm.eps)));
                   follow(norm.running_mean[i], mean[i - begin]);
                   follow(norm.running_var[i], unbiased * spread);
                 }
               });
}

// The means of a layer's gradient; its sums are the gradients of the norm.
void find_gradient_means(const TowerLayer& layer, int64_t rows, int threads,
                         const ColumnFigures& means) {
  const TowerNorm& norm = *layer.norm;
  over_columns(layer.outputs, norm_threads(rows, threads),
               [&](int64_t begin, int64_t end, double* mean, double* product) {
                 WIDEDEEP_DISPATCH(column_products)
                 (read(layer.grad), read(norm.normed), rows, begin, end, mean, product);
                 const auto n = static_cast<double>(rows);
                 for (int64_t i = begin; i < end; ++i) {
                   means.first[i] = static_cast<float>(mean[i - begin]);
                   means.second[i] = static_cast<float>(product[i - begin]);
                   norm.bias_grad[i] = static_cast<float>(mean[i - begin] * n);
                   norm.weight_grad[i] = static_cast<float>(product[i - begin] * n);
                 }
               });
}

NormRows norm_request(const TowerLayer& layer, const Rows& values, const float* mean,
                      const float* mean_grad, const float* mean_normed_grad) {
  const TowerNorm& norm = *layer.norm;
  return {mean,      norm.inverse,     norm.weight, norm.bias,
          mean_grad, mean_normed_grad, norm.normed, values};
}

uint64_t layer_key(uint64_t key, int64_t layer) {
  return key + static_cast<uint64_t>(layer + 1) * 0xd1342543de82ef95u;
}

// The layers from one norm to the next: their rows go through them without waiting for others.
class Segments {
 public:
  Segments(const TowerBatch& batch, const Functions& use, const PackedTower& packed, int threads)
      : batch_(batch), use_(use), packed_(packed), threads_(threads) {}

  void forward(uint64_t key) const {
    Buffer means;  // of the layer below the segment, where it has a norm
    for (int64_t begin = 0; begin < batch_.n_layers || means != nullptr;) {
      int64_t end = begin;
      while (end < batch_.n_layers && batch_.layers[end++].norm == nullptr) {
      }
      over_rows(use_, batch_.rows, packed_.widest(), threads_,
                [&](int64_t first, int64_t last, float* scratch) {
                  if (means != nullptr) {
                    const TowerLayer& below = batch_.layers[begin - 1];
                    WIDEDEEP_DISPATCH(norm_rows)
                    (norm_request(below, below.out, means.get(), nullptr, nullptr), first, last);
                  }
                  for (int64_t i = begin; i < end; ++i) forward_rows(i, key, first, last, scratch);
                });
      means = nullptr;
      if (end > begin && batch_.layers[end - 1].norm != nullptr) {
        means = allocate(batch_.layers[end - 1].outputs);
        find_moments(batch_.layers[end - 1], batch_.rows, threads_, means.get());
      }
      begin = end;
    }
  }

  void backward() const {
    for (int64_t end = batch_.n_layers; end > 0;) {
      int64_t begin = end - 1;
      while (begin > 0 && batch_.layers[begin - 1].norm == nullptr) --begin;
      const TowerLayer& top = batch_.layers[end - 1];
      const bool normed = top.norm != nullptr;
      const ColumnFigures means(normed ? top.outputs : 0);
      if (normed) find_gradient_means(top, batch_.rows, threads_, means);
      over_rows(use_, batch_.rows, packed_.widest(), threads_,
                [&](int64_t first, int64_t last, float* scratch) {
                  if (normed) {
                    const NormRows request =
                        norm_request(top, top.grad, nullptr, means.first.get(), means.second.get());
                    WIDEDEEP_DISPATCH(norm_grad_rows)(request, first, last);
                  }
                  for (int64_t i = end; i-- > begin;) backward_rows(i, first, last, scratch);
                });
      end = begin;
    }
  }

 private:
  void forward_rows(int64_t i, uint64_t key, int64_t first, int64_t last, float* scratch) const {
    const TowerLayer& layer = batch_.layers[i];
    const ConstRows in = i == 0 ? batch_.in : read(batch_.layers[i - 1].out);
    RowProduct product = packed_.product(i, in, layer.out);
    product.relu = layer.is_simple() && layer.activation == UnitActivation::relu;
    packed_.multiply(product, first, last, scratch);
    if (layer.is_simple()) return;
    const UnitRows units{layer.activation, layer.dropout, layer_key(key, i),
                         layer.outputs,    layer.out,     layer.slope};
    WIDEDEEP_DISPATCH(unit_rows)(units, first, last);
  }

  // From the gradient of a layer's outputs (before its norm) to that of its inputs.
  void backward_rows(int64_t i, int64_t first, int64_t last, float* scratch) const {
    const TowerLayer& layer = batch_.layers[i];
    if (!layer.is_simple()) {
      WIDEDEEP_DISPATCH(scale_rows)(layer.grad, layer.slope, first, last);
    } else if (layer.activation == UnitActivation::relu && i + 1 == batch_.n_layers) {
      WIDEDEEP_DISPATCH(mask_rows)(layer.grad, read(layer.out), first, last);
    }
    const Rows& out = i == 0 ? batch_.grad_in : batch_.layers[i - 1].grad;
    RowProduct product = packed_.product(i, read(layer.grad), out);
    if (i > 0) {
      const TowerLayer& below = batch_.layers[i - 1];
      if (below.is_simple() && below.activation == UnitActivation::relu)
        product.mask = read(below.out);
    }
    packed_.multiply(product, first, last, scratch);
  }

  const TowerBatch& batch_;
  const Functions& use_;
  const PackedTower& packed_;
  int threads_;
};

}  // namespace

bool has_bf16_products() { return has_avx512bf16(); }

void tower_forward(const TowerBatch& batch, uint64_t key, int threads) {
  const Functions use = functions(batch.bf16);
  const PackedTower packed(use, batch, false, threads);
  Segments(batch, use, packed, threads).forward(key);
}

struct TowerGradients::State {
  State(const TowerBatch& batch, int threads)
      : work(batch),
        background(work.pieces(), parts_of(work.pieces(), batch.rows, threads),
                   batch.rows < kFewRows ? 0 : threads - 1, &run_part, &work) {}

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

void tower_backward(const TowerBatch& batch, int threads) {
  const Functions use = functions(batch.bf16);
  const PackedTower packed(use, batch, true, threads);
  Segments(batch, use, packed, threads).backward();
}

void tower_bias_gradients(const TowerBatch& batch) {
  for (int64_t i = 0; i < batch.n_layers; ++i) {
    const TowerLayer& layer = batch.layers[i];
    if (layer.bias_grad == nullptr) continue;
    WIDEDEEP_DISPATCH(column_sums)
    (read(layer.grad), batch.rows, layer.bias_grad, 0, layer.outputs);
  }
}

TowerRows::TowerRows(const TowerBatch& batch, int64_t first, int64_t last)
    : layers_(batch.layers, batch.layers + batch.n_layers), batch_(batch) {
  const auto move = [first](auto& rows) {
    if (rows.data != nullptr) rows.data += first * rows.stride;
  };
  for (TowerLayer& layer : layers_) {
    move(layer.out), move(layer.grad), move(layer.slope);
  }
  move(batch_.in), move(batch_.grad_in);
  batch_.layers = layers_.data();
  batch_.rows = last - first;
}

TowerGradients::TowerGradients(const TowerRows& rows, int threads)
    : state_(std::make_unique<State>(rows.batch(), threads)) {}

TowerGradients::TowerGradients(const TowerBatch& batch, int threads) {
  tower_backward(batch, threads);
  state_ = std::make_unique<State>(batch, threads);
}

TowerGradients::~TowerGradients() = default;

void TowerGradients::wait() { state_->background.wait(); }

}  // namespace widedeep
