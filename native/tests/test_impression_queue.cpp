#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "blake2b.hpp"
#include "check.hpp"
#include "impression_file.hpp"
#include "impression_queue.hpp"

namespace widedeep {
namespace {

using Clock = ImpressionQueue::Clock;

// A catalogue of the integers 100 and 101 without a column, and requests with one number.
struct Log {
  std::vector<std::int64_t> ids{100, 101};
  std::vector<Column> items;
  RequestNames names{{{"age"}, {}, "user_id"}, {{}, {}}};
  RankRequestReader reader;
  std::string body;
  LogShape shape;

  Log() {
    Column column;
    column.length = 2;
    column.values.type = Physical::int64;
    column.values.data = ids.data();
    column.values.length = 2;
    items.push_back(column);
    shape.user_column = "user_id";
    shape.query_names = {"age"};
    shape.query_columns = {{LogKind::real, false}};
    shape.items = &items;
    shape.n_items = 2;
    for (auto& stream : shape.streams) stream = std::make_shared<LogStream>();
    shape.place(names.query);
  }

  bool offer(ImpressionQueue& queue, const std::string& user, Clock::time_point latest = {}) {
    body = "{\"user\":" + user + ",\"candidates\":[1,0]}";
    CHECK(reader.read(body, names));
    const std::vector<std::int64_t> positions{0, 1}, order{1, 0};
    const std::vector<double> scores{0.75, 0.5};
    return queue.offer(shape, {"r", 7, reader, positions, order, scores}, latest);
  }
};

LogOptions limited(std::size_t most_bytes, bool waits = false) {
  LogOptions options;
  options.most_bytes = most_bytes;
  options.waits = waits;
  return options;
}

constexpr const char* kUser = "{\"user_id\":3,\"age\":2}";

}  // namespace

TEST(digests_are_those_of_hashlib) {
  // hashlib.blake2b(b"abc", digest_size=8, person=b"impressions"), ...(b"abc", key=b"k" * 16)
  CHECK(blake2b_64("abc", "impressions") == 0xc3d79c8f9f081610);
  CHECK(blake2b_hex("abc", "kkkkkkkkkkkkkkkk") == "afec5971bc113d6df7d55ca0df1aba7f");
  CHECK(blake2b_hex("", "kkkkkkkkkkkkkkkk") == "a0e1c9d6d77020e6080a21e1d1e8ddf2");
}

TEST(a_full_queue_drops_and_counts) {
  Log log;
  ImpressionQueue queue(limited(1));
  CHECK(log.offer(queue, kUser));  // the one that fills it
  CHECK(log.offer(queue, kUser));
  const LogCounts counts = queue.counts();
  CHECK(counts.offered == 2 && counts.dropped == 1 && counts.dropped_rows == 2);
  const auto chunks = queue.take();
  CHECK(chunks.size() == 1 && chunks[0].requests == 1 && chunks[0].rows == 2);
  CHECK(queue.take().empty());
  CHECK(log.offer(queue, kUser) && queue.take().size() == 1);
}

TEST(who_waits_is_let_in_when_the_queue_is_taken) {
  Log log;
  ImpressionQueue queue(limited(1, true));
  const auto soon = Clock::now() + std::chrono::milliseconds(20);
  CHECK(log.offer(queue, kUser, soon));
  CHECK(log.offer(queue, kUser, soon));  // in vain
  CHECK(Clock::now() >= soon && queue.counts().dropped == 1);
  std::thread taker([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    queue.take();
  });
  CHECK(log.offer(queue, kUser, Clock::now() + std::chrono::seconds(60)));
  taker.join();
  CHECK(queue.counts().dropped == 1 && queue.take().size() == 1);
  queue.close();
  CHECK(log.offer(queue, kUser, Clock::now() + std::chrono::seconds(60)));
  CHECK(queue.counts().dropped == 2);
}

TEST(who_comes_after_one_that_waited_in_vain_does_not_wait) {
  Log log;
  LogOptions options = limited(1, true);
  options.stuck = std::chrono::milliseconds(10);
  ImpressionQueue queue(options);
  const auto in = [](int ms) { return Clock::now() + std::chrono::milliseconds(ms); };
  CHECK(log.offer(queue, kUser, in(0)));
  const auto start = Clock::now();
  CHECK(log.offer(queue, kUser, in(1)));   // too short to tell
  CHECK(log.offer(queue, kUser, in(20)));  // in vain
  CHECK(log.offer(queue, kUser, in(60'000)));
  CHECK(Clock::now() - start < std::chrono::seconds(30) && queue.counts().dropped == 3);
  CHECK(queue.take().size() == 1 && log.offer(queue, kUser, in(0)));
  std::thread taker([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    queue.take();
  });
  CHECK(log.offer(queue, kUser, in(60'000)));
  taker.join();
  CHECK(queue.counts().dropped == 3);
}

TEST(what_needs_a_conversion_is_left_to_python) {
  Log log;
  ImpressionQueue queue(limited(1 << 20));
  CHECK(!log.offer(queue, "{\"user_id\":3,\"age\":\"2\"}"));
  CHECK(!log.offer(queue, "{\"user_id\":1.5}"));
  CHECK(!log.offer(queue, "{\"user_id\":[3]}") && !log.offer(queue, "{\"user_id\":[]}"));
  CHECK(queue.counts().offered == 0);
  CHECK(log.offer(queue, "{\"user_id\":true}"));
  CHECK(log.offer(queue, "{\"age\":2}"));
  CHECK(queue.counts().without_user == 2 && queue.take().empty());
}

TEST(a_chunk_is_closed_when_it_is_large) {
  Log log;
  LogOptions options = limited(1 << 20);
  options.chunk_bytes = 100;
  ImpressionQueue queue(options);
  for (int i = 0; i < 5; ++i) CHECK(log.offer(queue, kUser));
  const auto chunks = queue.take();
  std::int64_t rows = 0;
  for (const auto& chunk : chunks) {
    ImpressionFile file({{{"r"}, LogSource::request_id, {}},
                         {{"u", parquet::Physical::int64}, LogSource::user_id, {}},
                         {{"i", parquet::Physical::int64}, LogSource::item_id, {}},
                         {{"age", parquet::Physical::real}, LogSource::query, {}}},
                        "");
    CHECK(chunk.rows == 2 * chunk.requests && file.add(chunk.bytes) && file.rows() == chunk.rows);
    rows += chunk.rows;
  }
  CHECK(chunks.size() > 1 && rows == 10 && queue.take().empty());
}

TEST(chunks_are_read_alone) {
  Log log;
  ImpressionQueue queue(limited(1 << 20));
  for (int i = 0; i < 3; ++i) {
    CHECK(log.offer(queue, kUser) && log.offer(queue, "{\"user_id\":\"x\",\"age\":null}"));
    const auto chunks = queue.take();
    CHECK(chunks.size() == 2);
    for (int kind = 0; kind < 2; ++kind) {
      const auto user = kind == 0 ? parquet::Physical::int64 : parquet::Physical::text;
      ImpressionFile file({{{"r"}, LogSource::request_id, {}},
                           {{"u", user}, LogSource::user_id, {}},
                           {{"i", parquet::Physical::int64}, LogSource::item_id, {}},
                           {{"age", parquet::Physical::real}, LogSource::query, {}}},
                          "");
      CHECK(file.add(chunks[static_cast<std::size_t>(kind)].bytes) && file.rows() == 2);
    }
  }
}

}  // namespace widedeep
