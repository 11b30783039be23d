#include "parquet_encoder.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

namespace widedeep::parquet {
namespace {

constexpr std::int32_t kPlain = 0, kRle = 3, kRleDictionary = 8;  // Encoding
constexpr std::int32_t kDataPage = 0, kDictionaryPage = 2;        // PageType
constexpr std::int32_t kOptional = 1, kRepeated = 2;              // FieldRepetitionType
constexpr std::int32_t kUtf8 = 0, kList = 3, kMicros = 10;        // ConvertedType

void append_varint(std::uint64_t value, std::string& out) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void append_u32(std::uint32_t value, std::string& out) {
  char bytes[4];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}

// Thrift's compact protocol: fields in rising order.
class Thrift {
 public:
  void i32(int field, std::int64_t value) { number(field, 5, value); }
  void i64(int field, std::int64_t value) { number(field, 6, value); }
  void text(int field, std::string_view value) {
    head(field, 8);
    append_text(value);
  }
  void begin(int field) {
    head(field, 12);
    begin_element();
  }
  void begin_element() { last_.push_back(0); }
  void end() {
    out += '\0';
    last_.pop_back();
  }
  void begin_list(int field, int type, std::size_t n) {
    head(field, 9);
    out += static_cast<char>((n < 15 ? n << 4 : 0xf0) | static_cast<std::size_t>(type));
    if (n >= 15) append_varint(n, out);
  }
  void append_i32(std::int64_t value) { append_varint(zigzag(value), out); }
  void append_text(std::string_view value) {
    append_varint(value.size(), out);
    out += value;
  }

  std::string out;

 private:
  static std::uint64_t zigzag(std::int64_t value) {
    return static_cast<std::uint64_t>(value) << 1 ^ static_cast<std::uint64_t>(value >> 63);
  }
  void number(int field, int type, std::int64_t value) {
    head(field, type);
    append_varint(zigzag(value), out);
  }
  void head(int field, int type) {
    out += static_cast<char>((field - last_.back()) << 4 | type);
    last_.back() = field;
  }

