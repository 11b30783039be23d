// The body of a request for a ranking, read strictly: a user, a context, candidates by id or as
// items in columns. What is unusual or wrong in any way is left to the full server, which says what
// is wrong.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "column.hpp"
#include "json_reader.hpp"

namespace widedeep {

// Which keys of one side of a request mean something.
class SideNames {
 public:
  // `foreign` are columns that must not be among this side's. An `extra` name is read, too, behind
  // the columns, but means nothing to the model; empty, or one of the columns: there is none.
  SideNames(std::vector<std::string> columns, const std::vector<std::string>& foreign,
            const std::string& extra = {});

  static constexpr int kUnknown = -1;
  static constexpr int kForeign = -2;
  // The place of a name; `guess` is tried first.
  int find(std::string_view name, int guess) const;
  const std::vector<std::string>& columns() const noexcept { return columns_; }
  // How many of them the model reads.
  std::size_t n_read() const noexcept { return n_read_; }

 private:
  std::vector<std::string> columns_;
  std::size_t n_read_;
  std::unordered_map<std::string_view, int> places_;
  std::vector<std::string> foreign_;
};

struct RequestNames {
  SideNames query;  // of user and context
  SideNames items;  // of inline items: the model's columns, and behind them those of others
  std::size_t n_item_columns = 0;  // of the model
  int id_column = -1;              // among the items'
};

struct CandidateId {
  std::string_view token;  // as JSON, for the answer; empty for an item without an id
  std::string_view text;
  std::int64_t integer = 0;
  bool is_text = false;
};

// Whether a key looks like the name of a column.
bool is_misspelt(std::string_view key, std::string_view column);

// A request, ready to be encoded; used again and again by one thread.
class RankRequestReader : private JsonReader {
 public:
  // False if the body must be read by the full server. Both must outlive what is read.
  bool read(std::string_view body, const RequestNames& names);

  // One column a name of the query, of one row.
  const std::vector<Column>& columns() const noexcept { return query_.columns; }
  // Whether the query brought the column, if only as null.
  bool has(std::size_t column) const noexcept { return query_.cells[column].given; }
  // One column a name of the items, of a row a candidate; empty where candidates came by id.
  const std::vector<Column>& item_columns() const noexcept { return items_.columns; }
  bool has_item(std::size_t column) const noexcept { return items_.cells[column].given; }
  bool are_inline() const noexcept { return (seen_ & kItems) != 0; }
  // Values of the model's columns, a null for what is absent.
  std::int64_t n_query_values() const noexcept;
  std::int64_t n_item_values() const noexcept;
  // Whether the user, not the context, brought it.
  bool is_of_user(std::string_view name) const;
  const std::vector<CandidateId>& candidates() const noexcept { return candidates_; }
  std::int64_t k() const noexcept { return k_; }  // -1: all
  // Whether the request names a head, and which.
  bool names_head() const noexcept { return names_head_; }
  std::string_view head() const noexcept { return head_; }
  // Empty if the body has none; else as it stands there, between its quotes.
  std::string_view request_id() const noexcept { return request_id_; }

 private:
  // Members that a body may have once each.
  static constexpr unsigned kUser = 1, kContext = 2, kCandidates = 4, kCount = 8, kRequestId = 16,
                            kItems = 32, kHead = 64;

  struct Cell {
    std::size_t begin = 0;  // of its values
    std::size_t count = 0;
    std::size_t rows = 0;  // their ends and nulls begin there
    bool given = false;
    bool is_list = false;  // one of its rows, at least
  };
  struct Side {
    const SideNames* names = nullptr;
    std::vector<Cell> cells;
    std::vector<Column> columns;
    std::vector<std::uint8_t> bits;  // validity of the columns with lists
  };

  static unsigned member_named(std::string_view name);
  bool have_common_name();
  bool has_misspelt_key() const;
  bool read_member(std::string_view name);
  bool read_query(std::vector<std::string_view>& given);
  bool read_items();
  bool read_item_column(int place, Cell& cell);
  void start_cell(Cell& cell);
  bool read_cell(Cell& cell);
  bool read_candidates();
  bool take_id(const char* begin, const Variant& value, CandidateId& id);
  bool read_count();
  bool read_head();
  void finish(Side& side, std::size_t n_rows);
  static std::int64_t n_values(const Side& side, std::size_t n_columns, std::size_t n_rows);

  const RequestNames* names_ = nullptr;
  std::vector<Variant> values_;
  Side query_;
  Side items_;
  std::vector<std::int64_t> ends_;   // of each row's values, from its column's begin; 0 before
  std::vector<std::uint8_t> valid_;  // a byte a row, where ends_ has one
  std::vector<Variant> nulls_;       // a row each, of columns that are absent
  std::vector<std::string_view> of_user_;
  std::vector<std::string_view> of_context_;
  std::vector<std::string_view> unknown_;
  std::vector<CandidateId> candidates_;
  std::int64_t k_ = -1;
  std::string_view request_id_;
  std::string_view head_;
  bool names_head_ = false;
  unsigned seen_ = 0;
};

}  // namespace widedeep
