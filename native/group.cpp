#include "group.hpp"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <vector>

#include "thread_pool.hpp"

namespace widedeep {
namespace {

// Work space of one thread, kept between steps: a steady state allocates nothing.
struct Scratch {
  std::vector<uint64_t> hash;
  std::vector<int64_t> hash_ids;
  std::vector<int32_t> direct;
  std::vector<int32_t> unique_of;
  std::vector<int32_t> occurrence;
  std::vector<int32_t> cell;
  std::vector<int32_t> counts;
};

template <class T>
T* at_least(std::vector<T>& buffer, int64_t n) {
  if (static_cast<int64_t>(buffer.size()) < n) buffer.resize(static_cast<size_t>(n));
  return buffer.data();
}

// The three ways to find the number of an id seen before. Each has
//   int32_t add(int64_t id, int32_t next): the id's number, `next` if it is new,
// by branches that can be foreseen.

// A small table: one entry an id, its number + 1.
class DirectIndex {
 public:
  DirectIndex(Scratch& scratch, int64_t size) : entry_(at_least(scratch.direct, size)) {
    memset(entry_, 0, static_cast<size_t>(size) * sizeof(int32_t));
  }
  int32_t add(int64_t id, int32_t next) {
    int32_t& entry = entry_[id];
    if (entry == 0) entry = next + 1;  // seldom: most ids of a small table come again
    return entry - 1;
  }

 private:
  int32_t* entry_;
};

int64_t hash_capacity(int64_t count) {
  return static_cast<int64_t>(
      std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(count, 8)) * 2));
}

uint64_t scatter_bits(int64_t id) { return static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15ULL; }

// Ids below 2^32 - 1: open addressing on words that hold id + 1 above the number.
class PackedIndex {
 public:
  PackedIndex(Scratch& scratch, int64_t count)
      : mask_(static_cast<uint64_t>(hash_capacity(count) - 1)),
        shift_(64 - std::bit_width(mask_)),
        entry_(at_least(scratch.hash, hash_capacity(count))) {
    memset(entry_, 0, static_cast<size_t>(mask_ + 1) * sizeof(uint64_t));
  }
  int32_t add(int64_t id, int32_t next) {
    const uint64_t key = static_cast<uint64_t>(id + 1) << 32;
    const uint64_t fresh = key | static_cast<uint32_t>(next);
    uint64_t i = scatter_bits(id) >> shift_;
    uint64_t entry = entry_[i];
    while (is_anothers(entry, key)) {
      i = (i + 1) & mask_;
      entry = entry_[i];
    }
    entry = entry == 0 ? fresh : entry;
    entry_[i] = entry;
    return static_cast<int32_t>(entry);
  }

 private:
  // One number to branch on: whether an entry is free is a coin toss, whether it is another id's
  // is not.
  static bool is_anothers(uint64_t entry, uint64_t key) {
    const uint64_t taken = 0 - static_cast<uint64_t>(entry != 0);
    return (((entry ^ key) >> 32) & taken) != 0;
  }

  uint64_t mask_;
  int shift_;
  uint64_t* entry_;
};

// Any id: the ids lie beside the numbers.
class WideIndex {
 public:
  WideIndex(Scratch& scratch, int64_t count)
      : mask_(static_cast<uint64_t>(hash_capacity(count) - 1)),
        shift_(64 - std::bit_width(mask_)),
        entry_(at_least(scratch.hash, hash_capacity(count))),
        ids_(at_least(scratch.hash_ids, hash_capacity(count))) {
    memset(entry_, 0, static_cast<size_t>(mask_ + 1) * sizeof(uint64_t));
  }
  int32_t add(int64_t id, int32_t next) {
    uint64_t i = scatter_bits(id) >> shift_;
    while (entry_[i] != 0 && ids_[i] != id) i = (i + 1) & mask_;
    if (entry_[i] == 0) {
      entry_[i] = static_cast<uint64_t>(next) + 1;
      ids_[i] = id;
    }
    return static_cast<int32_t>(entry_[i] - 1);
  }

 private:
  uint64_t mask_;
  int shift_;
  uint64_t* entry_;
  int64_t* ids_;
};

bool bad_span(const CsrBatch& batch, int64_t begin, int64_t end) {
  return begin < 0 || begin > end || end > batch.n_ids;
}

void count_occurrences(const CsrBatch& batch, bool single, TableJob& job) {
  if (single) {
    job.n_occurrences = batch.n_examples * static_cast<int64_t>(job.features.size());
    return;
  }
  for (int64_t b = 0; b < batch.n_examples; ++b) {
    for (const int32_t feature : job.features) {
      const int64_t cell = b * batch.n_features + feature;
      const int64_t begin = batch.offsets[cell];
      const int64_t end = batch.offsets[cell + 1];
      if (bad_span(batch, begin, end)) {
        job.fault = cell;
        return;
      }
      job.n_occurrences += end - begin;
    }
  }
}