  std::vector<int> last_{0};
};

std::string page_header(std::int32_t type, std::size_t bytes, std::uint64_t n,
                        std::int32_t encoding) {
  Thrift header;
  header.i32(1, type);
  header.i32(2, static_cast<std::int64_t>(bytes));
  header.i32(3, static_cast<std::int64_t>(bytes));
  header.begin(type == kDataPage ? 5 : 7);
  header.i32(1, static_cast<std::int64_t>(n));
  header.i32(2, encoding);
  if (type == kDataPage) {
    header.i32(3, kRle);
    header.i32(4, kRle);
  }
  header.end();
  header.end();
  return std::move(header.out);
}

// Levels have their length before them.
void append_levels(const std::string& levels, std::string& out) {
  append_u32(static_cast<std::uint32_t>(levels.size()), out);
  out += levels;
}

void append_leaf(const Column& column, Thrift& schema) {
  schema.begin_element();
  schema.i32(1, static_cast<std::int32_t>(column.type));
  schema.i32(3, kOptional);
  schema.text(4, column.is_list ? "element" : std::string_view(column.name));
  if (column.type == Physical::text) schema.i32(6, kUtf8);
  if (column.is_time) schema.i32(6, kMicros);
  schema.end();
}

void append_group(std::string_view name, std::int32_t repetition, std::int64_t n_children,
                  bool is_list, Thrift& schema) {
  schema.begin_element();
  if (repetition >= 0) schema.i32(3, repetition);
  schema.text(4, name);
  schema.i32(5, n_children);
  if (is_list) schema.i32(6, kList);
  schema.end();
}

void append_schema(const std::vector<Column>& columns, Thrift& file) {
  std::size_t n_elements = 1 + columns.size();
  for (const Column& column : columns) n_elements += column.is_list ? 2 : 0;
  file.begin_list(2, 12, n_elements);
  append_group("schema", -1, static_cast<std::int64_t>(columns.size()), false, file);
  for (const Column& column : columns) {
    if (column.is_list) {
      append_group(column.name, kOptional, 1, true, file);
      append_group("list", kRepeated, 1, false, file);
    }
    append_leaf(column, file);
  }
}

void append_chunk(const Column& column, const RowGroup::Chunk& chunk, Thrift& file) {
  file.begin_element();
  file.i64(2, chunk.offset);
  file.begin(3);
  file.i32(1, static_cast<std::int32_t>(column.type));
  file.begin_list(2, 5, 2);
  file.append_i32(kRle);
  file.append_i32(chunk.dictionary_bytes != 0 ? kRleDictionary : kPlain);
  file.begin_list(3, 8, column.is_list ? 3 : 1);
  file.append_text(column.name);
  if (column.is_list) {
    file.append_text("list");
    file.append_text("element");
  }
  file.i32(4, 0);  // uncompressed
  file.i64(5, chunk.values);
  file.i64(6, chunk.bytes);
  file.i64(7, chunk.bytes);
  file.i64(9, chunk.offset + chunk.dictionary_bytes);
  if (chunk.dictionary_bytes != 0) file.i64(11, chunk.offset);
  file.end();
  file.end();
}

}  // namespace

// ---- runs ---------------------------------------------------------------------------------------

void HybridEncoder::put(std::uint32_t value, std::uint64_t count) {
  while (count > 0 && (n_pending_ != 0 || count < kGroup)) {
    put(value);
    --count;
  }
  if (count == 0) return;
  end_literal();
  append_varint(count << 1, out_);
  for (int bits = 0; bits < width_; bits += 8) out_ += static_cast<char>(value >> bits);
}

void HybridEncoder::flush_group() {
  if (literal_ == std::string::npos) {
    literal_ = out_.size();
    out_ += '\0';
  }
  char bytes[4 * kGroup + 4];
  char* end = bytes;
  std::uint64_t packed = 0;
  int n_bits = 0;
  for (const std::uint32_t value : pending_) {
    packed |= static_cast<std::uint64_t>(value) << n_bits;
    n_bits += width_;
    if (n_bits < 32) continue;
    std::memcpy(end, &packed, 4);
    end += 4;
    packed >>= 32;
    n_bits -= 32;
  }
  std::memcpy(end, &packed, 4);
  out_.append(bytes, static_cast<std::size_t>(width_));
  n_pending_ = 0;
  if (++n_groups_ == kMostGroups) end_literal();
}

void HybridEncoder::end_literal() {
  if (literal_ == std::string::npos) return;
  out_[literal_] = static_cast<char>(n_groups_ << 1 | 1);
  literal_ = std::string::npos;
  n_groups_ = 0;
}

void HybridEncoder::finish() {
  while (n_pending_ != 0) put(0);
  end_literal();
}

std::uint32_t Dictionary::code(std::string_view plain) {
  const auto [at, is_new] = codes_.emplace(plain, size());
  if (is_new) values_.push_back(plain);
  return at->second;
}

int Dictionary::width() const {
  return std::max(1, static_cast<int>(std::bit_width(
                         static_cast<std::uint32_t>(values_.empty() ? 0 : values_.size() - 1))));
}

// ---- a column -----------------------------------------------------------------------------------

ChunkWriter::ChunkWriter(const Column& column, const Dictionary& dictionary)
    : type_(column.type),
      is_list_(column.is_list),
      dictionary_(dictionary),
      repetitions_(1, repetitions_bytes_),
      definitions_(column.is_list ? 2 : 1, definitions_bytes_),
      codes_(dictionary.width(), codes_bytes_) {}

void ChunkWriter::flush_present() {
  if (n_present_ != 0) definitions_.put(1, n_present_);
  n_levels_ += n_present_;
  n_present_ = 0;
}

void ChunkWriter::put(std::uint32_t code, std::uint64_t count) {
  if (code != kNull) {
    n_present_ += count;
    return put_value(code, count);
  }
  flush_present();
  definitions_.put(0, count);
  n_levels_ += count;
}

void ChunkWriter::put_value(std::uint32_t code, std::uint64_t count) {
  if (type_ != Physical::boolean) return codes_.put(code, count);
  const bool bit = dictionary_[code][0] != '\0';
  for (; count > 0; --count, ++n_bits_) {
    if (n_bits_ % 8 == 0) plain_bytes_ += '\0';
    plain_bytes_.back() = static_cast<char>(plain_bytes_.back() | bit << (n_bits_ % 8));
  }
}

void ChunkWriter::put_list(const std::uint32_t* codes, std::uint32_t n) {
  if (codes == nullptr || n == 0) {
    repetitions_.put(0);
    definitions_.put(codes == nullptr ? 0 : 1);
    ++n_levels_;
    return;
  }
  for (std::uint32_t i = 0; i < n; ++i) {
    repetitions_.put(i == 0 ? 0 : 1);
    definitions_.put(codes[i] == kNull ? 2 : 3);
    if (codes[i] != kNull) put_value(codes[i], 1);
  }
  n_levels_ += n;
}

void ChunkWriter::put_plain(std::string_view bytes, std::uint64_t count) {
  plain_bytes_ += bytes;
  n_present_ += count;
}

ChunkWriter::Pages ChunkWriter::finish() {
  Pages pages;
  flush_present();
  repetitions_.finish();
  definitions_.finish();
  codes_.finish();
  const bool is_coded = !codes_bytes_.empty();
  if (is_coded) {
    std::string values;
    for (std::uint32_t code = 0; code < dictionary_.size(); ++code) values += dictionary_[code];
    pages.bytes = page_header(kDictionaryPage, values.size(), dictionary_.size(), kPlain);
    pages.bytes += values;
    pages.dictionary_bytes = static_cast<std::int64_t>(pages.bytes.size());
  }
  std::string page;
  page.reserve(repetitions_bytes_.size() + definitions_bytes_.size() + codes_bytes_.size() +
               plain_bytes_.size() + 16);
  if (is_list_) append_levels(repetitions_bytes_, page);
  append_levels(definitions_bytes_, page);
  if (is_coded) page += static_cast<char>(dictionary_.width());
  page += codes_bytes_;
  page += plain_bytes_;
  pages.bytes += page_header(kDataPage, page.size(), n_levels_, is_coded ? kRleDictionary : kPlain);
  pages.bytes += page;
  pages.values = static_cast<std::int64_t>(n_levels_);
  return pages;
}

// ---- the footer ---------------------------------------------------------------------------------

std::string footer(const std::vector<Column>& columns, const std::vector<RowGroup>& groups,
                   const std::string& arrow_schema) {
  Thrift file;
  file.i32(1, 2);  // version
  append_schema(columns, file);
  const auto total = [](std::int64_t sum, const RowGroup& group) { return sum + group.rows; };
  file.i64(3, std::accumulate(groups.begin(), groups.end(), std::int64_t{0}, total));
  file.begin_list(4, 12, groups.size());
  for (const RowGroup& group : groups) {
    file.begin_element();
    file.begin_list(1, 12, columns.size());
    std::int64_t bytes = 0;
    for (std::size_t c = 0; c < columns.size(); ++c) {
      append_chunk(columns[c], group.chunks[c], file);
      bytes += group.chunks[c].bytes;
    }
    file.i64(2, bytes);
    file.i64(3, group.rows);
    file.end();
  }
  file.begin_list(5, 12, 1);
  file.begin_element();
  file.text(1, "ARROW:schema");
  file.text(2, arrow_schema);
  file.end();
  file.text(6, "widedeep");
  file.end();
  append_u32(static_cast<std::uint32_t>(file.out.size()), file.out);
  file.out += "PAR1";
  return std::move(file.out);
}

}  // namespace widedeep::parquet
