// The one transform: columns in, ids, offsets and dense numbers out. Training, evaluation and
// serving all run this code.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "buffer_pool.hpp"
#include "column.hpp"
#include "packed_examples.hpp"
#include "transform_crosses.hpp"
#include "transform_numbers.hpp"
#include "transform_parts.hpp"
#include "transform_targets.hpp"
#include "vocabulary.hpp"

namespace widedeep::transform {

// A feature's place in the cells of an example.
struct Slot {
  enum class Kind : std::uint8_t { part, cross, number };
  Kind kind;
  int index;  // among the plan's parts, crosses or numbers
};

// All that a schema says about turning columns into ids. Built once, then only read.
struct Plan {
  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  std::vector<std::unique_ptr<TextVocabulary>> texts;
  std::vector<std::unique_ptr<IntegerVocabulary>> integers;
  std::vector<std::string> columns;
  std::vector<std::unique_ptr<Part>> parts;
  std::vector<std::unique_ptr<CrossFeature>> crosses;
  std::vector<std::unique_ptr<NumericFeature>> numbers;
  std::vector<std::unique_ptr<Label>> labels;
  int weight_column = -1;
  int group_column = -1;
  // Of a request; more are refused. Training has no limit.
  std::int64_t max_values = std::numeric_limits<std::int64_t>::max();

  void check_values(std::int64_t n) const;
  // The place of a column in `columns`, where it is put if it is not there.
  int column_index(const std::string& name);
  // Writes and reads of dense columns start here, by number feature; the last entry is K.
  std::vector<std::int64_t> dense_starts() const;
};

// A choice of what to compute: all slots of a model, or the ids of one part.
struct Program {
  const Plan* plan = nullptr;
  std::vector<Slot> slots;
  bool dense = true;
  bool targets = false;
  bool fixed = false;  // scoring: features with a fixed value take it

  // Which columns of the plan must be given.
  std::vector<int> columns() const;
};

struct InputBatch {
  std::vector<const Column*> columns;  // by place in the plan; null where not needed
  std::int64_t n_rows = 0;
};

// An array on its way to NumPy, which frees it by pooled_free; not initialised.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t size)
      : data_(static_cast<T*>(pooled_allocate(static_cast<std::size_t>(size) * sizeof(T)))) {}
  ~Buffer() { pooled_free(data_); }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* get() const noexcept { return data_; }
  T* release() noexcept { return std::exchange(data_, nullptr); }

 private:
  T* data_ = nullptr;
};

struct Encoded {
  std::int64_t n_rows = 0;
  std::int64_t n_ids = 0;
  std::int64_t n_offsets = 0;
  std::int64_t n_dense = 0;
  std::int64_t n_labels = 0;
  bool has_values = false;
  bool has_weight = false;
  bool has_group = false;
  Buffer<std::int64_t> ids;
  Buffer<std::int64_t> offsets;
  Buffer<float> values;
  Buffer<float> dense;
  Buffer<float> labels;
  Buffer<float> weight;
  Buffer<std::int64_t> group;
};

// The result does not depend on how the rows are split into batches, nor on the number of threads;
// of several bad rows the first block of rows with one is told.
Encoded run(const Program& program, const std::vector<InputBatch>& batches, const Origin& origin,
            int threads);

// The same rows, packed as `layout` says. A block of rows is packed while the cache holds it.
struct Packed {
  ExampleLayout layout;
  std::vector<std::uint8_t> bytes;
  std::vector<std::int64_t> starts;  // n_rows + 1
  bool fits = true;                  // false if a slot's id has more bytes than its width
};
Packed run_packed(const Program& program, const std::vector<InputBatch>& batches,
                  const Origin& origin, int threads, std::vector<std::uint8_t> widths);

}  // namespace widedeep::transform
