#include <string.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <vector>

#include "sparse.hpp"
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
  std::vector<int32_t> cursor;
};

template <class T>
T* at_least(std::vector<T>& buffer, int64_t n) {
  if (static_cast<int64_t>(buffer.size()) < n) buffer.resize(static_cast<size_t>(n));
  return buffer.data();
}

// The three ways to find the number of an id seen before. Each returns `next` for a new id.

// A small table: one entry an id.
class DirectIndex {
 public:
  DirectIndex(Scratch& scratch, int64_t size) : entry_(at_least(scratch.direct, size)) {
    memset(entry_, 0, static_cast<size_t>(size) * sizeof(int32_t));
  }
  int32_t find_or_add(int64_t id, int32_t next) {
    int32_t& entry = entry_[id];
    if (entry == 0) entry = next + 1;
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
      : mask_(hash_capacity(count) - 1),
        shift_(64 - std::bit_width(static_cast<uint64_t>(mask_))),
        entry_(at_least(scratch.hash, mask_ + 1)) {
    memset(entry_, 0, static_cast<size_t>(mask_ + 1) * sizeof(uint64_t));
  }
  int32_t find_or_add(int64_t id, int32_t next) {
    const uint64_t key = static_cast<uint64_t>(id + 1);
    for (uint64_t i = scatter_bits(id) >> shift_;; i = (i + 1) & static_cast<uint64_t>(mask_)) {
      const uint64_t entry = entry_[i];
      if (entry >> 32 == key) return static_cast<int32_t>(entry);
      if (entry == 0) {
        entry_[i] = key << 32 | static_cast<uint32_t>(next);
        return next;
      }
    }
  }

 private:
  int64_t mask_;
  int shift_;
  uint64_t* entry_;
};

// Any id: the ids lie beside the numbers.
class WideIndex {
 public:
  WideIndex(Scratch& scratch, int64_t count)
      : mask_(hash_capacity(count) - 1),
        shift_(64 - std::bit_width(static_cast<uint64_t>(mask_))),
        entry_(at_least(scratch.hash, mask_ + 1)),
        ids_(at_least(scratch.hash_ids, mask_ + 1)) {
    memset(entry_, 0, static_cast<size_t>(mask_ + 1) * sizeof(uint64_t));
  }
  int32_t find_or_add(int64_t id, int32_t next) {
    for (uint64_t i = scatter_bits(id) >> shift_;; i = (i + 1) & static_cast<uint64_t>(mask_)) {
      if (entry_[i] == 0) {
        entry_[i] = static_cast<uint64_t>(next) + 1;
        ids_[i] = id;
        return next;
      }
      if (ids_[i] == id) return static_cast<int32_t>(entry_[i] - 1);
    }
  }

