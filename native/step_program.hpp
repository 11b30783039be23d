// Training steps of the standard models, one after the other without the interpreter: grouping,
// gathering, the tower, the log loss and the updates, by the kernels of sparse.hpp and tower.hpp.
#pragma once

#include <stdint.h>

#include <functional>
#include <memory>
#include <vector>

#include "feature_rates.hpp"
#include "sparse.hpp"
#include "tower.hpp"

namespace widedeep {

// How rows move: the equations of one optimizer, and its numbers.
struct RowUpdate {
  enum class Rule : uint8_t { sgd, adagrad, adam, ftrl };
  Rule rule = Rule::sgd;
  Rows weights{};
  Rows first{};   // state: the accumulator, the mean, or z
  Rows second{};  // state: the mean square, or n
  double lr = 0;
  double eps = 0;
  double l1 = 0;
  double l2 = 0;
  double beta = 0;
  double lr_power = 0;
  double shrinkage = 0;
  double beta1 = 0;
  double beta2 = 0;
  double weight_decay = 0;

  // `factor` is the schedule's, `scale` that of the gradients, `step` the update's number from 1.
  // Returns the change of the number of non-zero weights where the rule is FTRL.
  int64_t move(const int64_t* rows, int64_t n, const ConstRows& grads, double factor, double scale,
               int64_t step, int threads, const float* rates = nullptr,
               float* products = nullptr) const;
};

// A table of embeddings, or the wide weights.
struct StepTable {
  SlotList slots;
  SlotTables groups;
  const int64_t* column_of_feature;
  bool sums_only;  // all combiners
  Rows weights;
  bool frozen;
  RowUpdate update;
  // Where the wide table holds the same features: its number of each logical table, and how much
  // further the rows lie here. Empty otherwise.
  std::vector<int64_t> wide_tables;
  std::vector<int64_t> shifts;
};

struct DenseSpan {
  RowUpdate update;
  ConstRows grads;
  int64_t rows;
  double factor;  // of the rate
};

struct StepPlan {
  int64_t n_features;
  int64_t n_logits;
  const StepTable* wide;  // or null
  std::vector<StepTable> tables{};
  const TowerBatch* tower;  // for batches of up to its rows; or null
  Rows input;               // what the tower reads, where there is one
  int64_t first_dense = 0;  // column of the numbers
  std::vector<int64_t> dense_columns{};
  const float* bias;  // of each logit
  float* bias_grad;
  std::vector<DenseSpan> dense{};
  FeatureRates rates{};  // n_features is 0 where the wide optimizer adapts none
  double row_scale;      // of rows' gradients; 0: one over the batch's rows
  bool mean_loss;        // the dense gradients' scale: one over the batch's rows, or 1
};

// Examples of several batches of `batch_rows` rows, the last one of what is left.
struct StepRows {
  CsrBatch batch;
  ConstRows dense;
  // Fills losses, gradients and the bias's gradient of the examples [first, first + n) from their
  // logits; false where nothing can be learned of them. Empty: the log loss of one logit.
  std::function<bool(int64_t first, int64_t n)> losses;
  const float* labels;  // for the log loss
  int64_t label_stride;
  const float* weights;  // or null
  int64_t batch_rows;
  int64_t first_step;     // its number, from 1
  const double* factors;  // of the rates of wide, tables and dense, three a step
  const uint64_t* keys;   // of what is dropped in each step; or null
  bool frozen_rates;
  double most_seconds;  // after which no other step begins
};

struct StepResults {
  float* logits;  // n_logits of each example, before it was learned
  float* losses;
  float* grads;         // n_logits of each example
  float* totals;        // of each step: the sum of its weighted losses
  float* weight_sums;   // of each step, where examples have weights
  int64_t nonzero = 0;  // change of the number of non-zero wide weights
};

class StepProgram {
 public:
  explicit StepProgram(StepPlan plan);
  ~StepProgram();

  // Returns the number of steps done. It stops before a batch with an id, label, loss or gradient
  // that is none, of which nothing moves, and when the time is over.
  int64_t run(const StepRows& rows, StepResults& results, int threads);

 private:
  class Buffers;
  StepPlan plan_;
  std::unique_ptr<Buffers> buffers_;
};

}  // namespace widedeep
