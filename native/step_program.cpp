#include "step_program.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <optional>
#include <utility>

#include "float_sum.hpp"
#include "group.hpp"
#include "losses.hpp"
#include "outer_update.hpp"
#include "thread_pool.hpp"

namespace widedeep {
namespace {

constexpr int64_t kFewIds = 2048;       // of a batch: not worth a second thread
constexpr int64_t kFewNumbers = 32768;  // of an update: likewise
constexpr int64_t kAheadIds = 512;      // of a batch whose rows are asked for a step before

template <class T>
T* at_least(std::vector<T>& buffer, int64_t n) {
  if (static_cast<int64_t>(buffer.size()) < n) buffer.resize(static_cast<std::size_t>(n));
  return buffer.data();
}

// Wraps where it does not fit: an offset may be anything.
int64_t difference(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
}

// The rows that one table's part of a batch touches. Neighbouring logical tables share their
// occurrences: `runs` are those of rows whose occurrences lie side by side.
struct TouchedRows {
  struct Run {
    const int32_t* starts;
    int64_t n;
  };
  const int64_t* rows = nullptr;
  int64_t n = 0;
  std::vector<Run> runs{};
  const int32_t* order = nullptr;
  const int32_t* cells = nullptr;
};

}  // namespace

int64_t RowUpdate::move(const int64_t* rows, int64_t n, const ConstRows& grads, double factor,
                        double scale, int64_t step, int threads, const float* rates,
                        float* products) const {
  const bool scales = rule == Rule::ftrl;  // the gradients, not the rate
  const RowGradients gradients{rows, n, grads, static_cast<float>(scales ? scale * factor : scale)};
  const auto rate = static_cast<float>(lr * factor);
  switch (rule) {
    case Rule::sgd:
      sgd_rows({gradients, weights, rate}, threads);
      return 0;
    case Rule::adagrad:
      adagrad_rows(
          {gradients, weights, first, rate, static_cast<float>(eps), static_cast<float>(l2)},
          threads);
      return 0;
    case Rule::adam: {
      const auto t = static_cast<double>(step);
      const double corrected =
          lr * factor * std::sqrt(1.0 - std::pow(beta2, t)) / (1.0 - std::pow(beta1, t));
      adam_rows({gradients, weights, first, second, static_cast<float>(corrected),
                 static_cast<float>(beta1), static_cast<float>(1.0 - beta1),
                 static_cast<float>(beta2), static_cast<float>(1.0 - beta2),
                 static_cast<float>(eps), static_cast<float>(1.0 - lr * factor * weight_decay)},
                threads);
      return 0;
    }
    case Rule::ftrl:
      return ftrl_rows(
          {gradients, weights, first, second, static_cast<float>(1.0 / lr), static_cast<float>(l1),
           static_cast<float>(l2), static_cast<float>(beta), static_cast<float>(lr_power),
           static_cast<float>(shrinkage), rates, products},
          threads);
  }
  return 0;
}

// The dense parameters of a program, where batches have few rows: the weights of layers, whose
// gradients need not be stored, and what lies between them.
class FewRows {
 public:
  explicit FewRows(const StepPlan& plan) {
    if (plan.tower == nullptr || plan.tower->bf16) return;
    for (const DenseSpan& span : plan.dense) {
      if (span.update.rule != RowUpdate::Rule::adagrad) return;
    }
    for (const DenseSpan& span : plan.dense) split(*plan.tower, span);
    std::sort(weights_.begin(), weights_.end(),
              [](const Weights& a, const Weights& b) { return a.layer > b.layer; });
    const auto n_layers = static_cast<std::size_t>(plan.tower->n_layers);
    is_whole_ =
        weights_.size() == n_layers &&
        std::all_of(plan.tower->layers, plan.tower->layers + n_layers, [](const TowerLayer& layer) {
          return layer.is_simple() && layer.norm == nullptr;
        });
    fits_ = true;
  }

  bool takes(int64_t rows) const { return fits_ && rows <= kMostOuterRows; }

