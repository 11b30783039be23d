#include "bind_plan.hpp"

#include "bind_arrays.hpp"

namespace nb = nanobind;

namespace widedeep {

std::vector<std::string> PlanColumns::names() const {
  std::vector<std::string> found;
  found.reserve(columns.size());
  for (const int column : columns) found.push_back(plan->columns[static_cast<std::size_t>(column)]);
  return found;
}

transform::InputBatch PlanColumns::place(const std::vector<Column>& given,
                                         std::int64_t n_rows) const {
  transform::InputBatch batch;
  batch.n_rows = n_rows;
  batch.columns.assign(plan->columns.size(), nullptr);
  for (std::size_t i = 0; i < columns.size(); ++i) {
    batch.columns[static_cast<std::size_t>(columns[i])] = &given[i];
  }
  return batch;
}

// As in "feature 'age' (column 'age' of train.parquet)", by the first feature that reads the
// column.
std::string PlanColumns::reader_of(int column, const Origin& origin) const {
  const std::string place = column_text(origin, plan->columns[static_cast<std::size_t>(column)]);
  for (const auto& number : plan->numbers) {
    if (number->column == column) return "feature " + quoted(number->name) + " (" + place + ")";
  }
  for (const auto& part : plan->parts) {
    if (part->column == column) return "feature " + quoted(part->name()) + " (" + place + ")";
  }
  return place;
}

ArrowRows::ArrowRows(const PlanColumns& columns, nb::sequence batches, const Origin& origin) {
  owned.reserve(nb::len(batches));
  for (nb::handle capsules : batches) {
    owned.push_back(columns.take(capsules, origin));
    inputs.push_back(columns.place(owned.back().columns(), owned.back().length()));
  }
}

std::vector<transform::Slot> slots_named(const NamedSlots& named) {
  std::vector<transform::Slot> slots;
  for (const auto& [kind, index] : named) {
    slots.push_back({kind == "part"    ? transform::Slot::Kind::part
                     : kind == "cross" ? transform::Slot::Kind::cross
                                       : transform::Slot::Kind::number,
                     index});
  }
  return slots;
}

ArrowBatch PlanColumns::take(nb::handle pair, const Origin& origin) const {
  const ArrowCapsules capsules(pair);
  if (capsules.array.release == nullptr) {
    throw std::invalid_argument("got an Arrow array that has been moved elsewhere already");
  }
  try {
    ArrowBatch batch(capsules.schema, capsules.array);
    if (batch.columns().size() != columns.size()) {
      throw std::invalid_argument("got " + std::to_string(batch.columns().size()) +
                                  " columns, expected " + std::to_string(columns.size()));
    }
    return batch;
  } catch (const UnsupportedArrowType& error) {
    const std::string reader =
        error.column < 0 ? "input"
                         : reader_of(columns.at(static_cast<std::size_t>(error.column)), origin);
    throw InputError(InputError::Kind::feature,
                     reader + ": got the Arrow type " + error.what() +
                         ", expected text, bytes, integers, floats, decimals, booleans, dates, "
                         "timestamps, dictionaries of these or lists of these; convert the column");
  }
}

}  // namespace widedeep
