#include <cstdint>
#include <memory>
#include <vector>

#include "check.hpp"
#include "packed_examples.hpp"

namespace {

using widedeep::ExampleArrays;
using widedeep::ExampleLayout;
using widedeep::ExampleSpan;
using widedeep::pack_examples;
using widedeep::unpack_examples;
using widedeep::UnpackedExamples;

constexpr std::int64_t kExamples = 40;
constexpr std::int64_t kSlots = 5;

// Rows of cells with up to `longest` ids, each row's bytes in memory of exactly their length.
struct Examples {
  ExampleLayout layout{{1, 2, 3, 4, 8}, 2, 1, false, true, true};
  std::vector<std::int64_t> ids{}, offsets{0}, group{};
  std::vector<float> values{}, dense{}, labels{}, weight{};
  std::vector<std::unique_ptr<std::uint8_t[]>> memory{};
  std::vector<ExampleSpan> spans{};
  std::vector<std::uint8_t> bytes{};
  std::vector<std::int64_t> starts = std::vector<std::int64_t>(kExamples + 1);

  Examples(std::uint32_t longest, bool has_values) {
    layout.has_values = has_values;
    std::uint32_t state = 1;
    const auto next = [&state] { return (state = state * 1664525U + 1013904223U) >> 8; };
    for (std::int64_t row = 0; row < kExamples; ++row) {
      for (const int width : layout.widths) {
        const std::uint32_t count = longest == 0 ? 1 : next() % (longest + 1);
        for (std::uint32_t i = 0; i < count; ++i) {
          const std::uint64_t limit = width == 8 ? ~0ULL >> 1 : (1ULL << (8 * width)) - 2;
          ids.push_back(static_cast<std::int64_t>(limit - next() % 3));
          values.push_back(static_cast<float>(next() % 7));
        }
        offsets.push_back(static_cast<std::int64_t>(ids.size()));
      }
      for (int i = 0; i < 2; ++i) dense.push_back(static_cast<float>(next()));
      labels.push_back(static_cast<float>(row % 2));
      weight.push_back(static_cast<float>(row));
      group.push_back(row / 3);
    }
    const ExampleArrays rows{
        ids.data(),    offsets.data(), values.data(), dense.data(),
        labels.data(), weight.data(),  group.data(),  static_cast<std::int64_t>(ids.size())};
    CHECK(pack_examples(layout, rows, kExamples, bytes, starts.data()) == -1);
    for (std::size_t row = 0; row < kExamples; ++row) {
      add_span(bytes.data() + starts[row], starts[row + 1] - starts[row]);
    }
  }

  void add_span(const std::uint8_t* from, std::int64_t length) {
    memory.emplace_back(new std::uint8_t[static_cast<std::size_t>(length)]);
    for (std::int64_t i = 0; i < length; ++i) memory.back()[static_cast<std::size_t>(i)] = from[i];
    spans.push_back({memory.back().get(), memory.back().get() + length});
  }
};

struct Back {
  std::vector<std::int64_t> offsets = std::vector<std::int64_t>(kExamples * kSlots + 1);
  std::vector<std::int64_t> group = std::vector<std::int64_t>(kExamples);
  std::vector<float> dense = std::vector<float>(2 * kExamples);
  std::vector<float> labels = std::vector<float>(kExamples), weight = labels;
  UnpackedExamples rows{
      offsets.data(), dense.data(), labels.data(), weight.data(), group.data(), {}, {}};
};

TEST(examples_come_back_as_they_were_packed) {
  for (const std::uint32_t longest : {0U, 1U, 9U}) {
    for (const bool has_values : {false, true}) {
      const Examples made(longest, has_values);
      Back back;
      CHECK(unpack_examples(made.layout, made.spans.data(), kExamples, back.rows) == -1);
      CHECK(back.rows.ids == made.ids);
      CHECK(back.offsets == made.offsets);
      CHECK(!has_values || back.rows.values == made.values);
      CHECK(back.dense == made.dense && back.labels == made.labels);
      CHECK(back.weight == made.weight && back.group == made.group);
    }
  }
}

// What an example says of itself may be anything; what lies behind its end is never read.
TEST(damaged_examples_are_not_read_beyond_their_end) {
  for (const bool has_values : {false, true}) {
    const Examples made(3, has_values);
    for (std::size_t row = 0; row < 12; ++row) {
      const std::int64_t length = made.starts[row + 1] - made.starts[row];
      const std::uint8_t* const from = made.bytes.data() + made.starts[row];
      for (std::int64_t cut = 0; cut < length; ++cut) {
        Examples damaged(0, has_values);
        damaged.add_span(from, cut);
        Back back;
        CHECK(unpack_examples(made.layout, &damaged.spans.back(), 1, back.rows) == 0);
      }
      for (std::int64_t place = 0; place < length; ++place) {
        std::vector<std::uint8_t> wrong(from, from + length);
        for (const int byte : {0, 1, 255}) {
          wrong[static_cast<std::size_t>(place)] = static_cast<std::uint8_t>(byte);
          Examples damaged(0, has_values);
          damaged.add_span(wrong.data(), length);
          Back back;
          unpack_examples(made.layout, &damaged.spans.back(), 1, back.rows);
        }
      }
    }
  }
}

TEST(ids_and_offsets_that_have_no_place_are_named) {
  const ExampleLayout layout{{1}, 0, 0, false, false, false};
  std::vector<std::uint8_t> bytes;
  std::vector<std::int64_t> starts(3);
  const auto packed = [&](std::vector<std::int64_t> ids, std::vector<std::int64_t> offsets) {
    const ExampleArrays rows{
        ids.data(), offsets.data(), nullptr, nullptr,
        nullptr,    nullptr,        nullptr, static_cast<std::int64_t>(ids.size())};
    bytes.clear();
    return pack_examples(layout, rows, 2, bytes, starts.data());
  };
  CHECK(packed({1, 254}, {0, 1, 2}) == -1);
  CHECK(packed({1, 255}, {0, 1, 2}) == 1);
  CHECK(packed({-1, 3}, {0, 1, 2}) == 0);
  CHECK(packed({1, 2}, {0, 3, 2}) == 0);
  CHECK(packed({1, 2}, {0, 2, 1}) == 1);
  CHECK(packed({1, 2}, {-1, 1, 2}) == 0);
  CHECK(packed({1, 2}, {0, 1, 1LL << 40}) == 1);
}

}  // namespace
