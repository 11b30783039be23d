// What the bindings of the scorers share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind_arrays.hpp"
#include "score.hpp"

namespace widedeep {

using Result = nanobind::ndarray<nanobind::numpy, float>;

inline constexpr std::array<const char*, 7> kActivations = {"none", "relu", "leaky_relu", "elu",
                                                            "gelu", "silu", "tanh"};

inline Activation activation_named(const std::string& name) {
  return static_cast<Activation>(named(kActivations, name));
}

inline Result new_result(std::int64_t rows, std::int64_t columns) {
  std::unique_ptr<float[]> data(new float[static_cast<std::size_t>(rows * columns)]);
  return new_array(std::move(data), rows, columns);
}

inline std::int64_t size(const Array<float, 2>& array, int axis) {
  return static_cast<std::int64_t>(array.shape(static_cast<std::size_t>(axis)));
}

// A packed table, with hold of its bytes.
struct BoundPackedRows {
  Array<std::uint8_t, 2> bytes;
  PackedRows rows;
};

// A scorer's tables: it reads from where they are, so it keeps hold of them.
class HeldTables {
 public:
  SlotTable hold(std::int64_t slot, Array<float, 2> rows, const std::string& combiner) {
    const std::int64_t width = size(rows, 1);
    const SlotTable table = {slot, {rows.data(), width, width}, size(rows, 0), code_of(combiner)};
    floats_.push_back(std::move(rows));
    return table;
  }

  SlotTable hold(std::int64_t slot, const BoundPackedRows& table, const std::string& combiner) {
    bytes_.push_back(table.bytes);
    const auto size = static_cast<std::int64_t>(table.bytes.shape(0));
    return {slot, {nullptr, 0, table.rows.width}, size, code_of(combiner), table.rows};
  }

 private:
  static std::int8_t code_of(const std::string& combiner) {
    return static_cast<std::int8_t>(named(kCombiners, combiner));
  }

  std::vector<Array<float, 2>> floats_;
  std::vector<Array<std::uint8_t, 2>> bytes_;
};

// Of a Scorer, which must outlive it.
const Scorer& lent_scorer(nanobind::handle scorer);

inline void check_places(const SlotTable& table, std::int64_t places) {
  constexpr std::int64_t kMost = std::int64_t{1} << 26;  // numbers of a padded sequence
  expect(places >= 1 && places <= kMost / (table.rows.width + 2),
         "expected a sequence of at least one place, and not of millions");
}

}  // namespace widedeep
