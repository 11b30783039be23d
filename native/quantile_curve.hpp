// Piecewise linear curves through learned boundaries.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"

namespace widedeep {

// A piecewise linear curve: a tree of ascending numbers, 16 a node, whose last level are the
// curve's boundaries and of which each other one holds the last of each node of the next; nodes are
// padded with infinity.
struct QuantileCurve {
  static constexpr int kFan = 16;
  static constexpr int kMostLevels = 8;

  struct Segment {
    double start;
    double base;  // the curve there
    double slope;
  };

  const double* levels[kMostLevels];
  int64_t last_nodes[kMostLevels];
  int n_levels;
  const Segment* segments;  // below the boundaries, between each two, above
  int64_t last_segment;
};

WIDEDEEP_DECLARE_ISA(void quantile_curve(const QuantileCurve& curve, const double* x, int64_t n,
                                         double* out))

}  // namespace widedeep