  // The backward pass down to grad_in, and all updates.
  void move(const TowerBatch& tower, double factor, double scale, int threads) const {
    const bool backward = is_whole_ && tower.rows <= kMostBackwardRows;
    if (!backward) tower_backward(tower, threads);
    for (const Weights& one : weights_) {
      const TowerLayer& layer = tower.layers[one.layer];
      const bool first = one.layer == 0;
      const TowerLayer& below = tower.layers[first ? 0 : one.layer - 1];
      const RowUpdate& update = one.span.update;
      OuterUpdate request{
          {layer.grad.data, layer.grad.stride, layer.outputs},
          first ? tower.in : ConstRows{below.out.data, below.out.stride, below.out.width},
          tower.rows,
          update.weights,
          update.first,
          static_cast<float>(scale),
          static_cast<float>(update.lr * (factor * one.span.factor)),
          static_cast<float>(update.eps),
          static_cast<float>(update.l2)};
      if (backward) {
        if (layer.activation == UnitActivation::relu) mask(layer, tower.rows);
        request.grad_in = first ? tower.grad_in : below.grad;
      }
      adagrad_outer(request, layer.outputs * update.weights.width < kFewNumbers ? 1 : threads);
    }
    tower_bias_gradients(tower);
    for (const DenseSpan& span : rest_) {
      span.update.move(nullptr, 1, span.grads, factor * span.factor, scale, 1, 1);
    }
  }

 private:
  struct Weights {
    int64_t layer;
    DenseSpan span;
  };

  void split(const TowerBatch& tower, const DenseSpan& span) {
    const float* const data = span.update.weights.data;
    const int64_t size = (span.rows - 1) * span.update.weights.stride + span.update.weights.width;
    std::vector<std::pair<int64_t, int64_t>> found;  // where a layer's weights begin
    for (int64_t i = 0; i < tower.n_layers; ++i) {
      const int64_t at = tower.layers[i].weight.data - data;
      if (at >= 0 && at < size) found.emplace_back(at, i);
    }
    std::sort(found.begin(), found.end());
    int64_t end = 0;
    for (const auto& [at, layer] : found) {
      const int64_t width = tower.layers[layer].weight.width;
      const int64_t stride = tower.layers[layer].weight.stride;
      if (at > end) rest_.push_back(part(span, end, 1, at - end, at - end));
      weights_.push_back({layer, part(span, at, tower.layers[layer].outputs, width, stride)});
      end = at + (tower.layers[layer].outputs - 1) * stride + width;
    }
    if (end < size) rest_.push_back(part(span, end, 1, size - end, size - end));
  }

  // From the gradient of a layer's outputs to that of its sums.
  static void mask(const TowerLayer& layer, int64_t rows) {
    WIDEDEEP_DISPATCH(mask_rows)
    (layer.grad, {layer.out.data, layer.out.stride, layer.out.width}, 0, rows);
  }

  static DenseSpan part(const DenseSpan& span, int64_t at, int64_t rows, int64_t width,
                        int64_t stride) {
    DenseSpan own = span;
    own.rows = rows;
    own.update.weights = {span.update.weights.data + at, stride, width};
    own.update.first = {span.update.first.data + at, stride, width};
    own.grads = {span.grads.data + at, stride, width};
    return own;
  }

  bool fits_ = false;
  bool is_whole_ = false;  // `weights_` are those of all layers, and these have simple slopes
  std::vector<Weights> weights_{};  // from the last layer down
  std::vector<DenseSpan> rest_{};
};

// What the steps of a program leave to the next one: memory, and the groups of a batch.
class StepProgram::Buffers {
 public:
  explicit Buffers(const StepPlan& plan) : plan_(plan), few_(plan) {
    if (plan.wide != nullptr) tables_.emplace_back(*plan.wide);
    for (const StepTable& table : plan.tables) tables_.emplace_back(table);
  }

  // The rows of a run of steps, one batch after the other.
  void begin(const StepRows& rows, int threads) {
    rows_ = rows;
    single_ = one_id_in_each_cell(rows.batch, threads);
    const int64_t features = plan_.rates.n_features;
    float* factors = at_least(factors_, features);
    for (int64_t t = 0; t < features; ++t) factors[t] = rate_factor(plan_.rates, t);
  }

