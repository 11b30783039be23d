// A program with hold of the constants that it reads from.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bind_score.hpp"
#include "score_program.hpp"

namespace widedeep {

class BoundProgram {
 public:
  using View = std::tuple<std::int64_t, std::int64_t, std::vector<std::int64_t>>;
  using Segment = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
  using Dims = std::vector<std::int64_t>;

  explicit BoundProgram(const std::array<std::int64_t, kStages>& input_sizes)
      : program_(input_sizes) {}

  const ScoreProgram& program() const noexcept { return program_; }

  std::int64_t add_constant(Array<float, 1> values);
  std::int64_t add_map(int stage, const std::string& function, const Dims& dims,
                       const std::vector<View>& inputs, float first, float second);
  std::int64_t add_reduce(int stage, const std::string& function, const Dims& dims,
                          const View& input);
  std::int64_t add_top(int stage, std::int64_t count, const Dims& dims, const View& input);
  std::int64_t add_matmul(int stage, const Dims& dims, const View& left, const View& right);
  std::int64_t add_linear(int stage, std::int64_t input, const Array<float, 2>& weight,
                          const std::optional<Array<float, 1>>& bias,
                          const std::string& activation);
  std::int64_t add_gather(int stage, const std::vector<Segment>& segments);
  void finish(std::int64_t output) { program_.finish(output); }

 private:
  ScoreProgram program_;
  std::vector<Array<float, 1>> held_;
};

}  // namespace widedeep
