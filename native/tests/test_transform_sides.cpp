// A query and items encoded apart and then crossed: the very ids of their rows put together.
#include <memory>
#include <string>
#include <vector>

#include "check.hpp"
#include "transform.hpp"
#include "transform_sides.hpp"

using namespace widedeep;
using namespace widedeep::transform;

namespace {

constexpr std::int64_t kItems = 1100;  // more than two blocks of rows

Column lists(const std::vector<std::int64_t>& values, const std::vector<std::int64_t>& offsets) {
  Column column;
  column.length = static_cast<std::int64_t>(offsets.size()) - 1;
  column.list = ListLayer::list64;
  column.list_offsets = offsets.data();
  column.values.type = Physical::int64;
  column.values.data = values.data();
  column.values.length = static_cast<std::int64_t>(values.size());
  return column;
}

// "tags" of the query and "genres" of the item, "code" of either, a learned and a hashed cross.
struct Model {
  Plan plan;
  std::vector<std::int64_t> known{0, 1, 2, 3, 4};
  std::vector<std::int64_t> tuples{2, 3, 4, 5, 2, 7, 6, 2};

  Model() {
    plan.integers.push_back(std::make_unique<IntegerVocabulary>(known.data(), 5));
    for (const char* name : {"tags", "genres", "maker"}) {
      CategoricalOptions options;
      options.way = std::string(name) == "maker" ? Way::hash_integer : Way::integer_vocabulary;
      options.integers = plan.integers.front().get();
      options.buckets = 6;
      options.oov_buckets = options.way == Way::hash_integer ? 0 : 2;
      options.column_name = name;
      plan.parts.push_back(std::make_unique<CategoricalPart>(name, std::move(options)));
      plan.parts.back()->column = plan.column_index(name);
      plan.parts.back()->wants_keys = true;
    }
    auto learned = std::make_unique<CrossFeature>();
    learned->name = "learned";
    learned->parts = {0, 1};
    learned->vocabulary = std::make_unique<TupleVocabulary>(
        tuples.data(), 4,
        std::vector<std::int64_t>{plan.parts[0]->id_limit(), plan.parts[1]->id_limit()});
    plan.crosses.push_back(std::move(learned));
    auto hashed = std::make_unique<CrossFeature>();
    hashed->name = "hashed";
    hashed->parts = {2, 0, 1};
    hashed->buckets = 50;
    plan.crosses.push_back(std::move(hashed));
  }
};

// Row r has r % 4 values (a list of none among them), some of them unseen.
struct Values {
  std::vector<std::int64_t> values;
  std::vector<std::int64_t> offsets{0};

  Values(std::int64_t rows, std::int64_t step, bool single = false) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < (single ? 1 : r % 4); ++i) values.push_back((r + i * step) % 7);
      offsets.push_back(static_cast<std::int64_t>(values.size()));
    }
  }

  // Row `row`, n times.
  Values(const Values& of, const std::vector<std::int64_t>& rows) {
    for (const std::int64_t row : rows) {
      const auto at = static_cast<std::size_t>(row);
      values.insert(values.end(), of.values.begin() + of.offsets[at],
                    of.values.begin() + of.offsets[at + 1]);
      offsets.push_back(static_cast<std::int64_t>(values.size()));
    }
  }

  Column column() const { return lists(values, offsets); }
};

}  // namespace

TEST(sides_crossed_give_the_ids_of_whole_rows) {
  const Model model;
  const Origin origin{"", 0};
  const Values genres(kItems, 3);
  const Values makers(kItems, 1, true);
  std::vector<std::int64_t> positions;
  for (std::int64_t i = 0; i < 300; ++i) positions.push_back(i * 31 % kItems);
  const SideProgram item(model.plan, {{Slot::Kind::part, 1}, {Slot::Kind::part, 2}}, {}, {1, 2});
  const SideProgram query(model.plan, {{Slot::Kind::part, 0}}, {}, {0});
  CHECK(item.columns() == (std::vector<int>{1, 2}));
  CHECK(query.columns() == std::vector<int>{0});
  const Column genre_column = genres.column();
  const Column maker_column = makers.column();
  const SideRows items =
      encode_side(item, {{{nullptr, &genre_column, &maker_column}, kItems}}, origin, false);
  CHECK(items.parts.n_rows == kItems);
  CHECK(items.offsets.size() == 2 * kItems + 1);
  for (const std::int64_t user : {0, 1, 2, 3}) {
    const Values tags(Values(4, 2), {user});
    const Column tag_column = tags.column();
    const SideRows one = encode_side(query, {{{&tag_column, nullptr, nullptr}, 1}}, origin, true);
    const PairCells found = cross_pairs(model.plan, {0, 1}, {false, true, true}, one.parts,
                                        items.parts, positions.data(), 300);

    const Values all_tags(tags, std::vector<std::int64_t>(300, 0));
    const Values taken(genres, positions);
    const Values taken_makers(makers, positions);
    const Column columns[] = {all_tags.column(), taken.column(), taken_makers.column()};
    Program program;
    program.plan = &model.plan;
    program.slots = {{Slot::Kind::cross, 0}, {Slot::Kind::cross, 1}};
    const Encoded whole = run(program, {{{&columns[0], &columns[1], &columns[2]}, 300}}, origin, 1);
    CHECK(found.ids == std::vector<std::int64_t>(whole.ids.get(), whole.ids.get() + whole.n_ids));
    CHECK(found.offsets ==
          std::vector<std::int64_t>(whole.offsets.get(), whole.offsets.get() + whole.n_offsets));
  }
}

TEST(a_side_gives_the_ids_of_its_slots_in_whole_rows) {
  const Model model;
  const Origin origin{"", 0};
  const Values genres(kItems, 3);
  const Values makers(kItems, 1, true);
  const Column columns[] = {genres.column(), makers.column()};
  const std::vector<InputBatch> batches = {{{nullptr, &columns[0], &columns[1]}, kItems}};
  const SideProgram item(model.plan, {{Slot::Kind::part, 1}, {Slot::Kind::part, 2}}, {}, {});
  const SideRows found = encode_side(item, batches, origin, false);
  Program program;
  program.plan = &model.plan;
  program.slots = item.slots;
  const Encoded whole = run(program, batches, origin, 2);
  CHECK(found.ids == std::vector<std::int64_t>(whole.ids.get(), whole.ids.get() + whole.n_ids));
  CHECK(found.offsets ==
        std::vector<std::int64_t>(whole.offsets.get(), whole.offsets.get() + whole.n_offsets));
  CHECK(found.values.empty());
}
