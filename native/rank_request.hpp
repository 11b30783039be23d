// The body of a request for a ranking, read strictly: a user, a context, candidates by id. What is
// unusual or wrong in any way is left to the full server, which says what is wrong.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "column.hpp"

namespace widedeep {

// Which keys of a user or context mean something.
class QueryNames {
 public:
  // `foreign` are columns that must not be among a query's. An `extra` name is read, too, behind
  // the columns, but means nothing to the model; empty, or one of the columns: there is none.
  QueryNames(std::vector<std::string> columns, const std::vector<std::string>& foreign,
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

struct CandidateId {
  std::string_view token;  // as JSON, for the answer
  std::string_view text;
  std::int64_t integer = 0;
  bool is_text = false;
};

// Whether a key looks like the name of a column.
bool is_misspelt(std::string_view key, std::string_view column);

// A request, ready to be encoded; used again and again by one thread.
class RankRequestReader {
 public:
  // False if the body must be read by the full server. Both must outlive what is read.
  bool read(std::string_view body, const QueryNames& names);

  // One column a name, of one row.
  const std::vector<Column>& columns() const noexcept { return columns_; }
  // Whether the query brought the column, if only as null.
  bool has(std::size_t column) const noexcept { return cells_[column].given; }
  // Whether the user, not the context, brought it.
  bool is_of_user(std::string_view name) const;
  const std::vector<CandidateId>& candidates() const noexcept { return candidates_; }
  std::int64_t k() const noexcept { return k_; }  // -1: all
  // Empty if the body has none; else as it stands there, between its quotes.
  std::string_view request_id() const noexcept { return request_id_; }

 private:
  struct Cell {
    std::size_t begin = 0;
    std::size_t count = 0;
    bool given = false;
    bool is_list = false;
  };

  bool have_common_name();
  bool has_misspelt_key() const;
  bool read_member(std::string_view name);
  bool read_query(std::vector<std::string_view>& given);
  bool read_cell(Cell& cell);
  bool read_value(Variant& value);
  bool read_number(Variant& value);
  bool read_text(std::string_view& text);
  bool unescape(const char* begin, std::string_view& text);
  bool read_escape(const char*& from, std::string& out);
  bool read_candidates();
  bool read_id(CandidateId& id);
  bool read_count();
  bool take(char c);
  bool take_word(std::string_view word);
  void skip_space();
  void finish();

  const QueryNames* names_ = nullptr;
  const char* at_ = nullptr;
  const char* end_ = nullptr;
  std::vector<Variant> values_;
  std::vector<Cell> cells_;
  std::vector<Column> columns_;
  std::vector<std::int64_t> ends_;
  std::deque<std::string> unescaped_;  // texts that were written with escapes; they stay in place
  std::vector<std::string_view> of_user_;
  std::vector<std::string_view> of_context_;
  std::vector<std::string_view> unknown_;
  std::vector<CandidateId> candidates_;
  std::int64_t k_ = -1;
  std::string_view request_id_;
  unsigned seen_ = 0;
};

bool is_utf8(std::string_view text);

// Text as JSON, with its quotes.
void append_json(std::string_view text, std::string& out);

}  // namespace widedeep
