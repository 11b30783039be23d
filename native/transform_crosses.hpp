// Crosses of parts: the cross-product transformation (Cheng et al. 2016, equation 1).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "transform_parts.hpp"
#include "vocabulary.hpp"

namespace widedeep::transform {

// A part of a cross: which row of its cells each example reads.
struct CrossInput {
  const PartCells* cells = nullptr;
  const std::int64_t* rows = nullptr;  // one an example; null: the example's own row,
  bool repeated = false;               // or row 0 for all of them

  std::int64_t row(std::int64_t example) const noexcept {
    return rows != nullptr ? rows[example] : (repeated ? 0 : example);
  }
};

struct CrossFeature {
  std::string name;
  std::vector<int> parts;                       // in the plan's list of parts
  std::unique_ptr<TupleVocabulary> vocabulary;  // learned combinations, or null:
  std::int64_t buckets = 0;                     // hash them instead,
  std::uint64_t hash_key = 0;                   // from this number on
  std::int64_t max_combinations = 1 << 16;      // of an example

  bool hashed() const noexcept { return vocabulary == nullptr; }
  // `parts` are the cross's own parts, in its order. The last part varies fastest. Throws for an
  // example of more than max_combinations; `where` says which row the first example is.
  void encode(const std::vector<CrossInput>& parts, std::int64_t n_examples, const Where& where,
              Scratch& scratch, Cells& out) const;
  // How many ids that gives, without a limit, at most the largest int64.
  std::int64_t count(const std::vector<CrossInput>& parts, std::int64_t n_examples) const;

 private:
  using Columns = std::vector<const Cells*>;

  Columns columns(const std::vector<CrossInput>& parts) const;
  bool encode_single(const std::vector<CrossInput>& parts, std::int64_t n_examples,
                     Cells& out) const;
  void append_row(const std::vector<CrossInput>& parts, const Columns& cells, std::int64_t example,
                  Scratch& scratch, Cells& out) const;
  void find_tuples(Scratch& scratch, Cells& out) const;
  [[noreturn]] void throw_too_many(const std::vector<CrossInput>& parts, const Columns& cells,
                                   std::int64_t example, const Where& where) const;
};

}  // namespace widedeep::transform
