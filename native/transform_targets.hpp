// Labels, weights and groups: the columns that training and evaluation read beside the features.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "transform_parts.hpp"
#include "vocabulary.hpp"

namespace widedeep::transform {

// The classes of a label in order; they are text, and a number is looked up by its own text.
class LabelClasses {
 public:
  explicit LabelClasses(std::vector<std::string> names);
  LabelClasses(const LabelClasses&) = delete;
  LabelClasses& operator=(const LabelClasses&) = delete;

  // The class of each row, -1 for none of them.
  void find_rows(const Column& column, std::int64_t row_begin, std::int64_t n, Scratch& scratch,
                 std::int64_t* places) const;
  // "'<=50K', '>50K'", cut where there are many.
  std::string shown() const;
  std::size_t size() const { return names_.size(); }

 private:
  void find_all(const Scalars& values, std::int64_t begin, std::int64_t n, Scratch& scratch,
                std::int64_t* places) const;

  std::vector<std::string> names_;
  std::vector<std::int64_t> offsets_;
  std::string bytes_;
  std::unique_ptr<TextVocabulary> lookup_;
};

struct Label {
  std::string column_name;
  int column = -1;
  std::unique_ptr<LabelClasses> classes;  // null for a number
  bool nullable = false;                  // a null is NaN: no label for this head
  bool several = false;                   // lists of classes: 0 or 1 for each class
  bool is_weight = false;                 // the weight of a head, at least 0

  // Floats that a row has.
  std::int64_t width() const { return several ? static_cast<std::int64_t>(classes->size()) : 1; }

  void encode(const Column& column, std::int64_t row_begin, std::int64_t row_end,
              const Where& where, Scratch& scratch, float* out, std::int64_t stride) const;

 private:
  void encode_classes(const Column& column, std::int64_t row_begin, std::int64_t row_end,
                      const Where& where, Scratch& scratch, float* out, std::int64_t stride) const;
  void encode_lists(const Column& column, std::int64_t row_begin, std::int64_t row_end,
                    const Where& where, Scratch& scratch, float* out, std::int64_t stride) const;
};

// Scalar i as the text of a class: text as it is, "true" and "false", whole numbers without a
// decimal point, other numbers in their shortest form. Nothing for null and NaN.
std::optional<std::string> class_text(const Scalars& values, std::int64_t i);

void encode_weights(const Column& column, const std::string& name, std::int64_t row_begin,
                    std::int64_t row_end, const Where& where, Scratch& scratch, float* out);

// Integers as they are, text by its Fingerprint64.
void encode_groups(const Column& column, const std::string& name, std::int64_t row_begin,
                   std::int64_t row_end, const Where& where, Scratch& scratch, std::int64_t* out);

}  // namespace widedeep::transform
