#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"
#include "thread_pool.hpp"
#include "vocabulary.hpp"

using widedeep::IntegerVocabulary;
using widedeep::TextSpan;
using widedeep::TextVocabulary;
using widedeep::TupleVocabulary;

namespace {

struct Texts {
  std::vector<std::int64_t> offsets{0};
  std::string bytes;

  void add(const std::string& text) {
    bytes += text;
    offsets.push_back(static_cast<std::int64_t>(bytes.size()));
  }
  std::int64_t size() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
};

// Texts of every length from 0 to 300, then many short ones.
Texts some_texts() {
  Texts texts;
  for (std::size_t length = 0; length <= 300; ++length) texts.add(std::string(length, 'x'));
  for (int i = 0; i < 5000; ++i) texts.add("value" + std::to_string(i));
  return texts;
}

std::int64_t find_text(const TextVocabulary& vocabulary, const std::string& text) {
  // An allocation of its own: a sanitizer sees a read past the text.
  const std::unique_ptr<char[]> copy(new char[text.size()]);
  text.copy(copy.get(), text.size());
  const TextSpan span{copy.get(), static_cast<std::int64_t>(text.size())};
  std::int64_t position = -2;
  vocabulary.find(&span, 1, &position);
  return position;
}

template <class Make>
bool throws_invalid_argument(Make make) {
  try {
    make();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace

TEST(every_text_is_found_at_its_place_and_no_other_is) {
  const Texts texts = some_texts();
  const TextVocabulary vocabulary(texts.offsets.data(), texts.bytes.data(), texts.size());
  CHECK(vocabulary.size() == texts.size());
  for (std::int64_t i = 0; i < texts.size(); ++i) {
    const auto begin = static_cast<std::size_t>(texts.offsets[static_cast<std::size_t>(i)]);
    const auto end = static_cast<std::size_t>(texts.offsets[static_cast<std::size_t>(i) + 1]);
    CHECK(find_text(vocabulary, texts.bytes.substr(begin, end - begin)) == i);
  }
  for (const char* unseen : {"value", "value5000", "valuf1", "y"}) {
    CHECK(find_text(vocabulary, unseen) == -1);
  }
  CHECK(find_text(vocabulary, std::string(301, 'x')) == -1);
  CHECK(find_text(vocabulary, std::string(8, '\0')) == -1);
  const TextSpan none{nullptr, -1};
  std::int64_t position = -2;
  vocabulary.find(&none, 1, &position);
  CHECK(position == -1);
}

TEST(texts_that_differ_by_zero_bytes_stay_apart) {
  Texts texts;
  for (std::size_t length = 0; length < 12; ++length) texts.add(std::string(length, '\0'));
  const TextVocabulary vocabulary(texts.offsets.data(), texts.bytes.data(), texts.size());
  for (std::size_t length = 0; length < 12; ++length) {
    CHECK(find_text(vocabulary, std::string(length, '\0')) == static_cast<std::int64_t>(length));
  }
}

TEST(slots_of_another_vocabulary_are_followed_nowhere) {
  const Texts texts = some_texts();
  const TextVocabulary built(texts.offsets.data(), texts.bytes.data(), texts.size());
  std::vector<TextVocabulary::Slot> slots(built.slots().data(),
                                          built.slots().data() + built.slots().size());
  const auto mapped = [&] {
    return TextVocabulary(texts.offsets.data(), texts.bytes.data(), texts.size(), slots.data(),
                          slots.size());
  };
  CHECK(find_text(mapped(), "value7") == find_text(built, "value7"));
  CHECK(find_text(mapped(), "value5000") == -1);
  for (TextVocabulary::Slot& slot : slots) {
    const TextVocabulary::Slot good = slot;
    slot.payload = ~std::uint64_t{0};
    slot.tag |= 100;
    slot.position = static_cast<std::uint32_t>(texts.size());
    CHECK(throws_invalid_argument(mapped));
    slot = good;
  }
}

TEST(a_vocabulary_is_read_by_several_threads_at_once) {
  const Texts texts = some_texts();
  const TextVocabulary vocabulary(texts.offsets.data(), texts.bytes.data(), texts.size());
  std::vector<TextSpan> spans;
  for (std::size_t i = 0; i + 1 < texts.offsets.size(); ++i) {
    spans.push_back(
        {texts.bytes.data() + texts.offsets[i], texts.offsets[i + 1] - texts.offsets[i]});
  }
  std::vector<std::int64_t> positions(spans.size(), -2);
  widedeep::parallel_for(texts.size(), 4, [&](std::int64_t begin, std::int64_t end, int) {
    vocabulary.find(spans.data() + begin, end - begin, positions.data() + begin);
  });
  for (std::size_t i = 0; i < positions.size(); ++i) {
    CHECK(positions[i] == static_cast<std::int64_t>(i));
  }
}

TEST(integers_close_together_and_far_apart_are_found) {
  const std::int64_t smallest = INT64_MIN;
  const std::int64_t largest = INT64_MAX;
  for (const std::vector<std::int64_t>& values :
       {std::vector<std::int64_t>{5, 3, 4, 9}, std::vector<std::int64_t>{smallest, -1, 0, largest},
        std::vector<std::int64_t>{}}) {
    const auto n = static_cast<std::int64_t>(values.size());
    const IntegerVocabulary vocabulary(values.data(), n);
    std::vector<std::int64_t> asked = values;
    asked.insert(asked.end(), {6, smallest + 1, largest - 1});
    std::vector<std::int64_t> positions(asked.size(), -2);
    vocabulary.find(asked.data(), static_cast<std::int64_t>(asked.size()), positions.data());
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(asked.size()); ++i) {
      CHECK(positions[static_cast<std::size_t>(i)] == (i < n ? i : -1));
    }
  }
}

TEST(tuples_are_found_whether_or_not_they_fit_one_integer) {
  for (const std::int64_t limit : {std::int64_t{10}, std::int64_t{1} << 40}) {
    std::vector<std::int64_t> rows;
    for (std::int64_t i = 0; i < 300; ++i) {
      for (const std::int64_t id : {i % 10, i / 10 % 10, i / 100}) rows.push_back(id);
    }
    const TupleVocabulary vocabulary(rows.data(), 300, {limit, limit, limit});
    std::vector<std::int64_t> asked = rows;
    asked.insert(asked.end(), {0, 0, 9});
    std::vector<std::int64_t> packed(301);
    std::vector<std::int64_t> positions(301, -2);
    vocabulary.find(asked.data(), 301, packed.data(), positions.data());
    for (std::int64_t i = 0; i < 300; ++i) CHECK(positions[static_cast<std::size_t>(i)] == i);
    CHECK(positions[300] == -1);
  }
}

TEST(a_value_that_comes_twice_is_refused) {
  Texts texts;
  texts.add("twice");
  texts.add("twice");
  CHECK(throws_invalid_argument(
      [&] { TextVocabulary(texts.offsets.data(), texts.bytes.data(), texts.size()); }));
  const std::int64_t integers[] = {7, 7};
  CHECK(throws_invalid_argument([&] { IntegerVocabulary(integers, 2); }));
  CHECK(throws_invalid_argument([&] { TupleVocabulary(integers, 2, {10}); }));
  CHECK(throws_invalid_argument([&] { TupleVocabulary(integers, 1, {7}); }));
}
