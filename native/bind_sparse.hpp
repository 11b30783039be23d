// A batch and the slots of a table as Python makes them: checked once.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind_arrays.hpp"
#include "sparse.hpp"

namespace widedeep {

constexpr std::int64_t kMostCells = std::int64_t{1} << 31;  // groups number them in 32 bits

template <class T>
std::string listed(const std::vector<T>& numbers) {
  std::string text = "[";
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(numbers[i]);
  }
  return text + "]";
}

struct BoundBatch {
  Input ids, offsets;
  std::optional<Input> values;
  CsrBatch csr;

  BoundBatch(Input ids_N, Input offsets_BF, std::optional<Input> values_N, std::int64_t n_features)
      : ids(std::move(ids_N)), offsets(std::move(offsets_BF)), values(std::move(values_N)) {
    const auto* const id = vector_data<std::int64_t>("ids_N", ids);
    const auto* const offset = vector_data<std::int64_t>("offsets_BF", offsets);
    const std::int64_t n_ids = length(ids), n_cells = length(offsets) - 1;
    if (n_features < 1 || n_cells < 0 || n_cells % n_features != 0) {
      refuse("offsets_BF: got length " + std::to_string(n_cells + 1) + " for " +
             std::to_string(n_features) + " features, expected examples * features + 1");
    }
    if (n_ids >= kMostCells || n_cells + 1 >= kMostCells) {
      refuse("ids_N: got " + std::to_string(n_ids) + " ids in " + std::to_string(n_cells) +
             " cells, expected fewer than 2**31 of each; use smaller batches");
    }
    csr = {id,
           offset,
           vector_data<float>("values_N", values, n_ids),
           n_ids,
           n_cells / n_features,
           n_features};
  }

  std::int64_t n_cells() const { return csr.n_examples * csr.n_features; }
};

// The features that take part in a table, and where each lies.
struct BoundSlots {
  std::int64_t n_features;
  std::vector<std::int32_t> features, tables;          // by slot
  std::vector<std::int64_t> bases, sizes, columns;     // by slot
  std::vector<std::int8_t> combiners;                  // by slot
  std::vector<std::int64_t> table_bases, table_sizes;  // by logical table
  std::vector<std::int64_t> column_of_feature;
  std::int64_t n_rows = 0;  // what the tables need
  std::int64_t last_column = 0;
  bool sums_only = true;

  BoundSlots(std::int64_t n, std::vector<std::int32_t> slots, std::vector<std::int32_t> table_of,
             std::vector<std::int64_t> first_rows, std::vector<std::int64_t> row_counts,
             const std::vector<std::string>& combiner_names,
             std::vector<std::int64_t> first_columns)
      : n_features(n),
        features(std::move(slots)),
        tables(std::move(table_of)),
        columns(std::move(first_columns)),
        table_bases(std::move(first_rows)),
        table_sizes(std::move(row_counts)),
        column_of_feature(static_cast<std::size_t>(std::max<std::int64_t>(n, 0)), 0) {
    if (columns.empty()) columns.assign(features.size(), 0);
    check_lengths(combiner_names);
    check_features();
    for (const std::string& name : combiner_names) {
      combiners.push_back(static_cast<std::int8_t>(named("combiners", kCombiners, name)));
      sums_only = sums_only && combiners.back() == kSum;
    }
    for (std::size_t s = 0; s < features.size(); ++s) {
      const auto table = static_cast<std::size_t>(tables[s]);
      bases.push_back(table_bases[table]);
      sizes.push_back(table_sizes[table]);
      n_rows = std::max(n_rows, bases[s] + sizes[s]);
      last_column = std::max(last_column, columns[s]);
      column_of_feature[static_cast<std::size_t>(features[s])] = columns[s];
    }
  }

  std::int64_t n() const { return static_cast<std::int64_t>(features.size()); }

  SlotList list() const {
    return {features.data(), bases.data(), sizes.data(), combiners.data(), columns.data(), n()};
  }

  SlotTables slot_tables() const {
    return {features.data(),    tables.data(),      n(),
            table_bases.data(), table_sizes.data(), static_cast<std::int64_t>(table_bases.size())};
  }

  // Raises ValueError unless the batch, the weights and the columns of a buffer fit the slots.
  void check(const BoundBatch& batch, std::int64_t rows, std::int64_t width,
             std::int64_t buffer_width) const {
    check_batch(batch);
    if (n_rows > rows) {
      refuse("weights: got " + std::to_string(rows) + " rows, but the slots' tables end at row " +
             std::to_string(n_rows));
    }
    check_columns(width, buffer_width);
  }

  void check_batch(const BoundBatch& batch) const {
    if (batch.csr.n_features != n_features) {
      refuse("batch: got " + std::to_string(batch.csr.n_features) + " features, the slots have " +
             std::to_string(n_features));
    }
  }

  void check_columns(std::int64_t width, std::int64_t buffer_width) const {
    if (n() > 0 && last_column + width > buffer_width) {
      refuse("columns: got " + listed(columns) + " for embeddings of " + std::to_string(width) +
             " in " + std::to_string(buffer_width) + " columns; every embedding must fit");
    }
  }

 private:
  void check_lengths(const std::vector<std::string>& combiner_names) const {
    if (tables.size() != features.size() || columns.size() != features.size() ||
        combiner_names.size() != features.size() || table_sizes.size() != table_bases.size()) {
      refuse("slots: got " + std::to_string(features.size()) + " features, " +
             std::to_string(tables.size()) + " tables, " + std::to_string(combiner_names.size()) +
             " combiners and " + std::to_string(columns.size()) + " columns; " +
             std::to_string(table_bases.size()) + " bases and " +
             std::to_string(table_sizes.size()) + " sizes; expected as many of each");
    }
  }

  void check_features() const {
    for (std::size_t s = 0; s < features.size(); ++s) {
      if (features[s] < (s == 0 ? 0 : features[s - 1] + 1) || features[s] >= n_features) {
        refuse("features: got " + listed(features) + ", expected ascending numbers in [0, " +
               std::to_string(n_features) + ")");
      }
      if (tables[s] < 0 || tables[s] >= static_cast<std::int64_t>(table_bases.size())) {
        refuse("tables: got " + listed(tables) + ", expected numbers in [0, " +
               std::to_string(table_bases.size()) + ")");
      }
      if (columns[s] < 0) refuse("columns: got " + listed(columns) + ", expected >= 0");
    }
    for (std::size_t t = 0; t < table_bases.size(); ++t) {
      if (table_bases[t] < 0 || table_sizes[t] < 0) {
        refuse("bases: got " + listed(table_bases) + ", sizes " + listed(table_sizes) +
               ", expected >= 0");
      }
    }
  }
};

}  // namespace widedeep
