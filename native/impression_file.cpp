#include "impression_file.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace widedeep {
namespace {

using parquet::ChunkWriter;
using parquet::Physical;

constexpr std::uint32_t kNull = ChunkWriter::kNull;

template <class T>
T load(std::string_view bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof(T));
  return value;
}

std::size_t width_of(Physical type) {
  switch (type) {
    case Physical::boolean:
      return 1;
    case Physical::real32:
      return 4;
    default:
      return 8;
  }
}

}  // namespace

// Bytes of a chunk, one value after another; `good` is false once they have ended too early.
class ImpressionFile::Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  std::string_view take(std::size_t n) {
    if (n > bytes_.size()) {
      good_ = false;
      n = 0;
      bytes_ = {};
    }
    const std::string_view head = bytes_.substr(0, n);
    bytes_.remove_prefix(n);
    return good_ ? head : std::string_view();
  }
  std::uint32_t number() {
    const std::string_view bytes = take(4);
    return good_ ? load<std::uint32_t>(bytes) : 0;
  }
  // As it stands in a dictionary's page: text with its length before it.
  std::string_view plain(Physical type) {
    if (type != Physical::text) return take(width_of(type));
    if (bytes_.size() < 4) return take(4);
    return take(4 + std::size_t{load<std::uint32_t>(bytes_)});
  }
  // False for a null.
  bool is_present() {
    const std::string_view tag = take(1);
    return good_ && tag[0] != '\0';
  }
  bool good() const noexcept { return good_; }
  bool at_end() const noexcept { return bytes_.empty(); }

 private:
  std::string_view bytes_;
  bool good_ = true;
};

ImpressionFile::ImpressionFile(std::vector<LogFileColumn> columns, std::string arrow_schema)
    : columns_(std::move(columns)), arrow_schema_(std::move(arrow_schema)) {
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    of_source_[static_cast<std::size_t>(columns_[c].source)].push_back(c);
  }
  stores_.resize(columns_.size());
}

bool ImpressionFile::add(std::string chunk) {
  if (!check(chunk)) return false;
  Reader reader(bytes_.emplace_back(std::move(chunk)));
  chunk_items_.clear();
  while (!reader.at_end()) {
    const bool is_item = reader.take(1)[0] == 'i';
    const std::string_view record = reader.take(reader.number());
    if (is_item) {
      add_item(record);
    } else {
      Reader request(record);
      add_request(request);
    }
  }
  return true;
}

// Whether every record and every value ends where it should, and every row has its item.
bool ImpressionFile::check(std::string_view chunk) const {
  Reader reader(chunk);
  const auto skip = [&](Reader& record, LogSource source) {
    for (const std::size_t c : of_source_[static_cast<std::size_t>(source)]) {
      const parquet::Column& column = columns_[c].column;
      const bool is_value = source == LogSource::query || source == LogSource::item;
      if (!is_value) {
        record.plain(column.type);
        continue;
      }
      std::uint32_t n = 1;
      if (column.is_list) {
        n = record.number();
        n -= n == 0 ? 0 : 1;
      }
      for (; n > 0 && record.good(); --n) {
        if (record.is_present()) record.plain(column.type);
      }
    }
  };
  std::uint32_t n_items = 0;
  while (!reader.at_end()) {
    const std::string_view tag = reader.take(1);
    Reader record(reader.take(reader.number()));
    if (!reader.good() || (tag != "i" && tag != "r")) return false;
    if (tag == "i") {
      skip(record, LogSource::item_id);
      skip(record, LogSource::item);
      ++n_items;
    } else {
      record.take(8);
      skip(record, LogSource::request_id);
      skip(record, LogSource::user_id);
      const std::uint32_t n = record.number();
      const std::string_view items = record.take(std::size_t{4} * n);
      for (std::size_t at = 0; at < items.size(); at += 4) {
        if (load<std::uint32_t>(items.substr(at)) >= n_items) return false;
      }
      record.take(std::size_t{8} * n);
      skip(record, LogSource::query);
    }
    if (!record.good() || !record.at_end()) return false;
  }
  return true;
}

void ImpressionFile::add_item(std::string_view record) {
  const auto n = static_cast<std::uint32_t>(item_numbers_.size());
  const auto [at, is_new] = item_numbers_.emplace(record, n);
  chunk_items_.push_back(at->second);
  if (!is_new) return;
  Reader reader(record);
  for (const std::size_t c : of_source_[static_cast<std::size_t>(LogSource::item_id)]) {
    Store& store = stores_[c];
    store.cells.push_back({store.dictionary.code(reader.plain(columns_[c].column.type)), 0});
  }
  for (const std::size_t c : of_source_[static_cast<std::size_t>(LogSource::item)]) {
    read_cell(reader, c);
  }
}

