// Crosses of parts: the cross-product transformation (Cheng et al. 2016, equation 1).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "transform_parts.hpp"
#include "vocabulary.hpp"

namespace widedeep::transform {

struct CrossFeature {
  std::string name;
  std::vector<int> parts;                       // in the plan's list of parts
  std::unique_ptr<TupleVocabulary> vocabulary;  // learned combinations, or null:
  std::int64_t buckets = 0;                     // hash them instead

  bool hashed() const noexcept { return vocabulary == nullptr; }
  // `parts` are the cells of the cross's own parts, in its order. The last part varies fastest.
  void encode(const std::vector<const PartCells*>& parts, std::int64_t n_rows, Scratch& scratch,
              Cells& out) const;

  // The ids of learned combinations that were packed, see TupleVocabulary; in place.
  void encode_packed(std::int64_t* packed_to_ids, std::int64_t n) const;
};

}  // namespace widedeep::transform
