// The deep tower in training: dense layers forward and backward over the rows of a batch.
//
// A layer computes out = in · weightᵀ + bias, then the rectifier unless it is the last. Every
// number is a sum in one fixed order (over inputs; over the batch's rows for weights), so results
// do not depend on the number of threads, and a row's outputs do not depend on the batch.
#pragma once

#include <stdint.h>

#include <memory>

#include "sparse.hpp"

namespace widedeep {

struct TowerLayer {
  ConstRows weight;  // outputs x inputs
  int64_t outputs;
  const float* bias;  // outputs, or null
};

struct TowerForward {
  bool bf16;  // factors are rounded to bfloat16, where has_bf16_products(); sums stay float32
  ConstRows in;
  int64_t rows;
  const TowerLayer* layers;
  int64_t n_layers;
  const Rows* outs;  // of each layer; the last one's are the logits
};

struct TowerBackward {
  bool bf16;
  ConstRows in;
  int64_t rows;
  const TowerLayer* layers;
  int64_t n_layers;
  const ConstRows* outs;  // as the forward pass left them
  ConstRows grad_logits;
  const Rows* grads;  // room for the gradient of each layer's outputs, but the last one's
  Rows grad_in;
  const Rows* weight_grads;  // of each layer
  float* const* bias_grads;  // of each layer, or null
};

bool has_bf16_products();

void tower_forward(const TowerForward& request, int threads);

// The backward pass down to grad_in. The gradients of weights and biases, which nothing below
// needs, are then under way on other threads; they are there when wait() has returned. The arrays
// of the request must live until then, the request itself need not.
class TowerGradients {
 public:
  TowerGradients(const TowerBackward& request, int threads);
  ~TowerGradients();
  void wait();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace widedeep
