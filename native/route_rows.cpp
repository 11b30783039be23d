#include "route_rows.hpp"

#include <algorithm>
#include <vector>

namespace widedeep {

void route_rows(const DealtTables& tables, const IdRuns& runs, int64_t* counts, int64_t* order,
                int64_t* places) {
  constexpr int64_t kBlock = int64_t{1} << kLayoutBits;
  const int64_t ranks = tables.ranks;
  const auto owners_of = [&](int64_t run) { return tables.owner + run % tables.n_tables * kBlock; };
  std::fill(counts, counts + ranks * runs.n, 0);
  for (int64_t run = 0; run < runs.n; ++run) {
    const int16_t* const owner = owners_of(run);
    for (int64_t i = runs.starts[run]; i < runs.starts[run + 1]; ++i) {
      ++counts[owner[runs.ids[i] & (kBlock - 1)] * runs.n + run];
    }
  }
  std::vector<int64_t> next(static_cast<std::size_t>(ranks));  // of each owner
  for (int64_t rank = 0, at = 0; rank < ranks; ++rank) {
    next[static_cast<std::size_t>(rank)] = at;
    for (int64_t run = 0; run < runs.n; ++run) at += counts[rank * runs.n + run];
  }
  for (int64_t run = 0; run < runs.n; ++run) {
    const int16_t* const owner = owners_of(run);
    const int16_t* const place = tables.place + run % tables.n_tables * kBlock;
    const int64_t* const rows = tables.rows + run % tables.n_tables * ranks;
    for (int64_t i = runs.starts[run]; i < runs.starts[run + 1]; ++i) {
      const int64_t id = runs.ids[i], within = id & (kBlock - 1);
      const int16_t rank = owner[within];
      const int64_t at = next[static_cast<std::size_t>(rank)]++;
      order[at] = i;
      places[at] = (id >> kLayoutBits) * rows[rank] + place[within];
    }
  }
}

}  // namespace widedeep
