// Arrays of Python as the kernels' pointers. What a function takes is checked here, once: messages
// name the array, what was got, what is expected and what to do.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arrow_abi.hpp"
#include "sparse.hpp"

namespace widedeep {

// A contiguous array of T, of which nanobind refuses others.
template <class T, int Dims>
using Array =
    nanobind::ndarray<const T, nanobind::ndim<Dims>, nanobind::c_contig, nanobind::device::cpu>;

using Input = nanobind::ndarray<nanobind::numpy, nanobind::ro, nanobind::device::cpu>;
using Output = nanobind::ndarray<nanobind::numpy, nanobind::device::cpu>;

[[noreturn]] inline void refuse(const std::string& message) {
  throw nanobind::value_error(message.c_str());
}

inline void expect(bool condition, const char* message) {
  if (!condition) throw nanobind::value_error(message);
}

// The place of a name among those that are known.
template <std::size_t N>
int named(const std::array<const char*, N>& names, const std::string& name) {
  for (std::size_t i = 0; i < N; ++i) {
    if (name == names[i]) return static_cast<int>(i);
  }
  refuse("got '" + name + "', which is not known here");
}

// The place of a name among those that are allowed for `what`.
template <std::size_t N>
int named(const char* what, const std::array<const char*, N>& names, const std::string& name) {
  std::string allowed = N > 4 ? "one of " : "";
  for (std::size_t i = 0; i < N; ++i) {
    if (name == names[i]) return static_cast<int>(i);
    allowed += (i == 0 ? "" : i + 1 == N ? " or " : ", ") + std::string(names[i]);
  }
  refuse(std::string(what) + ": got " + name + ", expected " + allowed);
}

// As the codes of sparse.hpp.
inline constexpr std::array<const char*, 4> kCombiners = {"sum", "mean", "sqrtn", "max"};

// What a capsule points to.
template <class T>
T& of_capsule(nanobind::handle capsule, const char* name) {
  auto* const pointer = static_cast<T*>(PyCapsule_GetPointer(capsule.ptr(), name));
  if (pointer == nullptr) throw nanobind::python_error();
  return *pointer;
}

// A pair of capsules of the Arrow C data interface.
struct ArrowCapsules {
  explicit ArrowCapsules(nanobind::handle pair)
      : schema(of_capsule<const ArrowSchema>(nanobind::borrow(pair[0]), "arrow_schema")),
        array(of_capsule<ArrowArray>(nanobind::borrow(pair[1]), "arrow_array")) {}

  const ArrowSchema& schema;
  ArrowArray& array;
};

std::string dtype_name(nanobind::dlpack::dtype type);

// "int32 of shape (3,)"
template <class Array>
std::string described(const Array& array) {
  std::string shape = "(";
  for (std::size_t axis = 0; axis < array.ndim(); ++axis) {
    shape += (axis > 0 ? ", " : "") + std::to_string(array.shape(axis));
  }
  return dtype_name(array.dtype()) + " of shape " + shape + (array.ndim() == 1 ? ",)" : ")");
}

template <class Array>
std::int64_t length(const Array& array) {
  return static_cast<std::int64_t>(array.shape(0));
}

// The data of a contiguous vector of T; a length of -1 allows any.
template <class T, class Array>
auto vector_data(const char* name, const Array& array, std::int64_t expected = -1) {
  if (array.ndim() != 1 || array.dtype() != nanobind::dtype<T>()) {
    refuse(std::string(name) + ": got " + described(array) + ", expected a vector of " +
           dtype_name(nanobind::dtype<T>()));
  }
  if (length(array) > 1 && array.stride(0) != 1) {
    refuse(std::string(name) + ": not contiguous; pass np.ascontiguousarray(" + name + ")");
  }
  if (expected >= 0 && length(array) != expected) {
    refuse(std::string(name) + ": got length " + std::to_string(length(array)) + ", expected " +
           std::to_string(expected));
  }
  if constexpr (std::is_same_v<Array, Input>) {
    return static_cast<const T*>(array.data());
  } else {
    return static_cast<T*>(array.data());
  }
}

template <class T>
const T* vector_data(const char* name, const std::optional<Input>& array, std::int64_t expected) {
  return array ? vector_data<T>(name, *array, expected) : nullptr;
}

// Rows of a matrix of T, each contiguous; -1 allows any number of rows, or any width.
template <class T = float, class Array>
void check_matrix(const char* name, const Array& array, std::int64_t rows = -1,
                  std::int64_t width = -1) {
  if (array.ndim() != 2 || array.dtype() != nanobind::dtype<T>()) {
    refuse(std::string(name) + ": got " + described(array) + ", expected a matrix of " +
           dtype_name(nanobind::dtype<T>()));
  }
  if (array.size() > 0 && ((array.shape(1) > 1 && array.stride(1) != 1) || array.stride(0) < 0)) {
    refuse(std::string(name) + ": rows are not contiguous; pass np.ascontiguousarray(" + name +
           ")");
  }
  if (rows >= 0 && length(array) != rows) {
    refuse(std::string(name) + ": got " + std::to_string(length(array)) + " rows, expected " +
           std::to_string(rows));
  }
  if (width >= 0 && static_cast<std::int64_t>(array.shape(1)) != width) {
    refuse(std::string(name) + ": got width " + std::to_string(array.shape(1)) + ", expected " +
           std::to_string(width));
  }
}

inline ConstRows matrix_rows(const char* name, const Input& array, std::int64_t rows = -1,
                             std::int64_t width = -1) {
  check_matrix(name, array, rows, width);
  return {static_cast<const float*>(array.data()), array.stride(0),
          static_cast<std::int64_t>(array.shape(1))};
}

inline Rows matrix_rows(const char* name, const Output& array, std::int64_t rows = -1,
                        std::int64_t width = -1) {
  check_matrix(name, array, rows, width);
  return {static_cast<float*>(array.data()), array.stride(0),
          static_cast<std::int64_t>(array.shape(1))};
}

// Whether a matrix holds bfloat16, as its bits.
template <class Array>
bool is_half(const Array& array) {
  return array.dtype() == nanobind::dtype<std::uint16_t>();
}

// Raises ValueError unless every number lies in [0, size).
void check_positions(const char* name, const std::int64_t* positions, std::int64_t n,
                     std::int64_t size, const char* what);

// A new NumPy array that owns what the vector or block held.
template <class T, class... Shape>
nanobind::ndarray<nanobind::numpy, T> new_array(std::unique_ptr<T[]> data, Shape... shape) {
  T* const first = data.release();
  nanobind::capsule owner(first, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nanobind::ndarray<nanobind::numpy, T>(first, {static_cast<std::size_t>(shape)...}, owner);
}

// A NumPy array of this shape, or a vector, that owns a vector.
template <class T, class... Shape>
nanobind::object to_array(std::vector<T>&& data, Shape... shape) {
  auto* const held = new std::vector<T>(std::move(data));
  nanobind::capsule owner(held, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  if constexpr (sizeof...(Shape) == 0) {
    return nanobind::cast(
        nanobind::ndarray<nanobind::numpy, T>(held->data(), {held->size()}, owner));
  } else {
    return nanobind::cast(nanobind::ndarray<nanobind::numpy, T>(held->data(), {shape...}, owner));
  }
}

}  // namespace widedeep
