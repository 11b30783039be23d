#include "infer_request.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

namespace widedeep {
namespace {

constexpr std::size_t kAbsent = std::numeric_limits<std::size_t>::max();
constexpr std::size_t kMostInputs = 4096;
constexpr std::int64_t kMostRows = 16'384;  // as many as Python scores at once
constexpr std::int64_t kMostValues = std::int64_t{1} << 24;

enum class Type : std::uint8_t { none, boolean, integer, natural, real, text };

struct Datatype {
  std::string_view name;
  Type type;
  int bytes;  // of a value; 0: each tells its own
};

constexpr std::array<Datatype, 12> kDatatypes = {{{"BOOL", Type::boolean, 1},
                                                  {"INT8", Type::integer, 1},
                                                  {"INT16", Type::integer, 2},
                                                  {"INT32", Type::integer, 4},
                                                  {"INT64", Type::integer, 8},
                                                  {"UINT8", Type::natural, 1},
                                                  {"UINT16", Type::natural, 2},
                                                  {"UINT32", Type::natural, 4},
                                                  {"UINT64", Type::natural, 8},
                                                  {"FP32", Type::real, 4},
                                                  {"FP64", Type::real, 8},
                                                  {"BYTES", Type::text, 0}}};

Datatype datatype_named(std::string_view name) {
  const auto at = std::find_if(kDatatypes.begin(), kDatatypes.end(),
                               [&](const Datatype& each) { return each.name == name; });
  return at == kDatatypes.end() ? Datatype{{}, Type::none, 0} : *at;
}

// The low bytes of a number, the lowest first.
std::uint64_t little_endian(const char* bytes, int n) {
  std::uint64_t bits = 0;
  for (int i = n - 1; i >= 0; --i) bits = bits << 8 | static_cast<std::uint8_t>(bytes[i]);
  return bits;
}

Variant natural(std::uint64_t bits) {
  Variant value{};
  value.tag = bits >> 63 != 0 ? Variant::Tag::unsigned_integer : Variant::Tag::integer;
  value.integer = static_cast<std::int64_t>(bits);
  return value;
}

Variant integer(std::uint64_t bits, int n_bytes) {
  Variant value{};
  value.tag = Variant::Tag::integer;
  const int unused = 64 - 8 * n_bytes;
  value.integer = static_cast<std::int64_t>(bits << unused) >> unused;
  return value;
}

Variant real(double number) {
  Variant value{};
  value.tag = Variant::Tag::real;
  value.real = number;
  return value;
}

Variant number_of(const char* bytes, const Datatype& datatype) {
  const std::uint64_t bits = little_endian(bytes, datatype.bytes);
  if (datatype.type == Type::natural) return natural(bits);
  if (datatype.type == Type::integer) return integer(bits, datatype.bytes);
  if (datatype.bytes == 4) {
    float number = 0;
    const auto low = static_cast<std::uint32_t>(bits);
    std::memcpy(&number, &low, sizeof number);
    return real(static_cast<double>(number));
  }
  double number = 0;
  std::memcpy(&number, &bits, sizeof number);
  return real(number);
}

bool is_within(const Variant& value, const Datatype& datatype) {
  const bool is_large = value.tag == Variant::Tag::unsigned_integer;
  if (!is_large && value.tag != Variant::Tag::integer) return false;
  const int bits = 8 * datatype.bytes;
  if (datatype.type == Type::natural) {
    if (!is_large && value.integer < 0) return false;
    return bits == 64 || static_cast<std::uint64_t>(value.integer) >> bits == 0;
  }
  if (is_large) return false;
  const std::int64_t limit = std::numeric_limits<std::int64_t>::max() >> (64 - bits);
  return value.integer <= limit && value.integer >= -limit - 1;
}

// A value of a JSON tensor as the full server converts it; false for what it refuses or rounds.
bool convert(const Datatype& datatype, Variant& value) {
  if (value.tag == Variant::Tag::null) return true;
  if (datatype.type == Type::boolean) return value.tag == Variant::Tag::boolean;
  if (datatype.type == Type::text) return value.tag == Variant::Tag::text;
  if (datatype.type != Type::real) return is_within(value, datatype);
  double number = value.real;
  if (value.tag == Variant::Tag::integer) {
    number = static_cast<double>(value.integer);
  } else if (value.tag != Variant::Tag::real) {
    return false;
  }
  if (datatype.bytes == 4) {
    const double largest = static_cast<double>(std::numeric_limits<float>::max());
    if (number > largest || number < -largest) return false;
    number = static_cast<double>(static_cast<float>(number));
  }
  value = real(number);
  return true;
}

// The product of sizes; -1 beyond what is taken on.
std::int64_t product(const std::vector<std::int64_t>& sizes, std::size_t from) {
  std::int64_t n = 1;
  for (std::size_t i = from; i < sizes.size(); ++i) {
    if (sizes[i] != 0 && n > kMostValues / sizes[i]) return -1;
    n *= sizes[i];
  }
  return n;
}

}  // namespace

bool InferRequestReader::read(std::string_view body, std::size_t json_length,
                              const InferNames& names) {
  if (json_length > body.size()) return false;
  start(body.substr(0, json_length));
  binary_ = body.substr(json_length);
  values_.clear();
  n_tensors_ = 0;
  output_names_.clear();
  output_forms_.clear();
  id_ = {};
  has_inputs_ = has_outputs_ = all_binary_ = false;
  const auto member = [&](std::string_view name) { return read_member(name); };
  return read_object(member) && is_over() && has_inputs_ && finish(names);
}

bool InferRequestReader::read_member(std::string_view name) {
  if (name == "inputs") return !has_inputs_ && (has_inputs_ = true, read_inputs());
  if (name == "outputs") return !has_outputs_ && (has_outputs_ = true, read_outputs());
  if (name == "id") return id_.empty() && read_id(id_);
  Variant value{};
  if (name != "parameters" || !read_parameter("binary_data_output", value)) return false;
  all_binary_ = value.tag == Variant::Tag::boolean && value.integer != 0;
  return true;
}

// {} or the one parameter; `value` stays as it is without it.
bool InferRequestReader::read_parameter(std::string_view expected, Variant& value) {
  if (!take('{')) return false;
  if (take('}')) return true;
  std::string_view name;
  return read_text(name) && name == expected && take(':') && read_value(value) && take('}');
}

bool InferRequestReader::read_inputs() {
  const auto add_input = [&] {
    if (n_tensors_ == kMostInputs) return false;
    if (tensors_.size() == n_tensors_) tensors_.emplace_back();
    return read_input(tensors_[n_tensors_++]);
  };
  return read_list(add_input) && n_tensors_ > 0;
}

bool InferRequestReader::read_input(Tensor& tensor) {
  tensor.name = tensor.datatype = {};
  tensor.shape.clear();
  tensor.bytes = -1;
  tensor.has_data = false;
  tensor.count = 0;
  const auto member = [&](std::string_view name) { return read_input_member(name, tensor); };
  // Neither, or both, are for the full server to judge.
  return read_object(member) && tensor.has_data != (tensor.bytes >= 0) && !tensor.shape.empty() &&
         tensor.name.data() != nullptr;
}

bool InferRequestReader::read_input_member(std::string_view name, Tensor& tensor) {
  if (name == "name") return tensor.name.data() == nullptr && read_text(tensor.name);
  if (name == "datatype") return tensor.datatype.empty() && read_text(tensor.datatype);
  if (name == "shape") return tensor.shape.empty() && read_shape(tensor);
  if (name == "data") return !tensor.has_data && read_data(tensor);
  if (name != "parameters" || tensor.bytes >= 0) return false;
  Variant value{};
  if (!read_parameter("binary_data_size", value)) return false;
  if (value.tag == Variant::Tag::null) return true;
  if (value.tag != Variant::Tag::integer || value.integer < 0) return false;
  tensor.bytes = value.integer;
  return true;
}

bool InferRequestReader::read_shape(Tensor& tensor) {
  const auto add_size = [&] {
    Variant value{};
    if (!read_value(value) || value.tag != Variant::Tag::integer || value.integer < 0) return false;
    tensor.shape.push_back(value.integer);
    return true;
  };
  return read_list(add_size) && !tensor.shape.empty() && tensor.shape.size() <= 8;
}

// A flat list of values.
bool InferRequestReader::read_data(Tensor& tensor) {
  tensor.has_data = true;
  tensor.begin = values_.size();
  const bool is_read = read_list([&] {
    Variant value{};
    if (!read_value(value)) return false;
    values_.push_back(value);
    return true;
  });
  tensor.count = values_.size() - tensor.begin;
  return is_read;
}

bool InferRequestReader::read_outputs() {
  return read_list([&] {
    std::string_view text;
    std::int8_t form = -1;
    const auto member = [&](std::string_view name) {
      if (name == "name") return text.data() == nullptr && read_text(text);
      Variant value{};
      value.integer = -1;
      if (name != "parameters" || form >= 0 || !read_parameter("binary_data", value)) return false;
      if (value.tag == Variant::Tag::null && value.integer < 0) return true;  // {}
      form = value.tag == Variant::Tag::boolean && value.integer == 1 ? 1 : 0;
      return true;
    };
    if (!read_object(member) || text.data() == nullptr) return false;
    output_names_.push_back(text);
    output_forms_.push_back(form);
    return true;
  });
}

std::int64_t InferRequestReader::n_values() const noexcept {
  std::int64_t n = 0;
  for (const std::size_t count : counts_) {
    n += count == kAbsent ? n_rows_ : static_cast<std::int64_t>(count);
  }
  return n;
}

// Makes columns of the tensors; addresses are taken when all values are there.
bool InferRequestReader::finish(const InferNames& names) {
  const std::size_t n_columns = names.columns.columns().size();
  n_rows_ = tensors_[0].shape[0];
  if (n_rows_ == 0 || n_rows_ > kMostRows) return false;
  begins_.assign(n_columns, 0);
  counts_.assign(n_columns, kAbsent);
  columns_.assign(n_columns, {});
  ends_.clear();
  for (std::size_t t = 0; t < n_tensors_; ++t) {
    if (!place(tensors_[t], names)) return false;
  }
  if (!binary_.empty()) return false;
  const auto n_rows = static_cast<std::size_t>(n_rows_);
  if (nulls_.size() < n_rows) nulls_.resize(n_rows);
  if (all_valid_.size() < n_rows / 8 + 1) all_valid_.assign(n_rows / 8 + 1, 0xff);
  for (std::size_t c = 0; c < n_columns; ++c) {
    Column& column = columns_[c];
    const bool is_absent = counts_[c] == kAbsent;
    column.length = n_rows_;
    column.values.type = Physical::variant;
    column.values.data = is_absent ? nulls_.data() : values_.data() + begins_[c];
    column.values.length = is_absent ? n_rows_ : static_cast<std::int64_t>(counts_[c]);
    if (is_absent || !names.is_nested[c]) continue;
    const std::size_t width = counts_[c] / n_rows;
    column.list_offset = static_cast<std::int64_t>(ends_.size());  // for a while
    for (std::size_t row = 0; row <= n_rows; ++row) {
      ends_.push_back(static_cast<std::int64_t>(row * width));
    }
    column.list = ListLayer::list64;
    column.list_validity = all_valid_.data();
  }
  for (Column& column : columns_) {
    if (column.list == ListLayer::none) continue;
    column.list_offsets = ends_.data() + std::exchange(column.list_offset, 0);
  }
  outputs_.clear();
  if (output_names_.empty()) {
    for (std::size_t i = 0; i < names.outputs.size(); ++i) outputs_.push_back({i, all_binary_});
  }
  for (std::size_t i = 0; i < output_names_.size(); ++i) {
    const auto at = std::find(names.outputs.begin(), names.outputs.end(), output_names_[i]);
    const auto same = [&](std::string_view name) { return name == output_names_[i]; };
    const auto before = output_names_.begin() + static_cast<std::ptrdiff_t>(i);
    // One that is asked for twice is for the full server to refuse.
    if (at == names.outputs.end() || i >= names.outputs.size() ||
        std::any_of(output_names_.begin(), before, same)) {
      return false;
    }
    const bool is_binary = output_forms_[i] < 0 ? all_binary_ : output_forms_[i] == 1;
    outputs_.push_back({static_cast<std::size_t>(at - names.outputs.begin()), is_binary});
  }
  return true;
}

// The values of a tensor as those of its column.
bool InferRequestReader::place(Tensor& tensor, const InferNames& names) {
  const int found = names.columns.find(tensor.name, static_cast<int>(&tensor - tensors_.data()));
  if (found < 0) return false;
  const auto column = static_cast<std::size_t>(found);
  const std::int64_t n = product(tensor.shape, 0);
  const bool is_single = product(tensor.shape, 1) == 1;
  if (n < 0 || tensor.shape[0] != n_rows_ || counts_[column] != kAbsent) return false;
  if (!is_single && !names.is_nested[column]) return false;
  if (tensor.bytes < 0 ? !take_values(tensor) : !take_bytes(tensor)) return false;
  if (static_cast<std::int64_t>(tensor.count) != n) return false;
  begins_[column] = tensor.begin;
  counts_[column] = tensor.count;
  return true;
}

bool InferRequestReader::take_values(Tensor& tensor) {
  const Datatype datatype = datatype_named(tensor.datatype);
  if (datatype.type == Type::none) return false;
  for (std::size_t i = 0; i < tensor.count; ++i) {
    if (!convert(datatype, values_[tensor.begin + i])) return false;
  }
  return true;
}

bool InferRequestReader::take_bytes(Tensor& tensor) {
  const auto size = static_cast<std::size_t>(tensor.bytes);
  if (size > binary_.size()) return false;
  const std::string_view bytes = binary_.substr(0, size);
  binary_.remove_prefix(size);
  tensor.begin = values_.size();
  if (tensor.datatype == "BYTES" ? !take_texts(bytes) : !take_numbers(bytes, tensor.datatype)) {
    return false;
  }
  tensor.count = values_.size() - tensor.begin;
  return true;
}

// Texts, each behind its length.
bool InferRequestReader::take_texts(std::string_view bytes) {
  constexpr std::size_t kPrefix = 4;
  while (!bytes.empty()) {
    if (bytes.size() < kPrefix) return false;
    const std::uint64_t length = little_endian(bytes.data(), kPrefix);
    bytes.remove_prefix(kPrefix);
    if (length > bytes.size()) return false;
    Variant value{};
    value.tag = Variant::Tag::text;
    value.text = bytes.data();
    value.length = static_cast<std::int64_t>(length);
    values_.push_back(value);
    bytes.remove_prefix(length);
  }
  return true;
}

bool InferRequestReader::take_numbers(std::string_view bytes, std::string_view name) {
  const Datatype datatype = datatype_named(name);
  if (datatype.type == Type::none) return false;
  const auto width = static_cast<std::size_t>(datatype.bytes);
  if (bytes.size() % width != 0) return false;
  values_.reserve(values_.size() + bytes.size() / width);
  for (; !bytes.empty(); bytes.remove_prefix(width)) {
    if (datatype.type != Type::boolean) {
      values_.push_back(number_of(bytes.data(), datatype));
      continue;
    }
    Variant value{};
    value.tag = Variant::Tag::boolean;
    value.integer = bytes[0];
    if (value.integer != 0 && value.integer != 1) return false;
    values_.push_back(value);
  }
  return true;
}

}  // namespace widedeep