 private:
  int64_t mask_;
  int shift_;
  uint64_t* entry_;
  int64_t* ids_;
};

// The slots of one logical table and where its results go.
struct TableJob {
  std::vector<int32_t> features;
  int64_t n_occurrences = 0;
  int64_t first = 0;  // of its occurrences in order and cells, and of its region in rows and starts
  int64_t n_unique = 0;
  int64_t fault = kNoFault;
};

bool one_id_in_each_cell(const CsrBatch& batch, int threads) {
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

// Numbers the distinct ids of a table in order of first occurrence; notes each occurrence.
template <class Index>
void number_ids(const CsrBatch& batch, bool single, int64_t base, int64_t size, Index index,
                Scratch& scratch, int64_t* rows, TableJob& job) {
  int32_t* unique_of = at_least(scratch.unique_of, job.n_occurrences);
  int32_t* occurrence = at_least(scratch.occurrence, job.n_occurrences);
  int32_t* cells = at_least(scratch.cell, job.n_occurrences);
  int32_t* counts = at_least(scratch.cursor, job.n_occurrences + 1);
  int32_t n_unique = 0;
  int64_t k = 0;
  for (int64_t b = 0; b < batch.n_examples; ++b) {
    for (const int32_t feature : job.features) {
      const int64_t cell = b * batch.n_features + feature;
      const int64_t begin = single ? cell : batch.offsets[cell];
      const int64_t end = single ? cell + 1 : batch.offsets[cell + 1];
      for (int64_t n = begin; n < end; ++n, ++k) {
        const int64_t id = batch.ids[n];
        if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(size)) {
          job.fault = cell;
          return;
        }
        const int32_t u = index.find_or_add(id, n_unique);
        if (u == n_unique) {
          rows[u] = base + id;
          counts[u] = 0;
          ++n_unique;
        }
        ++counts[u];
        unique_of[k] = u;
        occurrence[k] = static_cast<int32_t>(n);
        cells[k] = static_cast<int32_t>(cell);
      }
    }
  }
  job.n_unique = n_unique;
}

// Sorts the occurrences by their number; those of one number stay in order.
void sort_occurrences(Scratch& scratch, const TableJob& job, const GroupOutput& output) {
  int32_t* cursor = scratch.cursor.data();
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
  for (int64_t k = 0; k < job.n_occurrences; ++k) {
    const int32_t place = cursor[scratch.unique_of[static_cast<size_t>(k)]]++;
    order[place] = scratch.occurrence[static_cast<size_t>(k)];
    cells[place] = scratch.cell[static_cast<size_t>(k)];
  }
}

void group_table(const GroupRequest& request, bool single, int64_t table, TableJob& job,
                 const GroupOutput& output) {
  static thread_local Scratch scratch;
  const int64_t base = request.bases[table];
  const int64_t size = request.sizes[table];
  int64_t* rows = output.rows + job.first;
  const CsrBatch& batch = request.batch;
  if (size <= 2 * hash_capacity(job.n_occurrences)) {
    number_ids(batch, single, base, size, DirectIndex(scratch, size), scratch, rows, job);
  } else if (size < int64_t{0xFFFFFFFF}) {
    number_ids(batch, single, base, size, PackedIndex(scratch, job.n_occurrences), scratch, rows,
               job);
  } else {
    number_ids(batch, single, base, size, WideIndex(scratch, job.n_occurrences), scratch, rows,
               job);
  }
  if (job.fault == kNoFault) sort_occurrences(scratch, job, output);
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

int64_t group_ids(const GroupRequest& request, const GroupOutput& output, int threads) {
  if (request.n_tables == 0) {
    output.table_starts[0] = 0;
    output.starts[0] = 0;
    return kNoFault;
  }
  std::vector<TableJob> jobs(static_cast<size_t>(request.n_tables));
  for (int64_t s = 0; s < request.n_slots; ++s) {
    jobs[static_cast<size_t>(request.tables[s])].features.push_back(request.features[s]);
  }
  const bool single = one_id_in_each_cell(request.batch, threads);
  const auto job_of = [&](int64_t table) -> TableJob& { return jobs[static_cast<size_t>(table)]; };
  if (single) {
    for (TableJob& job : jobs) count_occurrences(request.batch, single, job);
  } else {
    for_each_table(request.n_tables, threads,
                   [&](int64_t table) { count_occurrences(request.batch, single, job_of(table)); });
  }
  if (const int64_t fault = first_fault(jobs); fault != kNoFault) return fault;
  int64_t first = 0;
  for (TableJob& job : jobs) {
    job.first = first;
    first += job.n_occurrences;
  }
  if (first > request.batch.n_ids) return 0;  // overlapping cells: offsets that go back somewhere
  for_each_table(request.n_tables, threads, [&](int64_t table) {
    group_table(request, single, table, job_of(table), output);
  });
  if (const int64_t fault = first_fault(jobs); fault != kNoFault) return fault;
  close_gaps(jobs, output);
  return single ? kSingle : kNoFault;
}

}  // namespace widedeep
