// Rows of text lists, integers and numbers through a plan with every kind of feature.
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "transform.hpp"

using namespace widedeep;
using namespace widedeep::transform;

namespace {

constexpr std::int64_t kRows = 1500;  // more than two blocks of rows

// Columns "tags" (list of text), "code" (int64, some null) and "price" (float64).
class InputRows {
 public:
  InputRows() : validity_((kRows + 7) / 8, 0) {
    for (std::int64_t row = 0; row < kRows; ++row) {
      for (std::int64_t i = 0; i < row % 4; ++i) {
        const std::string text = "tag" + std::to_string((row * 7 + i) % 11);
        bytes_.insert(bytes_.end(), text.begin(), text.end());
        text_offsets_.push_back(static_cast<std::int32_t>(bytes_.size()));
      }
      list_offsets_.push_back(static_cast<std::int32_t>(text_offsets_.size()) - 1);
      codes_.push_back(row % 13);
      if (row % 5 != 0) validity_[static_cast<std::size_t>(row / 8)] |= 1U << (row % 8);
      prices_.push_back(static_cast<double>(row) / 3);
    }
  }

  // The columns of rows [begin, begin + n), as slices with an offset.
  std::vector<Column> slice(std::int64_t begin, std::int64_t n) const {
    Column tags;
    tags.length = n;
    tags.list = ListLayer::list32;
    tags.list_offsets = list_offsets_.data();
    tags.list_offset = begin;
    tags.values.type = Physical::text32;
    tags.values.data = text_offsets_.data();
    tags.values.text = bytes_.data();
    tags.values.length = static_cast<std::int64_t>(text_offsets_.size()) - 1;
    Column code = flat(Physical::int64, codes_.data(), begin, n);
    code.values.validity = validity_.data();
    return {tags, code, flat(Physical::float64, prices_.data(), begin, n)};
  }

 private:
  static Column flat(Physical type, const void* data, std::int64_t begin, std::int64_t n) {
    Column column;
    column.length = n;
    column.values.type = type;
    column.values.data = data;
    column.values.offset = begin;
    column.values.length = n;
    return column;
  }

  std::vector<std::int32_t> list_offsets_{0};
  std::vector<std::int32_t> text_offsets_{0};
  std::vector<char> bytes_;
  std::vector<std::int64_t> codes_;
  std::vector<std::uint8_t> validity_;
  std::vector<double> prices_;
};

// Four slots: tags by vocabulary, codes by hash, their learned cross and their hashed cross.
struct Model {
  Plan plan;
  Program program;
  std::vector<std::int64_t> offsets{0};
  std::string bytes;
  std::vector<std::int64_t> tuples{2, 3, 4, 5, 2, 7};

  Model() {
    for (int i = 0; i < 9; ++i) {  // of 11 tags two stay unseen
      bytes += "tag" + std::to_string(i);
      offsets.push_back(static_cast<std::int64_t>(bytes.size()));
    }
    plan.columns = {"tags", "code", "price"};
    plan.texts.push_back(std::make_unique<TextVocabulary>(offsets.data(), bytes.data(), 9));
    CategoricalOptions tags;
    tags.way = Way::text_vocabulary;
    tags.texts = plan.texts[0].get();
    CategoricalOptions code;
    code.way = Way::hash_integer;
    code.buckets = 8;
    for (auto& [name, options] :
         {std::pair{std::string("tags"), tags}, std::pair{std::string("code"), code}}) {
      plan.parts.push_back(std::make_unique<CategoricalPart>(name, options));
      plan.parts.back()->column = static_cast<int>(plan.parts.size()) - 1;
      plan.parts.back()->wants_keys = true;
    }
    for (const bool hashed : {false, true}) {
      auto cross = std::make_unique<CrossFeature>();
      cross->parts = {0, 1};
      cross->buckets = 100;
      if (!hashed) {
        cross->vocabulary =
            std::make_unique<TupleVocabulary>(tuples.data(), 3, std::vector<std::int64_t>{11, 10});
      }
      plan.crosses.push_back(std::move(cross));
    }
    auto price = std::make_unique<NumericFeature>();
    price->name = "price";
    price->curves = {Curve(Scaling::quantile, {0, 10, 100, 400}, 0, 1)};
    price->fill = {0};
    price->column = 2;
    plan.numbers.push_back(std::move(price));
    program.plan = &plan;
    program.slots = {{Slot::Kind::part, 0},
                     {Slot::Kind::part, 1},
                     {Slot::Kind::cross, 0},
                     {Slot::Kind::cross, 1}};
  }

