// The deep tower in training: dense layers forward and backward over the rows of a batch.
//
// A layer computes sums = in · weightᵀ + bias, then its activation, dropout, and batch norm, each
// where it has one. Every number is a sum in one fixed order (over inputs; over the batch's rows
// for weights and norms), and what is dropped is a function of a key, the layer, the row and the
// unit: results do not depend on the number of threads, and without norms and dropout a row's
// outputs do not depend on the batch.
#pragma once

#include <stdint.h>

#include <memory>
#include <vector>

#include "sparse.hpp"
#include "tower_units.hpp"

namespace widedeep {

// Batch norm: of the outputs as they are after dropout, over the batch's rows.
struct TowerNorm {
  const float* weight;
  const float* bias;
  float* weight_grad;
  float* bias_grad;
  float* running_mean;
  float* running_var;
  // What the forward pass leaves to the backward pass:
  float* inverse;  // of each column's standard deviation
  Rows normed;     // the outputs with mean 0 and variance 1
  float momentum;
  float eps;
  bool biased;  // the running variance follows the batch's own, not an estimate of all rows'
};

struct TowerLayer {
  ConstRows weight;  // outputs x inputs
  int64_t outputs;
  const float* bias;  // outputs, or null
  UnitActivation activation;
  float dropout;          // probability that a unit is dropped
  const TowerNorm* norm;  // or null
  Rows out;
  Rows grad;   // of the layer's outputs, then of its sums
  Rows slope;  // derivative of each output (before the norm) by its sum; null where is_simple()
  Rows weight_grad;
  float* bias_grad;  // or null

  // Whether the derivative of an output by its sum can be told from the output.
  bool is_simple() const {
    return dropout == 0 && (activation == UnitActivation::linear ||
                            (activation == UnitActivation::relu && norm == nullptr));
  }
};

struct TowerBatch {
  bool bf16;  // factors are rounded to bfloat16, where has_bf16_products(); sums stay float32
  ConstRows in;
  int64_t rows;
  const TowerLayer* layers;
  int64_t n_layers;
  Rows grad_in;
};

bool has_bf16_products();

// `key` tells which units are dropped.
void tower_forward(const TowerBatch& batch, uint64_t key, int threads);

// The backward pass alone, down to grad_in; the layers' grads are then those of their sums.
void tower_backward(const TowerBatch& batch, int threads);

// The same batch, but rows [first, last) alone.
class TowerRows {
 public:
  TowerRows(const TowerBatch& batch, int64_t first, int64_t last);
  const TowerBatch& batch() const { return batch_; }

 private:
  std::vector<TowerLayer> layers_;
  TowerBatch batch_;
};

// The gradients of the layers' biases, after tower_backward().
void tower_bias_gradients(const TowerBatch& batch);

// The backward pass down to grad_in, from the last layer's grad, which holds the gradient of the
// tower's outputs. The gradients of weights and biases, which nothing below needs, are then under
// way on other threads; they are there when wait() has returned. The arrays must live until then,
// the batch and its layers need not.
class TowerGradients {
 public:
  TowerGradients(const TowerBatch& batch, int threads);
  // After tower_backward() of a larger batch: of these rows of it.
  TowerGradients(const TowerRows& rows, int threads);
  ~TowerGradients();
  void wait();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace widedeep
