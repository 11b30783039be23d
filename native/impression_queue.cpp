#include "impression_queue.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "blake2b.hpp"

namespace widedeep {
namespace {

template <class T>
void append_plain(T value, std::string& out) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

void append_text(std::string_view text, std::string& out) {
  append_plain(static_cast<std::uint32_t>(text.size()), out);
  out += text;
}

std::size_t as_size(std::int64_t n) { return static_cast<std::size_t>(n); }

// ---- a request's values -------------------------------------------------------------------------

// False if the value is of another kind than the column: it is converted elsewhere.
bool append_variant(const Variant& value, LogKind kind, std::string& out) {
  using Tag = Variant::Tag;
  out += value.tag == Tag::null ? '\0' : '\1';
  if (value.tag == Tag::null) return true;
  switch (kind) {
    case LogKind::text:
      if (value.tag != Tag::text) return false;
      append_text({value.text, as_size(value.length)}, out);
      return true;
    case LogKind::integer:
      if (value.tag != Tag::integer) return false;
      append_plain(value.integer, out);
      return true;
    case LogKind::boolean:
      if (value.tag != Tag::boolean) return false;
      out += static_cast<char>(value.integer);
      return true;
    default:
      break;
  }
  if (value.tag != Tag::integer && value.tag != Tag::real) return false;
  const double real = value.tag == Tag::real ? value.real : static_cast<double>(value.integer);
  if (kind == LogKind::real) {
    append_plain(real, out);
  } else {
    append_plain(static_cast<float>(real), out);
  }
  return true;
}

// Of a column with one row, as RankRequestReader makes them.
bool append_cell(const Column& cell, const LogColumn& column, std::string& out) {
  const auto* const values = static_cast<const Variant*>(cell.values.data);
  const bool is_list = cell.list != ListLayer::none;
  if (!is_list && values->tag == Variant::Tag::null) {
    if (column.is_list) append_plain(std::uint32_t{0}, out);
    return column.is_list || append_variant(*values, column.kind, out);
  }
  if (is_list != column.is_list) return false;
  if (!is_list) return append_variant(*values, column.kind, out);
  append_plain(static_cast<std::uint32_t>(cell.values.length + 1), out);
  return std::all_of(values, values + cell.values.length,
                     [&](const Variant& value) { return append_variant(value, column.kind, out); });
}

// `kind` tells of which stream the request is.
void append_user(const Variant& value, const std::string& key, int& kind, std::string& out) {
  const bool is_text = value.tag == Variant::Tag::text;
  kind = is_text || !key.empty() ? 1 : 0;
  std::string digits;
  if (!is_text && kind == 1) digits = std::to_string(value.integer);
  const std::string_view text =
      is_text ? std::string_view(value.text, as_size(value.length)) : std::string_view(digits);
  if (kind == 0) {
    append_plain(value.integer, out);
  } else if (key.empty()) {
    append_text(text, out);
  } else {
    append_text(blake2b_hex(text, key), out);
  }
}

// ---- an item's values ---------------------------------------------------------------------------

std::string_view text_at(const Scalars& texts, std::int64_t i) {
  const std::int64_t at = texts.offset + i;
  std::int64_t begin = 0, end = 0;
  if (texts.type == Physical::text32) {
    begin = load_as<std::int32_t>(texts.data, at);
    end = load_as<std::int32_t>(texts.data, at + 1);
  } else {
    begin = load_as<std::int64_t>(texts.data, at);
    end = load_as<std::int64_t>(texts.data, at + 1);
  }
  return {texts.text + begin, as_size(end - begin)};
}

void append_scalar(const Scalars& values, std::int64_t i, LogKind kind, std::string& out) {
  const std::int64_t at = values.offset + i;
  switch (kind) {
    case LogKind::text:
      return append_text(text_at(values, i), out);
    case LogKind::integer:
      return append_plain(load_as<std::int64_t>(values.data, at), out);
    case LogKind::real:
      return append_plain(load_as<double>(values.data, at), out);
    case LogKind::real32:
      return append_plain(load_as<float>(values.data, at), out);
    case LogKind::boolean:
      out += bit_at(static_cast<const std::uint8_t*>(values.data), at) ? '\1' : '\0';
  }
}

void append_element(const Scalars& values, std::int64_t i, LogKind kind, std::string& out) {
  const bool is_null = values.validity != nullptr && !bit_at(values.validity, values.offset + i);
  out += is_null ? '\0' : '\1';
  if (!is_null) append_scalar(values, i, kind, out);
}

void append_item(const LogShape& shape, std::int64_t row, std::string& out) {
  const std::vector<Column>& columns = *shape.items;
  const Scalars& ids = columns[0].values;
  append_scalar(ids, row, ids.type == Physical::int64 ? LogKind::integer : LogKind::text, out);
  for (std::size_t c = 0; c < shape.item_columns.size(); ++c) {
    const Column& column = columns[c + 1];
    const LogKind kind = shape.item_columns[c].kind;
    if (!shape.item_columns[c].is_list) {
      append_element(column.values, row, kind, out);
    } else if (row_is_null(column, row)) {
      append_plain(std::uint32_t{0}, out);
    } else {
      const ElementRange range = elements_of(column, row);
      append_plain(static_cast<std::uint32_t>(range.end - range.begin + 1), out);
      for (std::int64_t i = range.begin; i < range.end; ++i) {
        append_element(column.values, i, kind, out);
      }
    }
  }
}

// ---- records ------------------------------------------------------------------------------------

// What one thread puts a request together with.
struct Draft {
  std::string head;   // time and ids
  std::string cells;  // the request's values
};

void begin_record(char tag, std::size_t length, std::string& out) {
  out += tag;
  append_plain(static_cast<std::uint32_t>(length), out);
}

// The item's number in the chunk, which holds it from now on.
std::uint32_t number_of(const LogShape& shape, LogStream& stream, std::int64_t row) {
  const std::size_t at = as_size(row);
  if (stream.chunk_of_item.empty()) {  // most logs have one kind of users alone
    stream.chunk_of_item.resize(as_size(shape.n_items));
    stream.number_of_item.resize(as_size(shape.n_items));
  }
  if (stream.chunk_of_item[at] == stream.chunk) return stream.number_of_item[at];
  stream.chunk_of_item[at] = stream.chunk;
  stream.number_of_item[at] = stream.items;
  const std::size_t start = stream.bytes.size();
  begin_record('i', 0, stream.bytes);
  append_item(shape, row, stream.bytes);
  const auto length = static_cast<std::uint32_t>(stream.bytes.size() - start - 5);
  std::memcpy(stream.bytes.data() + start + 1, &length, sizeof length);
  return stream.items++;
}

void append_request(const LogShape& shape, const LoggedAnswer& answer, const Draft& draft,
                    LogStream& stream) {
  thread_local std::vector<std::uint32_t> items;
  items.clear();
  for (const std::int64_t place : answer.order) {
    items.push_back(number_of(shape, stream, answer.positions[as_size(place)]));
  }
  const std::size_t n = items.size(), item_bytes = n * sizeof(items[0]),
                    score_bytes = n * sizeof(double);
  std::string& out = stream.bytes;
  begin_record('r', draft.head.size() + 4 + item_bytes + score_bytes + draft.cells.size(), out);
  out += draft.head;
  append_plain(static_cast<std::uint32_t>(n), out);
  out.append(reinterpret_cast<const char*>(items.data()), item_bytes);
  out.append(reinterpret_cast<const char*>(answer.scores.data()), score_bytes);
  out += draft.cells;
  ++stream.requests;
  stream.rows += static_cast<std::int64_t>(n);
}

}  // namespace

void LogShape::place(const SideNames& names) {
  const auto cell_of = [&](const std::string& name) {
    const int cell = names.find(name, 0);
    if (cell < 0) throw std::invalid_argument("no column of a request: " + name);
    return cell;
  };
  user_cell = cell_of(user_column);
  for (const std::string& name : query_names) query_cells.push_back(cell_of(name));
}

bool ImpressionQueue::offer(const LogShape& shape, const LoggedAnswer& answer,
                            Clock::time_point latest) {
  thread_local Draft draft;
  const bool sampled = is_sampled(answer.id);
  const std::vector<Column>& cells = answer.reader.columns();
  const Column& user_cell = cells[as_size(shape.user_cell)];
  if (sampled && user_cell.list != ListLayer::none) return false;  // it may be empty
  const auto& user = *static_cast<const Variant*>(user_cell.values.data);
  const bool has_user = sampled &&
                        (user.tag == Variant::Tag::integer || user.tag == Variant::Tag::text) &&
                        answer.reader.is_of_user(shape.user_column);
  int kind = 0;
  if (has_user) {
    // An integer beyond 64 bits, which has another tag: Python says what it thinks.
    draft.head.clear();
    append_plain(answer.time_us, draft.head);
    append_text(answer.id, draft.head);
    append_user(user, options_.hash_key, kind, draft.head);
    draft.cells.clear();
    for (std::size_t c = 0; c < shape.query_cells.size(); ++c) {
      const Column& cell = cells[as_size(shape.query_cells[c])];
      if (!append_cell(cell, shape.query_columns[c], draft.cells)) return false;
    }
    const auto in_catalogue = [&](std::int64_t place) {
      return answer.positions[as_size(place)] >= 0;
    };
    if (!std::all_of(answer.order.begin(), answer.order.end(), in_catalogue)) return false;
  } else if (sampled && user.tag != Variant::Tag::null && user.tag != Variant::Tag::boolean) {
    return false;
  }
  std::unique_lock lock(mutex_);
  ++counts_.offered;
  counts_.left_out += sampled ? 0 : 1;
  counts_.without_user += sampled && !has_user ? 1 : 0;
  if (!has_user) return true;
  const auto has_room = [&] { return closed_ || bytes_ < options_.most_bytes; };
  if (options_.waits && !is_stuck_ && !has_room()) {
    const Clock::time_point start = Clock::now();
    const bool is_in_vain = !room_.wait_until(lock, latest, has_room);
    is_stuck_ = is_stuck_ || (is_in_vain && Clock::now() - start >= options_.stuck);
  }
  if (closed_ || bytes_ >= options_.most_bytes) {
    ++counts_.dropped;
    counts_.dropped_rows += static_cast<std::int64_t>(answer.order.size());
    return true;
  }
  const std::shared_ptr<LogStream>& stream = shape.streams[kind];
  if (stream->bytes.empty()) waiting_.push_back(stream);
  const std::size_t before = stream->bytes.size();
  append_request(shape, answer, draft, *stream);
  bytes_ += stream->bytes.size() - before;
  if (stream->bytes.size() >= options_.chunk_bytes) {
    close_chunk(*stream);
    std::erase(waiting_, stream);
  }
  return true;
}

// With the lock held.
void ImpressionQueue::close_chunk(LogStream& stream) {
  closed_chunks_.push_back({stream.header, std::exchange(stream.bytes, {}),
                            std::exchange(stream.requests, 0), std::exchange(stream.rows, 0)});
  stream.items = 0;
  ++stream.chunk;
}

std::vector<ImpressionQueue::Chunk> ImpressionQueue::take() {
  std::vector<Chunk> chunks;
  {
    const std::lock_guard lock(mutex_);
    for (const std::shared_ptr<LogStream>& stream : waiting_) close_chunk(*stream);
    waiting_.clear();
    chunks.swap(closed_chunks_);
    bytes_ = 0;
    is_stuck_ = false;
  }
  room_.notify_all();
  return chunks;
}

LogCounts ImpressionQueue::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

void ImpressionQueue::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  room_.notify_all();
}

bool ImpressionQueue::is_sampled(std::string_view id) const {
  if (options_.sample >= 1) return true;
  const auto place = static_cast<long double>(blake2b_64(id, "impressions"));
  return place < static_cast<long double>(options_.sample * 18446744073709551616.0);
}

}  // namespace widedeep