  Encoded encode(const InputRows& rows,
                 const std::vector<std::pair<std::int64_t, std::int64_t>>& slices,
                 int threads) const {
    std::vector<std::vector<Column>> columns;
    for (const auto& [begin, n] : slices) columns.push_back(rows.slice(begin, n));
    std::vector<InputBatch> batches;
    for (std::size_t i = 0; i < columns.size(); ++i) {
      batches.push_back({{&columns[i][0], &columns[i][1], &columns[i][2]}, slices[i].second});
    }
    return run(program, batches, Origin{}, threads);
  }
};

template <class T>
bool equal(const T* a, const T* b, std::int64_t n) {
  return std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(T)) == 0;
}

bool equal(const Encoded& a, const Encoded& b) {
  return a.n_rows == b.n_rows && a.n_ids == b.n_ids && a.n_offsets == b.n_offsets &&
         a.n_dense == b.n_dense && equal(a.ids.get(), b.ids.get(), a.n_ids) &&
         equal(a.offsets.get(), b.offsets.get(), a.n_offsets) &&
         equal(a.dense.get(), b.dense.get(), a.n_rows * a.n_dense);
}

}  // namespace

TEST(rows_become_the_same_ids_whatever_the_batches_and_threads) {
  const InputRows rows;
  const Model model;
  const Encoded whole = model.encode(rows, {{0, kRows}}, 1);
  CHECK(whole.n_rows == kRows && whole.n_offsets == kRows * 4 + 1 && whole.n_dense == 1);
  CHECK(equal(whole, model.encode(rows, {{0, kRows}}, 4)));
  CHECK(equal(whole, model.encode(rows, {{0, 1}, {1, 700}, {701, 0}, {701, kRows - 701}}, 3)));
}

TEST(a_row_alone_becomes_what_it_is_among_others) {
  const InputRows rows;
  const Model model;
  const Encoded whole = model.encode(rows, {{0, kRows}}, 2);
  for (std::int64_t row = 0; row < 200; ++row) {
    const Encoded one = model.encode(rows, {{row, 1}}, 1);
    const std::int64_t* const offsets = whole.offsets.get() + row * 4;
    CHECK(one.n_ids == offsets[4] - offsets[0]);
    CHECK(equal(one.ids.get(), whole.ids.get() + offsets[0], one.n_ids));
    for (int slot = 0; slot <= 4; ++slot) {
      CHECK(one.offsets.get()[slot] == offsets[slot] - offsets[0]);
    }
    CHECK(one.dense.get()[0] == whole.dense.get()[row]);
  }
}

TEST(nulls_and_empty_lists_follow_the_table_of_ids) {
  const InputRows rows;
  const Model model;
  // Row 0: no tags, a null code. Row 1: one tag ("tag7"), code 1. Row 5: one tag, a null code.
  const Encoded out = model.encode(rows, {{0, 6}}, 1);
  const auto cell = [&out](std::int64_t row, std::int64_t slot) {
    const std::int64_t* const at = out.offsets.get() + row * 4 + slot;
    return std::vector<std::int64_t>(out.ids.get() + at[0], out.ids.get() + at[1]);
  };
  CHECK(cell(0, 0).empty());
  CHECK(cell(0, 1) == std::vector<std::int64_t>{kMissingId});
  CHECK(cell(0, 2).empty() && cell(0, 3).empty());
  CHECK(cell(1, 0) == std::vector<std::int64_t>{kFirstKnownId + 7});
  CHECK(cell(1, 2).size() == 1 && cell(1, 3).size() == 1 && cell(1, 3)[0] >= kFirstKnownId);
  CHECK(cell(5, 0).size() == 1 && cell(5, 2).empty() && cell(5, 3).empty());
}
