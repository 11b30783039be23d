// The body of a request for scores by the Open Inference Protocol, read strictly: columns as
// tensors, in JSON or behind it as bytes. What is unusual or wrong is left to the full server.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "json_reader.hpp"
#include "rank_request.hpp"

namespace widedeep {

struct InferNames {
  SideNames columns;            // that the model reads
  std::vector<bool> is_nested;  // whether a row of the column is a list
  std::vector<std::string> outputs;
};

struct InferOutput {
  std::size_t index = 0;   // among the names of outputs
  bool is_binary = false;  // as bytes behind the JSON
};

// Used again and again by one thread.
class InferRequestReader : private JsonReader {
 public:
  // False if the full server must read it. Of the body, `json_length` bytes are JSON. Both must
  // outlive what is read.
  bool read(std::string_view body, std::size_t json_length, const InferNames& names);

  // One column a name; nulls where the request has none.
  const std::vector<Column>& columns() const noexcept { return columns_; }
  std::int64_t n_rows() const noexcept { return n_rows_; }
  // Values of all columns, a null for what is absent.
  std::int64_t n_values() const noexcept;
  const std::vector<InferOutput>& outputs() const noexcept { return outputs_; }
  // Empty if the body has none; else as it stands there, between its quotes.
  std::string_view id() const noexcept { return id_; }

 private:
  struct Tensor {
    std::string_view name;
    std::string_view datatype;
    std::vector<std::int64_t> shape;
    std::int64_t bytes = -1;  // behind the JSON; -1: the values stand in it
    std::size_t begin = 0;    // of its values
    std::size_t count = 0;
    bool has_data = false;
  };

  bool read_member(std::string_view name);
  bool read_inputs();
  bool read_input(Tensor& tensor);
  bool read_input_member(std::string_view name, Tensor& tensor);
  bool read_shape(Tensor& tensor);
  bool read_data(Tensor& tensor);
  bool read_outputs();
  bool read_parameter(std::string_view expected, Variant& value);
  bool finish(const InferNames& names);
  bool place(Tensor& tensor, const InferNames& names);
  bool take_values(Tensor& tensor);
  bool take_bytes(Tensor& tensor);
  bool take_texts(std::string_view bytes);
  bool take_numbers(std::string_view bytes, std::string_view datatype);

  std::string_view binary_;  // what is not yet taken of it
  std::vector<Tensor> tensors_;
  std::size_t n_tensors_ = 0;
  std::vector<Variant> values_;
  std::vector<Column> columns_;
  std::vector<std::int64_t> ends_;
  std::vector<std::uint8_t> all_valid_;
  std::vector<Variant> nulls_;
  std::vector<std::size_t> begins_;  // of each column's values
  std::vector<std::size_t> counts_;  // of them; the largest number for what is absent
  std::vector<std::string_view> output_names_;
  std::vector<std::int8_t> output_forms_;  // 1: bytes, 0: JSON, -1: not told
  std::vector<InferOutput> outputs_;
  std::int64_t n_rows_ = 0;
  std::string_view id_;
  bool has_inputs_ = false;
  bool has_outputs_ = false;
  bool all_binary_ = false;
};

}  // namespace widedeep
