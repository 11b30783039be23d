// Which ranks own the rows that a rank asks for, and where: as Layout of ranks/layout.py says.
#pragma once

#include <stdint.h>

namespace widedeep {

constexpr int kLayoutBits = 12;  // of an id: its number among those that are dealt out together

// How the ids of T logical tables are dealt out. An id's block is id >> kLayoutBits.
struct DealtTables {
  const int16_t* owner;  // (T, block) rank of each id of a block
  const int16_t* place;  // (T, block) its row among its owner's of a block
  const int64_t* rows;   // (T, ranks) of a block
  int64_t n_tables;
  int64_t ranks;
};

// Ids in runs of one logical table each, run r of table r % n_tables.
struct IdRuns {
  const int64_t* ids;
  const int64_t* starts;  // n + 1
  int64_t n;
};

// Sorts the ids by owner, otherwise in their order. `counts` (ranks, runs) tells how many each rank
// owns of a run; `order` the numbers of the ids, `places` their rows of the owner.
void route_rows(const DealtTables& tables, const IdRuns& runs, int64_t* counts, int64_t* order,
                int64_t* places);

}  // namespace widedeep
