// Answered requests on their way to the impression log: as bytes, without a Python object, in
// chunks that can each be read alone.
//
// A chunk holds items, each once, and requests, whose rows name the items by their number in the
// chunk. Little-endian, in this order:
//   'i'  length (4)  bytes: the item's id, its values by column
//   'r'  length (4)  bytes: microseconds (8), request id, user id, number of rows (4), items (4
//                    each), scores (8 each), the request's values by column
// A value is a 0 (null), or a 1 and its bytes: text as length (4) and bytes, else the number. A
// list is the number of its elements and one (4), or 0 (null), and the elements. Ids are never
// null, and have no 1 before them.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "column.hpp"
#include "rank_request.hpp"

namespace widedeep {

enum class LogKind : std::uint8_t { text, integer, real, real32, boolean };

struct LogColumn {
  LogKind kind = LogKind::text;
  bool is_list = false;
};

// Rows of one set of columns that wait to be written: users' ids are all text or all integers.
struct LogStream {
  std::string header;  // what the file of these rows begins with; for who writes it
  std::string bytes;
  std::int64_t requests = 0;
  std::int64_t rows = 0;
  std::uint32_t items = 0;
  std::vector<std::uint32_t> chunk_of_item;  // by row of the catalogue
  std::vector<std::uint32_t> number_of_item;
  std::uint32_t chunk = 1;
};

// What is logged of a route's requests.
struct LogShape {
  std::string user_column;
  std::vector<std::string> query_names;
  std::vector<LogColumn> query_columns;
  std::vector<LogColumn> item_columns;
  const std::vector<Column>* items = nullptr;  // the ids, and then the columns; another's
  std::int64_t n_items = 0;
  std::shared_ptr<LogStream> streams[2];  // of users whose id is an integer, or text

  // Finds the columns among those that a request's reader knows.
  void place(const SideNames& names);
  int user_cell = -1;
  std::vector<int> query_cells;
};

struct LogOptions {
  double sample = 1;     // share of the requests, by their ids
  std::string hash_key;  // of the users' ids; empty: as they are
  std::size_t most_bytes = 32u << 20;
  std::size_t chunk_bytes = 1u << 20;  // a chunk is closed when it has them
  bool waits = false;                  // for room, instead of dropping
  // Who has waited for so long in vain is not alone: until the queue is taken, no other waits.
  std::chrono::steady_clock::duration stuck = std::chrono::seconds(1);
};

struct LogCounts {
  std::int64_t offered = 0;
  std::int64_t left_out = 0;
  std::int64_t without_user = 0;
  std::int64_t dropped = 0;
  std::int64_t dropped_rows = 0;
};

// A request that has been ranked; `positions` are those of the candidates in the catalogue.
struct LoggedAnswer {
  std::string_view id;
  std::int64_t time_us = 0;
  const RankRequestReader& reader;
  const std::vector<std::int64_t>& positions;
  const std::vector<std::int64_t>& order;
  const std::vector<double>& scores;
};

class ImpressionQueue {
 public:
  using Clock = std::chrono::steady_clock;

  explicit ImpressionQueue(LogOptions options) : options_(std::move(options)) {}

  // False if Python must log the request: a value has not the form of its column. Else it is
  // queued, or counted as left out or dropped. Any thread; waits for room until `latest`.
  bool offer(const LogShape& shape, const LoggedAnswer& answer, Clock::time_point latest);

  bool waits() const noexcept { return options_.waits; }

  struct Chunk {
    std::string header;
    std::string bytes;
    std::int64_t requests;
    std::int64_t rows;
  };
  std::vector<Chunk> take();
  LogCounts counts() const;
  // Nobody takes any more: what is offered is dropped.
  void close();

 private:
  bool is_sampled(std::string_view id) const;
  void close_chunk(LogStream& stream);

  const LogOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable room_;
  bool closed_ = false;
  bool is_stuck_ = false;
  std::size_t bytes_ = 0;
  std::vector<Chunk> closed_chunks_;
  std::vector<std::shared_ptr<LogStream>> waiting_;  // streams that hold bytes
  LogCounts counts_;
};

}  // namespace widedeep
