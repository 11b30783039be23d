// From logits to the numbers that candidates are ranked by.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "score_functions.hpp"

namespace widedeep {

// How a head's logits become a score.
struct ScoreCurve {
  std::string head;                              // its name
  std::int64_t column = 0;                       // of the logits
  ScoreFunction link = ScoreFunction::identity;  // a sigmoid: of slope x logit + intercept
  bool is_lognormal = false;  // the mean of a zero-inflated log-normal, of three columns
  double slope = 1;
  double intercept = 0;
  std::int64_t through = -1;  // a column whose probability the score is multiplied by; -1: none
  // Or a curve through points, straight between them, with that slope beyond: the log odds of a
  // probability, or the score itself.
  std::vector<double> points;
  std::vector<double> values;

  double score(const float* logits) const;
};

// Arithmetic over scores of heads and numbers of items, in the order of a stack machine. What is no
// finite number anywhere within has no value: NaN.
struct ScoreFormula {
  enum class Kind : std::uint8_t {
    head,      // the score by curve `index`
    column,    // the item's number `index`
    constant,  // `value`
    add,
    subtract,
    multiply,
    divide,
    minimum,
    maximum,
    power,
    negate,
    absolute,
    root,
    exp,
    log,
    log1p,
  };
  struct Step {
    Kind kind;
    std::int64_t index;
    double value;
  };

  // Throws std::invalid_argument for steps that leave other than one number on the stack.
  void check(std::size_t n_heads, std::size_t n_columns) const;
  // `numbers` are the item's.
  double value(const std::vector<ScoreCurve>& curves, const float* logits, const double* numbers,
               std::vector<double>& stack) const;

  std::vector<Step> steps;  // empty: there is none
};

}  // namespace widedeep
