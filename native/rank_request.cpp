#include "rank_request.hpp"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <utility>

namespace widedeep {
namespace {

// The number of keys and columns as in widedeep/data/transform.py.
constexpr std::size_t kMostKeys = 8, kMostColumns = 64, kLongestName = 40;
constexpr std::size_t kFewestLetters = 4, kLeastSuffix = 5, kLettersAnError = 5;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string plain_name(std::string_view name) {
  std::string plain;
  for (const char c : name) {
    if (c == '_' || c == '-' || c == '.' || c == ' ') continue;
    plain += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    if (plain.size() > kLongestName) break;
  }
  return plain;
}

std::string digits_of(std::string_view name) {
  std::string digits;
  std::copy_if(name.begin(), name.end(), std::back_inserter(digits), is_digit);
  return digits;
}

// Edits from one to the other, two neighbours that change places being one.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::size_t rows[3][kLongestName + 1] = {};
  std::size_t *older = rows[0], *before = rows[1], *row = rows[2];
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::swap(older, before);
    std::swap(before, row);
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t changed = before[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({before[j] + 1, row[j - 1] + 1, changed});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], older[j - 2] + 1);
      }
    }
  }
  return row[b.size()];
}

}  // namespace

bool is_misspelt(std::string_view key, std::string_view column) {
  const std::string a = plain_name(key), b = plain_name(column);
  if (a.empty() || b.empty() || std::max(a.size(), b.size()) > kLongestName) return false;
  if (a == b) return true;
  const std::string& shorter = a.size() <= b.size() ? a : b;
  const std::string& longer = a.size() <= b.size() ? b : a;
  if (shorter.size() >= kLeastSuffix && 2 * shorter.size() >= longer.size() &&
      longer.compare(longer.size() - shorter.size(), shorter.size(), shorter) == 0) {
    return true;
  }
  if (longer.size() < kFewestLetters || digits_of(a) != digits_of(b)) return false;
  const std::size_t most = std::max<std::size_t>(1, longer.size() / kLettersAnError);
  const bool ends_alike = a.front() == b.front() || a.back() == b.back();
  return ends_alike && longer.size() - shorter.size() <= most && edit_distance(a, b) <= most;
}

SideNames::SideNames(std::vector<std::string> columns, const std::vector<std::string>& foreign,
                     const std::string& extra)
    : columns_(std::move(columns)), n_read_(columns_.size()), foreign_(foreign) {
  const bool is_new = std::find(columns_.begin(), columns_.end(), extra) == columns_.end();
  if (!extra.empty() && is_new) columns_.push_back(extra);
  for (const std::string& name : foreign_) places_[name] = kForeign;
  for (std::size_t i = 0; i < columns_.size(); ++i) places_[columns_[i]] = static_cast<int>(i);
}

int SideNames::find(std::string_view name, int guess) const {
  if (guess < static_cast<int>(columns_.size()) &&
      columns_[static_cast<std::size_t>(guess)] == name) {
    return guess;
  }
  const auto found = places_.find(name);
  return found == places_.end() ? kUnknown : found->second;
}

bool RankRequestReader::read(std::string_view body, const RequestNames& names) {
  names_ = &names;
  query_.names = &names.query;
  items_.names = &names.items;
  start(body);
  for (Side* side : {&query_, &items_}) side->cells.assign(side->names->columns().size(), {});
  for (auto* list : {&of_user_, &of_context_, &unknown_}) list->clear();
  values_.clear();
  ends_.clear();
  valid_.clear();
  candidates_.clear();
  request_id_ = head_ = {};
  k_ = -1;
  names_head_ = false;
  seen_ = 0;
  const auto member = [&](std::string_view name) { return read_member(name); };
  if (!read_object(member) || !is_over()) return false;
  const bool has_ids = (seen_ & kCandidates) != 0;
  if (has_ids == are_inline() || have_common_name() || has_misspelt_key()) return false;
  const std::size_t n_rows = are_inline() ? candidates_.size() : 0;
  if (nulls_.size() <= n_rows) nulls_.resize(n_rows + 1);
  finish(query_, 1);
  items_.columns.clear();
  if (are_inline()) finish(items_, n_rows);
  return true;
}

