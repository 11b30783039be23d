// A transform's plan as Python holds it, and the columns that some part of it reads.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "arrow_input.hpp"
#include "input_error.hpp"
#include "transform.hpp"

namespace widedeep {

// A plan and the Python arrays that its vocabularies point into.
struct OwnedPlan {
  transform::Plan plan;
  std::vector<nanobind::object> owners;
};

// Columns in the order in which they are given, by their places in the plan.
struct PlanColumns {
  const transform::Plan* plan = nullptr;
  std::vector<int> columns;

  std::vector<std::string> names() const;
  // The columns given, at their places in the plan.
  transform::InputBatch place(const std::vector<Column>& given, std::int64_t n_rows) const;
  // A pair of capsules of the Arrow C data interface, of these columns; the batch is moved out.
  ArrowBatch take(nanobind::handle pair, const Origin& origin) const;

 private:
  std::string reader_of(int column, const Origin& origin) const;
};

// Batches of Arrow, and of them the columns that are read.
struct ArrowRows {
  ArrowRows(const PlanColumns& columns, nanobind::sequence batches, const Origin& origin);

  std::vector<ArrowBatch> owned;
  std::vector<transform::InputBatch> inputs;
};

// A slot as ("part", "cross" or "number", its index in the plan's list of these).
using NamedSlots = std::vector<std::pair<std::string, int>>;
std::vector<transform::Slot> slots_named(const NamedSlots& named);

// Of a TransformProgram, which must outlive it.
const transform::Program& lent_program(nanobind::handle program);

}  // namespace widedeep