// Where a table's distinct ids and the number of each occurrence are noted.
template <class Index>
struct Numbering {
  Index index;
  int64_t base;
  int64_t size;
  int64_t* rows;
  int32_t* counts;     // zeros
  int32_t* unique_of;  // by occurrence
  int32_t n_unique = 0;

  // Notes the k-th occurrence; false if the id is outside its table.
  bool add(int64_t id, int64_t k) {
    if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(size)) return false;
    const int32_t u = index.add(id, n_unique);
    rows[n_unique] = base + id;  // overwritten by the next id, unless this one is new
    n_unique += u == n_unique ? 1 : 0;
    ++counts[u];
    unique_of[k] = u;
    return true;
  }
};

// Numbers the distinct ids of a table in order of first occurrence.
template <class Index>
void number_ids(const CsrBatch& batch, bool single, Numbering<Index> numbering, Scratch& scratch,
                TableJob& job) {
  if (single && job.features.size() == 1) {
    const int64_t n_examples = batch.n_examples;
    const int64_t n_features = batch.n_features;
    const int64_t* ids = batch.ids + job.features[0];
    for (int64_t b = 0; b < n_examples; ++b) {
      if (!numbering.add(ids[b * n_features], b)) {
        job.fault = b * n_features + job.features[0];
        return;
      }
    }
    job.n_unique = numbering.n_unique;
    return;
  }
  int32_t* occurrence = at_least(scratch.occurrence, job.n_occurrences);
  int32_t* cells = at_least(scratch.cell, job.n_occurrences);
  int64_t k = 0;
  for (int64_t b = 0; b < batch.n_examples; ++b) {
    for (const int32_t feature : job.features) {
      const int64_t cell = b * batch.n_features + feature;
      for (int64_t n = batch.offsets[cell]; n < batch.offsets[cell + 1]; ++n, ++k) {
        if (!numbering.add(batch.ids[n], k)) {
          job.fault = cell;
          return;
        }
        occurrence[k] = static_cast<int32_t>(n);
        cells[k] = static_cast<int32_t>(cell);
      }
    }
  }
  job.n_unique = numbering.n_unique;
}

// Sorts the occurrences by their number; those of one number stay in order.
void sort_occurrences(const CsrBatch& batch, bool single, Scratch& scratch, const TableJob& job,
                      const GroupOutput& output) {
  int32_t* cursor = scratch.counts.data();
  const int32_t* unique_of = scratch.unique_of.data();
  int32_t* starts = output.starts + job.first;
  int32_t* order = output.order + job.first;
  int32_t* cells = output.cells + job.first;
  int32_t next = 0;
  for (int64_t u = 0; u < job.n_unique; ++u) {
    const int32_t count = cursor[u];
    starts[u] = static_cast<int32_t>(job.first) + next;
    cursor[u] = next;
    next += count;
  }
  if (single && job.features.size() == 1) {
    int32_t cell = job.features[0];
    const int64_t n = job.n_occurrences;
    const int32_t n_features = static_cast<int32_t>(batch.n_features);
    for (int64_t k = 0; k < n; ++k) {
      const int32_t place = cursor[unique_of[k]]++;
      order[place] = cell;  // in such a batch occurrence and cell are the same number
      cells[place] = cell;
      cell += n_features;
    }
    return;
  }
  for (int64_t k = 0; k < job.n_occurrences; ++k) {
    const int32_t place = cursor[unique_of[k]]++;
    order[place] = scratch.occurrence[static_cast<size_t>(k)];
    cells[place] = scratch.cell[static_cast<size_t>(k)];
  }
}

struct TableSpan {
  int64_t base;
  int64_t size;
};

void group_table(const CsrBatch& batch, bool single, const TableSpan& span, TableJob& job,
                 const GroupOutput& output) {
  static thread_local Scratch scratch;
  const int64_t n = job.n_occurrences;
  const int64_t size = span.size;
  int32_t* counts = at_least(scratch.counts, n + 1);
  memset(counts, 0, static_cast<size_t>(n + 1) * sizeof(int32_t));
  const auto number = [&]<class Index>(Index index) {
    const Numbering<Index> numbering = {
        index, span.base, size, output.rows + job.first, counts, at_least(scratch.unique_of, n)};
    number_ids(batch, single, numbering, scratch, job);
  };
  if (size <= 2 * hash_capacity(n)) {
    number(DirectIndex(scratch, size));
  } else if (size < int64_t{0xFFFFFFFF}) {
    number(PackedIndex(scratch, n));
  } else {
    number(WideIndex(scratch, n));
  }
  if (job.fault == kNoFault) sort_occurrences(batch, single, scratch, job, output);
}

int64_t first_fault(const std::vector<TableJob>& jobs) {
  int64_t first = kNoFault;
  for (const TableJob& job : jobs) {
    if (job.fault != kNoFault && (first == kNoFault || job.fault < first)) first = job.fault;
  }
  return first;
}

