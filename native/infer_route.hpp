// A version that answers requests for scores by the Open Inference Protocol: what Bundle.score
// computes, the same bits, without Python.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "infer_request.hpp"
#include "score.hpp"
#include "score_curve.hpp"
#include "transform.hpp"

namespace widedeep {

struct InferOptions {
  const transform::Program* program = nullptr;
  const Scorer* scorer = nullptr;
  const float* bias = nullptr;       // n_classes
  std::vector<int> columns;          // of the plan
  std::vector<bool> is_nested;       // of each column
  std::vector<std::string> outputs;  // names
  std::vector<ScoreCurve> curves;    // of each output
  std::string model;
  std::string version;
  int threads = 1;
};

// What one thread scores with.
struct InferRoom {
  InferRequestReader reader;
  std::vector<float> logits;
  std::vector<float> deep;
  std::vector<std::vector<double>> scores;  // of each output's rows
};

class InferRoute {
 public:
  explicit InferRoute(InferOptions options);

  const InferNames& names() const noexcept { return names_; }
  // Scores what `room.reader` holds. False if the full server must: a value does not fit.
  bool score(InferRoom& room) const;
  // The JSON of the answer, and the bytes that follow it.
  void write(const InferRoom& room, std::string& json, std::string& bytes) const;

 private:
  InferOptions options_;
  InferNames names_;
  std::string head_;
  std::vector<std::string> output_heads_;
};

}  // namespace widedeep
