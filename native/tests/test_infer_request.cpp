#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "check.hpp"
#include "infer_request.hpp"
#include "json_number.hpp"

namespace widedeep {
namespace {

const InferNames& names() {
  static const InferNames made{{{"age", "tags"}, {}}, {false, true}, {"click", "buy"}};
  return made;
}

// From a buffer without a byte to spare, so that a sanitizer sees a read beyond its end.
bool reads(InferRequestReader& reader, const std::string& json, const std::string& bytes,
           std::vector<char>& kept) {
  const std::string body = json + bytes;
  kept.assign(body.begin(), body.end());
  kept.shrink_to_fit();
  return reader.read({kept.data(), kept.size()}, json.size(), names());
}

const Variant& value_at(const Column& column, std::int64_t i) {
  return static_cast<const Variant*>(column.values.data)[i];
}

}  // namespace

TEST(tensors_are_read_from_json_and_from_bytes) {
  InferRequestReader reader;
  std::vector<char> kept;
  const std::string age =
      R"({"name":"age","shape":[2,1],"datatype":"INT16","parameters":{"binary_data_size":4}})";
  const std::string tags =
      R"({"name":"tags","shape":[2,2],"datatype":"BYTES","data":["a",null,"b","\u00e9"]})";
  CHECK(reads(reader, "{\"inputs\":[" + tags + "," + age + "],\"id\":\"r1\"}",
              std::string("\xff\xff\x02\x01", 4), kept));
  CHECK(reader.n_rows() == 2 && reader.id() == "r1" && reader.n_values() == 6);
  const Column& ages = reader.columns()[0];
  CHECK(value_at(ages, 0).integer == -1 && value_at(ages, 1).integer == 258);
  const Column& lists = reader.columns()[1];
  CHECK(elements_of(lists, 1).begin == 2 && elements_of(lists, 1).end == 4);
  CHECK(value_at(lists, 1).tag == Variant::Tag::null && value_at(lists, 3).length == 2);
  CHECK(reader.outputs().size() == 2 && !reader.outputs()[0].is_binary);
  CHECK(reads(reader,
              R"({"inputs":[{"name":"age","shape":[1],"datatype":"FP32","data":[0.1]}],"outputs":)"
              R"([{"name":"buy","parameters":{"binary_data":true}}]})",
              "", kept));
  CHECK(value_at(reader.columns()[0], 0).real == static_cast<double>(0.1F));
  CHECK(reader.columns()[1].list == ListLayer::none && reader.columns()[1].length == 1);
  CHECK(reader.outputs().size() == 1 && reader.outputs()[0].index == 1 &&
        reader.outputs()[0].is_binary);
}

TEST(tensors_that_are_wrong_or_unusual_are_left_alone) {
  InferRequestReader reader;
  std::vector<char> kept;
  for (const char* tensor :
       {R"({"name":"age","shape":[2],"datatype":"INT8","data":[1]})",
        R"({"name":"age","shape":[1],"datatype":"INT8","data":[128]})",
        R"({"name":"age","shape":[1],"datatype":"UINT8","data":[-1]})",
        R"({"name":"age","shape":[1],"datatype":"FP16","data":[1]})",
        R"({"name":"age","shape":[1],"datatype":"INT8","data":[1.5]})",
        R"({"name":"age","shape":[1],"datatype":"BOOL","data":[1]})",
        R"({"name":"age","shape":[1,2],"datatype":"INT8","data":[1,2]})",
        R"({"name":"age","shape":[],"datatype":"INT8","data":[1]})",
        R"({"name":"age","shape":[0],"datatype":"INT8","data":[]})",
        R"({"name":"age","shape":[1],"datatype":"INT8"})",
        R"({"name":"agee","shape":[1],"datatype":"INT8","data":[1]})",
        R"({"name":"tags","shape":[4000000,4000000,9],"datatype":"INT8","data":[1]})",
        R"({"name":"age","shape":[1],"datatype":"INT8","data":[[1]]})",
        R"({"name":"age","shape":[1],"datatype":"INT8","parameters":{"binary_data_size":1}})"}) {
    CHECK(!reads(reader, std::string("{\"inputs\":[") + tensor + "]}", "", kept));
  }
  const std::string text = R"({"name":"tags","shape":[1,1],"datatype":"BYTES","parameters":)";
  for (const auto& [size, bytes] :
       std::vector<std::pair<std::string, std::string>>{{"5", std::string("\x02\0\0\0a", 5)},
                                                        {"3", std::string("\x01\0\0", 3)},
                                                        {"5", std::string("\x01\0\0\0ab", 6)},
                                                        {"9", std::string("\xff\xff\xff\xff"
                                                                          "aaaaa",
                                                                          9)}}) {
    CHECK(!reads(reader, "{\"inputs\":[" + text + "{\"binary_data_size\":" + size + "}}]}", bytes,
                 kept));
  }
  CHECK(reads(reader, "{\"inputs\":[" + text + "{\"binary_data_size\":5}}]}",
              std::string("\x01\0\0\0a", 5), kept));
  const std::string age = R"({"name":"age","shape":[1],"datatype":"INT8","data":[1]})";
  CHECK(!reads(reader, "{\"inputs\":[" + age + "," + age + "]}", "", kept));
  CHECK(!reads(reader, "{\"inputs\":[" + age + "],\"outputs\":[{\"name\":\"x\"}]}", "", kept));
  CHECK(!reads(reader, "{\"inputs\":[]}", "", kept) && !reads(reader, "{}", "", kept));
}

TEST(numbers_have_the_digits_of_python) {
  for (const auto& [number, text] : std::vector<std::pair<double, std::string>>{
           {0, "0.0"},
           {-0.0, "-0.0"},
           {1, "1.0"},
           {1e15, "1000000000000000.0"},
           {1e16, "1e16"},
           {0.00001, "0.00001"},
           {1.5e-6, "1.5e-6"},
           {123.25, "123.25"},
           {5e-324, "5e-324"},
           {1.7976931348623157e308, "1.7976931348623157e308"},
           {0.1, "0.1"},
           {-12, "-12.0"}}) {
    std::string out;
    append_number(number, out);
    CHECK(out == text);
  }
}

}  // namespace widedeep