// Runs fn(table) for every table; a thread takes the next one when it is free.
template <class Fn>
void for_each_table(int64_t n_tables, int threads, Fn&& fn) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min<int64_t>(n_tables, threads), threads, [&](int64_t, int64_t, int) {
    for (int64_t table = next++; table < n_tables; table = next++) fn(table);
  });
}

// Closes the gaps between the tables' regions.
void close_gaps(std::vector<TableJob>& jobs, const GroupOutput& output) {
  int64_t at = 0;
  for (size_t table = 0; table < jobs.size(); ++table) {
    const TableJob& job = jobs[table];
    const size_t n = static_cast<size_t>(job.n_unique);
    output.table_starts[table] = at;
    if (at != job.first && n > 0) {
      memmove(output.rows + at, output.rows + job.first, n * sizeof(int64_t));
      memmove(output.starts + at, output.starts + job.first, n * sizeof(int32_t));
    }
    at += job.n_unique;
  }
  const TableJob& last = jobs.back();
  output.table_starts[jobs.size()] = at;
  output.starts[at] = static_cast<int32_t>(last.first + last.n_occurrences);
}

}  // namespace

bool one_id_in_each_cell(const CsrBatch& batch, int threads) {
  if (batch.single) return true;
  const int64_t cells = batch.n_examples * batch.n_features;
  if (cells != batch.n_ids) return false;
  std::atomic<bool> all{true};
  parallel_for(cells + 1, cells < (1 << 16) ? 1 : threads, [&](int64_t begin, int64_t end, int) {
    int64_t differs = 0;
    for (int64_t i = begin; i < end; ++i) differs |= batch.offsets[i] ^ i;
    if (differs != 0) all.store(false, std::memory_order_relaxed);
  });
  return all.load();
}

Grouper::Grouper(const SlotTables& tables) : tables_(tables) {
  jobs_.resize(static_cast<size_t>(tables.n_tables));
  for (int64_t s = 0; s < tables.n_slots; ++s) {
    jobs_[static_cast<size_t>(tables.tables[s])].features.push_back(tables.features[s]);
  }
  one_slot_each_ = std::all_of(jobs_.begin(), jobs_.end(),
                               [](const TableJob& job) { return job.features.size() == 1; });
}

// One example of one id a cell: every id is a row of its own.
int64_t Grouper::group_one(const CsrBatch& batch, const GroupOutput& output) const {
  for (int64_t table = 0; table < tables_.n_tables; ++table) {
    const int32_t cell = jobs_[static_cast<size_t>(table)].features[0];
    const int64_t id = batch.ids[cell];
    if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(tables_.sizes[table])) return cell;
    output.rows[table] = tables_.bases[table] + id;
    output.table_starts[table] = table;
    output.starts[table] = static_cast<int32_t>(table);
    output.order[table] = cell;
    output.cells[table] = cell;
  }
  output.table_starts[tables_.n_tables] = tables_.n_tables;
  output.starts[tables_.n_tables] = static_cast<int32_t>(tables_.n_tables);
  return kSingle;
}

int64_t Grouper::group(const CsrBatch& batch, const GroupOutput& output, int threads) {
  if (tables_.n_tables == 0) {
    output.table_starts[0] = 0;
    output.starts[0] = 0;
    return kNoFault;
  }
  const bool single = one_id_in_each_cell(batch, threads);
  if (single && batch.n_examples == 1 && one_slot_each_) return group_one(batch, output);
  const auto job_of = [&](int64_t table) -> TableJob& { return jobs_[static_cast<size_t>(table)]; };
  for (TableJob& job : jobs_) {
    job.n_occurrences = job.n_unique = 0;
    job.fault = kNoFault;
  }
  if (single) {
    for (TableJob& job : jobs_) count_occurrences(batch, single, job);
  } else {
    for_each_table(tables_.n_tables, threads,
                   [&](int64_t table) { count_occurrences(batch, single, job_of(table)); });
  }
  if (const int64_t fault = first_fault(jobs_); fault != kNoFault) return fault;
  int64_t first = 0;
  for (TableJob& job : jobs_) {
    job.first = first;
    first += job.n_occurrences;
  }
  if (first > batch.n_ids) return 0;  // overlapping cells: offsets that go back somewhere
  for_each_table(tables_.n_tables, threads, [&](int64_t table) {
    group_table(batch, single, {tables_.bases[table], tables_.sizes[table]}, job_of(table), output);
  });
  if (const int64_t fault = first_fault(jobs_); fault != kNoFault) return fault;
  close_gaps(jobs_, output);
  return single ? kSingle : kNoFault;
}

int64_t group_ids(const GroupRequest& request, const GroupOutput& output, int threads) {
  return Grouper(request.tables).group(request.batch, output, threads);
}

}  // namespace widedeep