  // Asks for the rows of the examples [first, first + n), which are learned next.
  void prefetch(int64_t first, int64_t n) const {
    const int64_t n_features = rows_.batch.n_features;
    if (!single_ || n * n_features > kAheadIds) return;
    for (const Table& table : tables_) {
      const SlotList& slots = table.plan.slots;
      const Rows& weights = table.plan.weights;
      for (int64_t b = first; b < first + n; ++b) {
        const int64_t* ids = rows_.batch.ids + b * n_features;
        for (int64_t s = 0; s < slots.n; ++s) {
          const auto base = static_cast<uintptr_t>(slots.bases[s]);
          const auto id = static_cast<uintptr_t>(ids[slots.features[s]]);
          const uintptr_t bytes =
              (base + id) * static_cast<uintptr_t>(weights.stride) * sizeof(float);
          // An id is not checked yet, and an address that is none does no harm.
          __builtin_prefetch(
              reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(weights.data) + bytes));
        }
      }
    }
  }

  // Learns the examples [first, first + n); false: they hold something odd, and nothing moved.
  bool learn(int64_t step, int64_t first, int64_t n, StepResults& results, int threads) {
    const CsrBatch batch = part(first, n);
    const int used = batch.n_ids < kFewIds ? 1 : threads;
    const int64_t width = plan_.n_logits;
    float* const logits = results.logits + first * width;
    const ConstRows grads{results.grads + first * width, width, width};
    if (batch.n_ids < 0 || !group(batch, used) ||
        !forward(batch, step, first, logits, used, threads))
      return false;
    if (!lose(step, first, n, results)) return false;
    const double* factors = rows_.factors + 3 * step;
    const double mean = 1.0 / static_cast<double>(n);
    const double row_scale = plan_.row_scale == 0.0 ? mean : plan_.row_scale;
    const double scale = plan_.mean_loss ? mean : 1.0;
    std::optional<TowerGradients> running;
    const bool few = few_.takes(n);
    if (plan_.tower != nullptr) {
      const Rows& grad = tower_.layers[tower_.n_layers - 1].grad;
      for (int64_t i = 0; i < n; ++i) {
        std::copy_n(grads.data + i * width, width, grad.data + i * grad.stride);
      }
      if (few) {
        few_.move(tower_, factors[2], scale, threads);
      } else {
        running.emplace(tower_, threads);
      }
    }
    sum(batch, grads, used);
    const int64_t number = rows_.first_step + step;
    move_rows(factors, row_scale, number, results, used);
    if (few) return true;
    if (running) running->wait();
    for (const DenseSpan& span : plan_.dense) {
      const int64_t numbers = span.rows * span.update.weights.width;
      span.update.move(nullptr, span.rows, span.grads, factors[2] * span.factor, scale, number,
                       numbers < kFewNumbers ? 1 : threads);
    }
    return true;
  }

 private:
  struct Table {
    explicit Table(const StepTable& table) : plan(table), grouper(table.groups) {}
    const StepTable& plan;
    Grouper grouper;
    TouchedRows touched{};
    std::vector<int64_t> rows{}, table_starts{};
    std::vector<int32_t> starts{}, order{}, cells{};
    std::vector<float> sums{}, scales{};
  };

  // The examples [first, first + n); of no ids, n_ids below 0, where these lie elsewhere.
  CsrBatch part(int64_t first, int64_t n) {
    const CsrBatch& all = rows_.batch;
    const int64_t cells = n * all.n_features;
    const int64_t* offsets = all.offsets + first * all.n_features;
    const int64_t begin = single_ ? first * all.n_features : offsets[0];
    if (single_) {  // each of its offsets is its own number
      const float* values = all.values == nullptr ? nullptr : all.values + begin;
      return {all.ids + begin, all.offsets, values, cells, n, all.n_features, true};
    }
    if (begin < 0 || offsets[cells] < begin || offsets[cells] > all.n_ids) {
      return {nullptr, offsets, nullptr, -1, n, all.n_features};  // spans of no ids that there are
    }
    int64_t* own = at_least(offsets_, cells + 1);
    for (int64_t i = 0; i <= cells; ++i) own[i] = difference(offsets[i], begin);
    const float* values = all.values == nullptr ? nullptr : all.values + begin;
    return {all.ids + begin, own, values, own[cells], n, all.n_features};
  }