void ImpressionFile::read_cell(Reader& record, std::size_t c) {
  const parquet::Column& column = columns_[c].column;
  Store& store = stores_[c];
  const auto code = [&] {
    return record.is_present() ? store.dictionary.code(record.plain(column.type)) : kNull;
  };
  if (!column.is_list) {
    store.cells.push_back({code(), 0});
    return;
  }
  const std::uint32_t n = record.number();
  store.cells.push_back({static_cast<std::uint32_t>(store.list_codes.size()), n - 1});
  for (std::uint32_t i = 1; i < n; ++i) store.list_codes.push_back(code());
}

void ImpressionFile::add_request(Reader& record) {
  const auto elements = [](const Cell& cell) {
    return cell.length == kNull ? std::int64_t{1} : std::int64_t{cell.length};
  };
  const auto each = [&](LogSource source, std::string_view plain) {
    for (const std::size_t c : of_source_[static_cast<std::size_t>(source)]) {
      stores_[c].cells.push_back({stores_[c].dictionary.code(plain), 0});
    }
  };
  each(LogSource::time, record.take(8));
  each(LogSource::request_id, record.plain(Physical::text));
  const std::size_t user = of_source_[static_cast<std::size_t>(LogSource::user_id)].front();
  each(LogSource::user_id, record.plain(columns_[user].column.type));
  const std::uint32_t n = record.number();
  const std::string_view items = record.take(std::size_t{4} * n);
  for (std::size_t at = 0; at < items.size(); at += 4) {
    item_of_row_.push_back(chunk_items_[load<std::uint32_t>(items.substr(at))]);
  }
  scores_ += record.take(std::size_t{8} * n);
  for (const std::size_t c : of_source_[static_cast<std::size_t>(LogSource::query)]) {
    read_cell(record, c);
    if (columns_[c].column.is_list) list_values_ += n * elements(stores_[c].cells.back());
  }
  for (const std::size_t c : of_source_[static_cast<std::size_t>(LogSource::item)]) {
    if (!columns_[c].column.is_list) continue;
    for (std::size_t row = item_of_row_.size() - n; row < item_of_row_.size(); ++row) {
      list_values_ += elements(stores_[c].cells[item_of_row_[row]]);
    }
  }
  request_rows_.push_back(n);
}

void ImpressionFile::put_cell(const Store& store, const Cell& cell, bool is_list,
                              std::uint64_t count, ChunkWriter& writer) const {
  if (!is_list) return writer.put(cell.begin, count);
  static constexpr std::uint32_t kNothing = 0;
  const bool is_null = cell.length == kNull;
  const std::uint32_t* const codes = is_null            ? nullptr
                                     : cell.length == 0 ? &kNothing
                                                        : store.list_codes.data() + cell.begin;
  for (; count > 0; --count) writer.put_list(codes, is_null ? 0 : cell.length);
}

// Bytes that live as long as the group.
std::string_view ImpressionFile::integer(std::uint64_t value) {
  return bytes_.emplace_back(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string ImpressionFile::column_chunk(std::size_t c, std::int64_t offset) {
  const LogFileColumn& column = columns_[c];
  Store& store = stores_[c];
  const bool is_list = column.column.is_list;
  if (column.source == LogSource::position) {
    const auto most = std::max_element(request_rows_.begin(), request_rows_.end());
    const std::uint64_t n = most == request_rows_.end() ? 0 : *most;
    for (std::uint64_t place = 1; place <= n; ++place) store.dictionary.code(integer(place));
  } else if (column.source == LogSource::constant) {
    store.dictionary.code(column.constant);
  }
  ChunkWriter writer(column.column, store.dictionary);
  switch (column.source) {
    case LogSource::constant:
      writer.put(0, item_of_row_.size());
      break;
    case LogSource::score:
      writer.put_plain(scores_, item_of_row_.size());
      break;
    case LogSource::position:
      for (const std::uint32_t n : request_rows_) {
        for (std::uint32_t place = 0; place < n; ++place) writer.put(place);
      }
      break;
    case LogSource::item_id:
    case LogSource::item:
      for (const std::uint32_t item : item_of_row_) {
        const Cell& cell = store.cells[item];
        if (is_list) {
          put_cell(store, cell, true, 1, writer);
        } else {
          writer.put(cell.begin);
        }
      }
      break;
    default:
      for (std::size_t r = 0; r < request_rows_.size(); ++r) {
        put_cell(store, store.cells[r], is_list, request_rows_[r], writer);
      }
  }
  ChunkWriter::Pages pages = writer.finish();
  group_.chunks.push_back({offset, static_cast<std::int64_t>(pages.bytes.size()), pages.values,
                           pages.dictionary_bytes});
  return std::move(pages.bytes);
}

void ImpressionFile::end_group() {
  group_.rows = rows();
  groups_.push_back(std::exchange(group_, {}));
  stores_.assign(columns_.size(), {});
  item_numbers_.clear();
  item_of_row_.clear();
  request_rows_.clear();
  scores_.clear();
  list_values_ = 0;
  bytes_.clear();
}

std::string ImpressionFile::footer() const {
  std::vector<parquet::Column> columns;
  for (const LogFileColumn& column : columns_) columns.push_back(column.column);
  return parquet::footer(columns, groups_, arrow_schema_);
}

}  // namespace widedeep
