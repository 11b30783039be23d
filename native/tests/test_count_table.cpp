#include <map>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "count_table.hpp"

using widedeep::CountedKeys;
using widedeep::CountTable;

namespace {

// Keys of lengths 0 to 40 in exactly as many bytes, so that a read beyond one is seen.
struct Keys {
  std::vector<std::uint8_t> data;
  std::vector<std::int64_t> offsets{0};

  void push(const std::string& key) {
    data.insert(data.end(), key.begin(), key.end());
    offsets.push_back(static_cast<std::int64_t>(data.size()));
  }
  CountedKeys counted() const { return {data.data(), offsets.data(), nullptr, offsets.size() - 1}; }
};

std::string key_of(int number) {
  return std::string(static_cast<std::size_t>(number % 37), 'x') + std::to_string(number % 1000);
}

std::map<std::string, std::int64_t> content(const CountTable& table, unsigned bits) {
  std::vector<std::uint32_t> order(table.size());
  std::vector<std::int64_t> starts((std::size_t{1} << bits) + 1);
  table.partition(0, bits, order.data(), starts.data());
  CHECK(starts.back() == static_cast<std::int64_t>(table.size()));
  std::vector<std::uint8_t> data(table.key_bytes(order.data(), order.size()));
  std::vector<std::int64_t> offsets(order.size() + 1);
  std::vector<std::int64_t> counts(order.size());
  table.take(order.data(), order.size(), data.data(), offsets.data(), counts.data());
  std::map<std::string, std::int64_t> found;
  for (std::size_t i = 0; i < order.size(); ++i) {
    found[std::string(data.begin() + offsets[i], data.begin() + offsets[i + 1])] += counts[i];
  }
  return found;
}

}  // namespace

TEST(keys_are_counted_over_growth_and_a_spill) {
  Keys keys;
  std::map<std::string, std::int64_t> expected;
  for (int number = 0; number < 20000; ++number) {
    keys.push(key_of(number));
    ++expected[key_of(number)];
  }
  std::map<std::string, std::int64_t> found;
  for (const std::size_t limit : {std::size_t{1}, std::size_t{20000}, std::size_t{1} << 30}) {
    CountTable table(limit);
    found.clear();
    for (std::size_t first = 0; (first = table.add(keys.counted(), first)) < keys.counted().n;) {
      for (const auto& [key, count] : content(table, 5)) found[key] += count;
      table.clear();
    }
    for (const auto& [key, count] : content(table, 0)) found[key] += count;
    CHECK(found == expected);
  }
}

TEST(an_empty_key_and_an_empty_list_are_counted) {
  Keys keys;
  CountTable table(1000);
  CHECK(table.add(keys.counted(), 0) == 0);
  keys.push("");
  keys.push("");
  CHECK(table.add(keys.counted(), 0) == 2);
  CHECK(content(table, 3) == (std::map<std::string, std::int64_t>{{"", 2}}));
}

TEST(tables_of_different_threads_do_not_meet) {
  Keys keys;
  for (int number = 0; number < 5000; ++number) keys.push(key_of(number));
  CountTable tables[2] = {CountTable(1 << 20), CountTable(1 << 20)};
  std::thread other([&] { tables[0].add(keys.counted(), 0); });
  tables[1].add(keys.counted(), 0);
  other.join();
  CHECK(content(tables[0], 4) == content(tables[1], 4));
}