  bool group(const CsrBatch& batch, int threads) {
    for (Table& table : tables_) {
      if (table.plan.frozen) continue;
      if (!table.plan.wide_tables.empty()) {
        share(tables_.front(), table);
        continue;
      }
      const int64_t n_tables = table.plan.groups.n_tables;
      const GroupOutput output{
          at_least(table.rows, batch.n_ids), at_least(table.table_starts, n_tables + 1),
          at_least(table.starts, batch.n_ids + 1), at_least(table.order, batch.n_ids),
          at_least(table.cells, batch.n_ids)};
      if (table.grouper.group(batch, output, threads) >= 0) return false;
      const int64_t n = table.table_starts[static_cast<std::size_t>(n_tables)];
      TouchedRows& touched = table.touched;
      touched.rows = table.rows.data();
      touched.n = n;
      touched.runs.assign(1, {table.starts.data(), n});
      touched.order = table.order.data();
      touched.cells = table.cells.data();
    }
    return true;
  }

  // Takes the rows of the wide table's groups.
  static void share(const Table& wide, Table& table) {
    const std::vector<int64_t>& numbers = table.plan.wide_tables;
    TouchedRows& touched = table.touched;
    touched.runs.clear();
    int64_t* rows = at_least(table.rows, wide.touched.n);
    int64_t n = 0;
    for (std::size_t t = 0; t < numbers.size(); ++t) {
      const auto number = static_cast<std::size_t>(numbers[t]);
      const int64_t begin = wide.table_starts[number];
      const int64_t end = wide.table_starts[number + 1];
      for (int64_t u = begin; u < end; ++u)
        rows[n++] = wide.rows[static_cast<std::size_t>(u)] + table.plan.shifts[t];
      if (t > 0 && numbers[t] == numbers[t - 1] + 1) {
        touched.runs.back().n += end - begin;
      } else {
        touched.runs.push_back({wide.starts.data() + begin, end - begin});
      }
    }
    touched.rows = rows;
    touched.n = n;
    touched.order = wide.order.data();
    touched.cells = wide.cells.data();
  }