// Whether user and context share a name; sorted, for there may be a million of each.
bool RankRequestReader::have_common_name() {
  if (of_user_.empty() || of_context_.empty()) return false;
  std::sort(of_user_.begin(), of_user_.end());
  return std::any_of(of_context_.begin(), of_context_.end(), [&](std::string_view name) {
    return std::binary_search(of_user_.begin(), of_user_.end(), name);
  });
}

// Whether a key that means nothing looks like a column that is absent: the answer names it. Of more
// keys than are compared, which ones depends on their order.
bool RankRequestReader::has_misspelt_key() const {
  if (unknown_.empty()) return false;
  std::size_t absent = 0;
  const auto resembles = [&](const Side& side, std::size_t n_columns) {
    for (std::size_t c = 0; c < n_columns && absent < kMostColumns; ++c) {
      if (side.cells[c].given) continue;
      if (unknown_.size() > kMostKeys) return true;
      ++absent;
      const std::string& column = side.names->columns()[c];
      if (std::any_of(unknown_.begin(), unknown_.end(),
                      [&](std::string_view key) { return is_misspelt(key, column); })) {
        return true;
      }
    }
    return false;
  };
  return resembles(query_, names_->query.n_read()) ||
         (are_inline() && resembles(items_, names_->n_item_columns));
}

unsigned RankRequestReader::member_named(std::string_view name) {
  return name == "user"         ? kUser
         : name == "context"    ? kContext
         : name == "candidates" ? kCandidates
         : name == "items"      ? kItems
         : name == "k"          ? kCount
         : name == "head"       ? kHead
         : name == "request_id" ? kRequestId
                                : 0U;
}

bool RankRequestReader::is_of_user(std::string_view name) const {
  return std::find(of_user_.begin(), of_user_.end(), name) != of_user_.end();
}

bool RankRequestReader::read_member(std::string_view name) {
  const unsigned member = member_named(name);
  if (member == 0 || (seen_ & member) != 0) return false;
  seen_ |= member;
  skip_space();
  switch (member) {
    case kUser:
      return read_query(of_user_);
    case kContext:
      return read_query(of_context_);
    case kCandidates:
      return read_candidates();
    case kItems:
      return read_items();
    case kCount:
      return read_count();
    case kHead:
      return read_head();
    default:
      return JsonReader::read_id(request_id_);
  }
}

bool RankRequestReader::read_head() {
  if (at_ != end_ && *at_ == 'n') return take_word("null");
  names_head_ = true;
  return read_text(head_);
}

bool RankRequestReader::read_query(std::vector<std::string_view>& given) {
  int guess = 0;
  return read_object([&](std::string_view name) {
    const int place = query_.names->find(name, guess);
    if (place == SideNames::kForeign) return false;
    given.push_back(name);
    const bool is_read = place >= 0 && static_cast<std::size_t>(place) < names_->query.n_read();
    if (!is_read && unknown_.size() <= kMostKeys) unknown_.push_back(name);
    Cell unused;
    Cell& cell = place < 0 ? unused : query_.cells[static_cast<std::size_t>(place)];
    cell = {};
    start_cell(cell);
    guess = place + 1;
    return read_cell(cell);
  });
}

void RankRequestReader::start_cell(Cell& cell) {
  cell.given = true;
  cell.begin = values_.size();
  cell.rows = ends_.size();
  ends_.push_back(0);
  valid_.push_back(1);
}

// Adds a row to a column: a value, or a list of them.
bool RankRequestReader::read_cell(Cell& cell) {
  skip_space();
  Variant value;
  bool is_valid = true;
  const auto add_value = [&] {
    if (!read_value(value)) return false;
    values_.push_back(value);
    return true;
  };
  if (at_ != end_ && *at_ == '[') {
    cell.is_list = true;
    if (!read_list(add_value)) return false;
  } else {
    if (!add_value()) return false;
    is_valid = value.tag != Variant::Tag::null;
  }
  cell.count = values_.size() - cell.begin;
  ends_.push_back(static_cast<std::int64_t>(cell.count));
  valid_.push_back(is_valid ? 1 : 0);
  return true;
}

