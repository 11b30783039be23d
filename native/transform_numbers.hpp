// Numeric features: numbers in, float32 columns out.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "transform_parts.hpp"
#include "transform_scaling.hpp"

namespace widedeep::transform {

struct NumericFeature {
  std::string name;
  std::string transform;  // as declared, for messages
  std::int64_t size = 1;
  bool indicator = false;     // `size` more columns that are 1 where a number is missing
  std::vector<Curve> curves;  // one a component
  std::vector<float> fill;    // what a null becomes
  int column = -1;
  Storage storage;           // of the column
  std::vector<float> fixed;  // `width` values for every scored row, or empty
  // It has no column and counts the ids of a part or cross, `size` known ones; -1: it has one.
  int counted = -1;
  bool counts_cross = false;

  bool is_count() const noexcept { return counted >= 0; }
  std::int64_t width() const noexcept { return size * (indicator ? 2 : 1); }

  // Writes `width` values a row to out, out + stride, ...
  void encode(const Column& column, std::int64_t row_begin, std::int64_t row_end,
              const Where& where, Scratch& scratch, float* out, std::int64_t stride) const;
  // Likewise, the sums of the weights of each known id.
  void count(const Cells& cells, std::int64_t n_rows, float* out, std::int64_t stride) const;

 private:
  bool encode_component(std::int64_t j, std::int64_t n_rows, const double* numbers, float* out,
                        std::int64_t stride) const;
  [[noreturn]] void throw_too_large(const Column& column, std::int64_t row_begin,
                                    std::int64_t row_end, const Where& where, const float* out,
                                    std::int64_t stride) const;
};

struct NumberSequenceOptions {
  std::string transform;  // as declared, for messages
  Curve curve;
  // Of a longer list its last values are read, or its first.
  std::int64_t maxlen = std::numeric_limits<std::int64_t>::max();
  bool keep_first = false;
  std::string column_name;
  std::string parallel_name;  // a column whose lists have the same lengths
};

// One number per event of a list column: id 2, weighed by the number after its curve, or id 1 for a
// null.
class NumberSequencePart final : public Part {
 public:
  NumberSequencePart(std::string name, NumberSequenceOptions options)
      : Part(std::move(name)), options_(std::move(options)) {}

  std::int64_t id_limit() const noexcept override { return kFirstKnownId + 1; }
  bool has_values() const noexcept override { return true; }
  std::int64_t most_ids() const noexcept override { return options_.maxlen; }
  DictionaryTable dictionary_table(const Column&) const override { return {}; }
  void encode(const PartInput& input, std::int64_t row_begin, std::int64_t row_end,
              const Where& where, Scratch& scratch, PartCells& out) const override;

 private:
  void append_row(const PartInput& input, std::int64_t row, const Where& where, Scratch& scratch,
                  Cells& out) const;

  NumberSequenceOptions options_;
};

}  // namespace widedeep::transform
