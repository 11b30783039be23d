// The recurrence of a gated recurrent unit over histories, forward and backward. Products with the
// inputs are the caller's: they need no order.
#pragma once

#include <stdint.h>

#include <vector>

#include "dispatch.hpp"
#include "tower_isa.hpp"

namespace widedeep {

constexpr int64_t kGruRows = 48;  // histories that go through their events together

// u, r = sigmoid(input + W h), c = tanh(input + r * W h), h' = h + weight u (c - h), for the N
// events that the mask lets through, one history after the other.
struct Gru {
  int64_t rows, steps, width;  // B, T, H
  const uint8_t* mask;         // (B, T)
  const float* inputs;         // (N, 3 H): update, reset, candidate
  const float* state_weight;   // (3 H, H)
  const float* weights;        // (N) of the update, or null
  float* states;               // (N, H): after each event
  float* saved;                // (N, 4 H): update, reset, candidate, W h of the candidate
};

struct GruGrad {
  const float* grad_states;  // (N, H)
  float* grad_inputs;        // (N, 3 H)
  float* grad_products;      // (N, 3 H): by W h
  float* grad_weights;       // (N), or null
};

// Histories of one part: the longest first.
struct GruPart {
  const int64_t* order;   // row of each
  const int64_t* firsts;  // first event of each row, (B + 1)
  int64_t count;
  const float* panels;  // state_weight, packed for this direction
  float* room;          // gru_room() floats
};

int64_t gru_room(int64_t width);

WIDEDEEP_DECLARE_ISA(void gru_part(const Gru& request, const GruPart& part);
                     void gru_grad_part(const Gru& request, const GruGrad& grad,
                                        const GruPart& part);)

void gru(const Gru& request, int threads);
void gru_grad(const Gru& request, const GruGrad& grad, int threads);

}  // namespace widedeep