// {"column": [a value an item, ...], ...}
bool RankRequestReader::read_items() {
  int guess = 0;
  bool is_first = true;
  std::size_t n_rows = 0;
  const auto add_column = [&](std::string_view name) {
    const int place = items_.names->find(name, guess);
    if (place == SideNames::kForeign) return false;
    if (place < 0 && unknown_.size() <= kMostKeys) unknown_.push_back(name);
    Cell unused;
    Cell& cell = place < 0 ? unused : items_.cells[static_cast<std::size_t>(place)];
    if (cell.given || !read_item_column(place, cell)) return false;
    const std::size_t n = ends_.size() - cell.rows - 1;
    if (!is_first && n != n_rows) return false;
    is_first = false;
    n_rows = n;
    guess = place + 1;
    return true;
  };
  if (!read_object(add_column)) return false;
  candidates_.resize(n_rows);
  return !is_first;  // without columns, the full server says how many there are
}

// A list, of which the ids are kept as they stand there.
bool RankRequestReader::read_item_column(int place, Cell& cell) {
  start_cell(cell);
  const bool are_ids = place >= 0 && place == names_->id_column;
  std::size_t row = 0;
  return read_list([&] {
    skip_space();
    const char* const begin = at_;
    if (!read_cell(cell)) return false;
    if (!are_ids) return true;
    if (candidates_.size() <= row) candidates_.resize(row + 1);
    return *begin != '[' && take_id(begin, values_.back(), candidates_[row++]);
  });
}

bool RankRequestReader::read_candidates() {
  return read_list([&] {
    skip_space();
    const char* const begin = at_;
    Variant value;
    return read_value(value) && take_id(begin, value, candidates_.emplace_back());
  });
}

// What was just read, from `begin` on, as an id.
bool RankRequestReader::take_id(const char* begin, const Variant& value, CandidateId& id) {
  id.is_text = value.tag == Variant::Tag::text;
  if (!id.is_text && value.tag != Variant::Tag::integer) return false;
  id.token = {begin, static_cast<std::size_t>(at_ - begin)};
  if (!id.is_text) {
    id.integer = value.integer;
    return true;
  }
  id.text = {value.text, static_cast<std::size_t>(value.length)};
  if (value.text == begin + 1) return true;
  std::string token;
  append_json(id.text, token);
  id.token = unescaped_.emplace_back(std::move(token));
  return true;
}

bool RankRequestReader::read_count() {
  if (at_ != end_ && *at_ == 'n') return take_word("null");
  Variant value;
  if (!read_number(value) || value.tag != Variant::Tag::integer || value.integer < 0) return false;
  k_ = value.integer;
  return true;
}

std::int64_t RankRequestReader::n_values(const Side& side, std::size_t n_columns,
                                         std::size_t n_rows) {
  std::size_t n = 0;
  for (std::size_t c = 0; c < n_columns; ++c) {
    n += side.cells[c].given ? side.cells[c].count : n_rows;
  }
  return static_cast<std::int64_t>(n);
}

std::int64_t RankRequestReader::n_query_values() const noexcept {
  return n_values(query_, names_->query.n_read(), 1);
}

std::int64_t RankRequestReader::n_item_values() const noexcept {
  return n_values(items_, names_->n_item_columns, candidates_.size());
}

// Makes a column of each cell; what is absent is null.
void RankRequestReader::finish(Side& side, std::size_t n_rows) {
  const std::size_t bytes = (n_rows + 7) / 8;
  side.bits.assign(bytes * side.cells.size(), 0);
  side.columns.assign(side.cells.size(), {});
  for (std::size_t c = 0; c < side.cells.size(); ++c) {
    const Cell& cell = side.cells[c];
    Column& column = side.columns[c];
    column.length = static_cast<std::int64_t>(n_rows);
    column.values.type = Physical::variant;
    column.values.data = cell.given ? values_.data() + cell.begin : nulls_.data();
    column.values.length = static_cast<std::int64_t>(cell.given ? cell.count : n_rows);
    if (!cell.is_list) continue;
    std::uint8_t* const bits = side.bits.data() + c * bytes;
    for (std::size_t row = 0; row < n_rows; ++row) {
      const unsigned bit = valid_[cell.rows + 1 + row];
      bits[row / 8] = static_cast<std::uint8_t>(bits[row / 8] | bit << row % 8);
    }
    column.list = ListLayer::list64;
    column.list_validity = bits;
    column.list_offsets = ends_.data() + cell.rows;
  }
}

}  // namespace widedeep
