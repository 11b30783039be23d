// What the bindings of the scorers share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "score.hpp"

namespace widedeep {

template <class T, int Dims>
using Array =
    nanobind::ndarray<const T, nanobind::ndim<Dims>, nanobind::c_contig, nanobind::device::cpu>;
using Result = nanobind::ndarray<nanobind::numpy, float, nanobind::ndim<2>>;

inline constexpr std::array<const char*, 4> kCombiners = {"sum", "mean", "sqrtn", "max"};
inline constexpr std::array<const char*, 7> kActivations = {"none", "relu", "leaky_relu", "elu",
                                                            "gelu", "silu", "tanh"};

template <std::size_t N>
int named(const std::array<const char*, N>& names, const std::string& name) {
  for (std::size_t i = 0; i < N; ++i) {
    if (name == names[i]) return static_cast<int>(i);
  }
  throw nanobind::value_error(("got '" + name + "', which is not known here").c_str());
}

inline Activation activation_named(const std::string& name) {
  return static_cast<Activation>(named(kActivations, name));
}

inline void expect(bool condition, const char* message) {
  if (!condition) throw nanobind::value_error(message);
}

inline Result new_result(std::int64_t rows, std::int64_t columns) {
  float* data = new float[static_cast<std::size_t>(rows * columns)];
  nanobind::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return Result(data, {static_cast<std::size_t>(rows), static_cast<std::size_t>(columns)}, owner);
}

// A vector as a NumPy array of this shape, without a copy.
template <class T, class... Shape>
nanobind::object to_numpy(std::vector<T>&& values, Shape... shape) {
  auto* const kept = new std::vector<T>(std::move(values));
  nanobind::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  if constexpr (sizeof...(Shape) == 0) {
    return nanobind::cast(
        nanobind::ndarray<nanobind::numpy, T>(kept->data(), {kept->size()}, owner));
  } else {
    return nanobind::cast(nanobind::ndarray<nanobind::numpy, T>(kept->data(), {shape...}, owner));
  }
}

inline std::int64_t size(const Array<float, 2>& array, int axis) {
  return static_cast<std::int64_t>(array.shape(static_cast<std::size_t>(axis)));
}

inline void check_places(const Array<float, 2>& table, std::int64_t places) {
  constexpr std::int64_t kMost = std::int64_t{1} << 26;  // numbers of a padded sequence
  expect(places >= 1 && places <= kMost / (size(table, 1) + 2),
         "expected a sequence of at least one place, and not of millions");
}

// The caller keeps hold of the rows.
inline SlotTable table_of(std::int64_t slot, const Array<float, 2>& rows,
                          const std::string& combiner) {
  return {slot,
          {rows.data(), size(rows, 1), size(rows, 1)},
          size(rows, 0),
          static_cast<std::int8_t>(named(kCombiners, combiner))};
}

}  // namespace widedeep