  bool forward(const CsrBatch& batch, int64_t step, int64_t first, float* logits, int used,
               int threads) {
    const int64_t n = batch.n_examples;
    const int64_t width = plan_.n_logits;
    for (int64_t i = 0; i < n * width; ++i) logits[i] = 0.0f + plan_.bias[i % width];
    for (const Table& table : tables_) {
      const StepTable& plan = table.plan;
      const ConstRows weights{plan.weights.data, plan.weights.stride, plan.weights.width};
      const bool wide = &plan == plan_.wide;
      const Rows out = wide ? Rows{logits, width, width} : plan_.input;
      const GatherRequest request{batch, plan.slots, weights, out};
      const int64_t fault = wide ? wide_forward(request, used) : gather_pool(request, used);
      if (fault != kNoFault) return false;
    }
    if (plan_.tower == nullptr) return true;
    for (int64_t i = 0; i < n; ++i) {
      const float* from = rows_.dense.data + (first + i) * rows_.dense.stride;
      float* to = plan_.input.data + i * plan_.input.stride + plan_.first_dense;
      for (const int64_t column : plan_.dense_columns) *to++ = from[column];
    }
    tower_ = *plan_.tower;
    tower_.rows = n;
    tower_forward(tower_, rows_.keys == nullptr ? 0 : rows_.keys[step], threads);
    const Rows& out = tower_.layers[tower_.n_layers - 1].out;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t c = 0; c < width; ++c) logits[i * width + c] += out.data[i * out.stride + c];
    }
    return true;
  }

  // Fills losses and gradients; false where one, or a label, is none.
  bool lose(int64_t step, int64_t first, int64_t n, StepResults& results) {
    if (!(rows_.losses ? rows_.losses(first, n) : log_loss(first, n, results))) return false;
    const float* const losses = results.losses + first;
    const float total = float_sum(losses, n);
    if (!std::isfinite(total + float_sum(plan_.bias_grad, plan_.n_logits))) return false;
    results.totals[step] = total;
    if (rows_.weights == nullptr) return true;
    const float* const weights = rows_.weights + first;
    float* const weighted = at_least(labels_, n);
    for (int64_t i = 0; i < n; ++i) weighted[i] = losses[i] * weights[i];
    results.totals[step] = float_sum(weighted, n);
    results.weight_sums[step] = float_sum(weights, n);
    return true;
  }

  bool log_loss(int64_t first, int64_t n, StepResults& results) {
    float* labels = at_least(labels_, n);
    for (int64_t i = 0; i < n; ++i) {
      labels[i] = rows_.labels[(first + i) * rows_.label_stride];
      if (!(labels[i] >= 0.0f && labels[i] <= 1.0f)) return false;
    }
    float* const losses = results.losses + first;
    float* const grads = results.grads + first;
    logistic_loss(results.logits + first, labels, n, losses, grads);
    if (rows_.weights != nullptr) {
      const float* weights = rows_.weights + first;
      for (int64_t i = 0; i < n; ++i) {
        grads[i] = 0.0f + grads[i] * weights[i];
        losses[i] += 0.0f;
      }
    }
    plan_.bias_grad[0] = float_sum(grads, n);
    return true;
  }

  // Sums the examples' gradients by row.
  void sum(const CsrBatch& batch, const ConstRows& grads, int threads) {
    for (Table& table : tables_) {
      const StepTable& plan = table.plan;
      if (plan.frozen) continue;
      const int64_t width = plan.weights.width;
      const TouchedRows& touched = table.touched;
      const float* scales = nullptr;
      if (!plan.sums_only && !(single_ && batch.values == nullptr)) {
        table.scales.assign(static_cast<std::size_t>(batch.n_examples * batch.n_features), 1.0f);
        SlotList slots = plan.slots;
        slots.sizes = nullptr;
        cell_scales(batch, slots, table.scales.data(), threads);  // the spans were checked
        scales = table.scales.data();
      }
      const ConstRows grad =
          &plan == plan_.wide
              ? grads
              : ConstRows{tower_.grad_in.data, tower_.grad_in.stride, tower_.grad_in.width};
      float* out = at_least(table.sums, touched.n * width);
      for (const TouchedRows::Run& run : touched.runs) {
        if (run.n == 0) continue;
        segment_sum({run.starts,
                     touched.order,
                     touched.cells,
                     run.n,
                     batch.n_features,
                     plan.column_of_feature,
                     scales,
                     batch.values,
                     grad,
                     nullptr,
                     {nullptr, 0, width},
                     {out, width, width}},
                    threads);
        out += run.n * width;
      }
    }
  }

  void move_rows(const double* factors, double scale, int64_t step, StepResults& results,
                 int threads) {
    for (Table& table : tables_) {
      const StepTable& plan = table.plan;
      if (plan.frozen) continue;
      const int64_t width = plan.weights.width;
      const TouchedRows& touched = table.touched;
      const ConstRows sums{table.sums.data(), width, width};
      const bool wide = &plan == plan_.wide;
      if (!wide || plan_.rates.n_features == 0) {
        const int64_t change = plan.update.move(touched.rows, touched.n, sums,
                                                factors[wide ? 0 : 1], scale, step, threads);
        if (wide) results.nonzero += change;
        continue;
      }
      float* rates = at_least(rates_, touched.n);
      float* products = at_least(products_, touched.n);
      const int64_t* starts = table.table_starts.data();
      for (int64_t t = 0; t < plan_.rates.n_features; ++t) {
        std::fill(rates + starts[t], rates + starts[t + 1], factors_[static_cast<std::size_t>(t)]);
      }
      results.nonzero += plan.update.move(touched.rows, touched.n, sums, factors[0], scale, step,
                                          threads, rates, products);
      if (!rows_.frozen_rates) learn_rates(plan_.rates, products, starts, factors_.data());
    }
  }

  const StepPlan& plan_;
  const FewRows few_;
  StepRows rows_{};
  bool single_ = false;
  TowerBatch tower_{};
  std::deque<Table> tables_{};
  std::vector<int64_t> offsets_{};
  std::vector<float> labels_{}, rates_{}, products_{}, factors_{};
};

StepProgram::StepProgram(StepPlan plan)
    : plan_(std::move(plan)), buffers_(std::make_unique<Buffers>(plan_)) {}

StepProgram::~StepProgram() = default;

int64_t StepProgram::run(const StepRows& rows, StepResults& results, int threads) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  buffers_->begin(rows, threads);
  int64_t step = 0;
  for (int64_t first = 0; first < rows.batch.n_examples; first += rows.batch_rows, ++step) {
    const int64_t left = rows.batch.n_examples - first;
    const int64_t n = std::min(rows.batch_rows, left);
    buffers_->prefetch(first + n, std::min(rows.batch_rows, left - n));
    if (!buffers_->learn(step, first, n, results, threads)) break;
    if (std::chrono::duration<double>(Clock::now() - start).count() >= rows.most_seconds) {
      return step + 1;
    }
  }
  return step;
}

}  // namespace widedeep
