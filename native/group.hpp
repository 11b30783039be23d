// Grouping of one batch after the other. Apart from sparse.hpp, which *_isa.cpp files include.
#pragma once

#include <vector>

#include "sparse.hpp"

namespace widedeep {

// The slots of one logical table and where its results go.
struct TableJob {
  std::vector<int32_t> features;
  int64_t n_occurrences = 0;
  int64_t first = 0;  // of its occurrences in order and cells, and of its region in rows and starts
  int64_t n_unique = 0;
  int64_t fault = kNoFault;
};

// group_ids() for one batch after the other, without new memory.
class Grouper {
 public:
  explicit Grouper(const SlotTables& tables);
  int64_t group(const CsrBatch& batch, const GroupOutput& output, int threads);

 private:
  int64_t group_one(const CsrBatch& batch, const GroupOutput& output) const;

  SlotTables tables_;
  std::vector<TableJob> jobs_{};
  bool one_slot_each_ = false;
};

}  // namespace widedeep
