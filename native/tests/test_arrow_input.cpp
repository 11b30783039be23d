#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "arrow_input.hpp"
#include "check.hpp"
#include "transform.hpp"

namespace {

using widedeep::ArrowBatch;
using widedeep::InputError;
using widedeep::Origin;
using widedeep::TextVocabulary;
using widedeep::transform::CategoricalOptions;
using widedeep::transform::CategoricalPart;
using widedeep::transform::Encoded;
using widedeep::transform::InputBatch;
using widedeep::transform::Plan;
using widedeep::transform::Program;
using widedeep::transform::Slot;
using widedeep::transform::Way;

int g_released = 0;

// A column of text, every buffer in a heap block that it fills: a sanitizer sees a byte too many.
struct TextArray {
  explicit TextArray(const std::vector<std::string>& words)
      : offsets(new std::int32_t[words.size() + 1]) {
    std::string all;
    offsets[0] = 0;
    for (std::size_t i = 0; i < words.size(); ++i) {
      all += words[i];
      offsets[i + 1] = static_cast<std::int32_t>(all.size());
    }
    bytes.reset(new char[all.size()]);
    all.copy(bytes.get(), all.size());
    buffers[1] = offsets.get();
    buffers[2] = bytes.get();
    array.length = static_cast<std::int64_t>(words.size());
    array.n_buffers = 3;
    array.buffers = buffers;
    schema.format = "u";
  }
  std::unique_ptr<std::int32_t[]> offsets;
  std::unique_ptr<char[]> bytes;
  const void* buffers[3] = {nullptr, nullptr, nullptr};
  ArrowArray array{};
  ArrowSchema schema{};
};

// A record batch of one column.
struct TextBatch {
  explicit TextBatch(const std::vector<std::string>& words) : column(words) {
    children[0] = &column.array;
    schemas[0] = &column.schema;
    array.length = column.array.length;
    array.n_buffers = 1;
    array.n_children = 1;
    array.buffers = buffers;
    array.children = children;
    array.release = [](ArrowArray* released) {
      ++g_released;
      released->release = nullptr;
    };
    schema.format = "+s";
    schema.n_children = 1;
    schema.children = schemas;
  }
  TextArray column;
  const void* buffers[1] = {nullptr};
  ArrowArray* children[1];
  ArrowSchema* schemas[1];
  ArrowArray array{};
  ArrowSchema schema{};
};

struct WordPlan {
  explicit WordPlan(bool drop_unseen) {
    plan.texts.push_back(std::make_unique<TextVocabulary>(offsets, bytes, 3));
    CategoricalOptions options;
    options.way = Way::text_vocabulary;
    options.texts = plan.texts[0].get();
    options.drop_unseen = drop_unseen;
    plan.parts.push_back(std::make_unique<CategoricalPart>("word", options));
    plan.parts[0]->column = plan.column_index("word");
    program.plan = &plan;
    program.slots = {{Slot::Kind::part, 0}, {Slot::Kind::part, 0}};
  }
  static constexpr std::int64_t offsets[4] = {0, 1, 3, 21};
  static constexpr const char* bytes = "abblonger than a slot";
  Plan plan;
  Program program;
};

std::vector<std::string> words(int n) {
  const char* const some[] = {"a", "bb", "longer than a slot", "unseen", ""};
  std::vector<std::string> result;
  for (int i = 0; i < n; ++i) result.emplace_back(some[i * i % 5]);
  return result;
}

}  // namespace

TEST(a_batch_is_moved_and_released_once) {
  g_released = 0;
  TextBatch source(words(3));
  {
    ArrowBatch batch(source.schema, source.array);
    CHECK(source.array.release == nullptr);
    const ArrowBatch moved(std::move(batch));
    CHECK(g_released == 0 && moved.length() == 3 && moved.columns().size() == 1);
  }
  CHECK(g_released == 1);
}

TEST(a_refused_batch_is_released_too) {
  g_released = 0;
  TextBatch source(words(3));
  source.column.schema.format = "tDs";
  bool refused = false;
  try {
    const ArrowBatch batch(source.schema, source.array);
  } catch (const widedeep::UnsupportedArrowType& error) {
    refused = error.column == 0 && std::strcmp(error.what(), "duration") == 0;
  }
  CHECK(refused && g_released == 1);
}

TEST(threads_and_dropped_values_change_nothing) {
  const WordPlan plan(true);
  const std::vector<std::string> all = words(5000);
  TextBatch source(all);
  const ArrowBatch batch(source.schema, source.array);
  const InputBatch input{{&batch.columns()[0]}, batch.length()};
  const Origin origin;
  const Encoded once = run(plan.program, {input}, origin, 1);
  for (const int threads : {2, 3, 8}) {
    const Encoded again = run(plan.program, {input}, origin, threads);
    CHECK(again.n_ids == once.n_ids && again.n_offsets == once.n_offsets);
    const auto n_ids = static_cast<std::size_t>(once.n_ids);
    const auto n_offsets = static_cast<std::size_t>(once.n_offsets);
    CHECK(std::memcmp(again.ids.get(), once.ids.get(), n_ids * 8) == 0);
    CHECK(std::memcmp(again.offsets.get(), once.offsets.get(), n_offsets * 8) == 0);
  }
  for (std::int64_t row = 0; row < 5000; ++row) {
    const std::int64_t place = row * row % 5;
    const std::int64_t begin = once.offsets.get()[2 * row];
    CHECK(once.offsets.get()[2 * row + 1] - begin == (place < 3 ? 1 : 0));
    if (place < 3) CHECK(once.ids.get()[begin] == 2 + place);
  }
}

TEST(an_error_in_one_thread_leaves_the_others_whole) {
  WordPlan plan(false);
  std::vector<widedeep::Variant> values(4000);
  for (auto& value : values) {
    value.tag = widedeep::Variant::Tag::text;
    value.text = "bb";
    value.length = 2;
  }
  for (const std::size_t bad : {std::size_t{3999}, std::size_t{1234}}) {
    values[bad].tag = widedeep::Variant::Tag::real;
    values[bad].real = 1.5;
  }
  widedeep::Column column;
  column.length = 4000;
  column.values.type = widedeep::Physical::variant;
  column.values.data = values.data();
  column.values.length = 4000;
  std::string said;
  try {
    run(plan.program, {{{&column}, 4000}}, {"clicks", 6}, 4);
  } catch (const InputError& error) {
    said = error.what();
  }
  CHECK(said.find("feature 'word' (row 1240 of clicks): got 1.5 (float)") == 0);
}
