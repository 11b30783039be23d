#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "api_keys.hpp"
#include "blake2b.hpp"
#include "check.hpp"
#include "http_head.hpp"
#include "rank_front.hpp"
#include "rank_request.hpp"
#include "score_curve.hpp"
#include "sha256.hpp"
#include "sort_scores.hpp"

namespace widedeep {
namespace {

const RequestNames& names() {
  static const RequestNames made{{{"age", "city", "tags"}, {"price"}},
                                 {{"price", "shop", "id"}, {"age", "city", "tags"}},
                                 2,
                                 2};
  return made;
}

// From a buffer without a byte to spare, so that a sanitizer sees a read beyond its end.
bool reads(RankRequestReader& reader, std::string_view body, std::vector<char>& kept) {
  kept.assign(body.begin(), body.end());
  kept.shrink_to_fit();
  return reader.read({kept.data(), kept.size()}, names());
}

HeadStatus status_of(std::string_view bytes) {
  HttpHead head;
  const std::vector<char> exact(bytes.begin(), bytes.end());
  return read_head({exact.data(), exact.size()}, head).status;
}

const std::string kPlain =
    "POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json; charset=utf-8\r\n"
    "X-Request-Id: r-7\r\ncontent-length: 12\r\n\r\n";

}  // namespace

TEST(a_plain_head_is_read_once_it_is_whole) {
  HttpHead head;
  for (std::size_t n = 0; n < kPlain.size(); ++n) {
    CHECK(status_of(std::string_view(kPlain).substr(0, n)) == HeadStatus::more);
  }
  const std::string bytes = kPlain + "{}";
  const HeadResult found = read_head(bytes, head);
  CHECK(found.status == HeadStatus::complete);
  CHECK(found.length == static_cast<std::int64_t>(kPlain.size()));
  CHECK(head.path == "/v1/rank" && head.request_id == "r-7");
  CHECK(head.body_length == 12 && !head.close && head.timeout_ms == 0);
}

TEST(a_trace_is_told_of_where_its_caller_samples_it) {
  const auto traced = [](const std::string& flags) {
    HttpHead head;
    const std::string bytes = "POST / HTTP/1.1\r\nhost: x\r\ntraceparent: 00-0a-0b-" + flags +
                              "\r\ncontent-length: 2\r\n\r\n";
    CHECK(read_head(bytes, head).status == HeadStatus::complete);
    return head.traced;
  };
  for (const char* flags : {"01", "03", "0b", "ff"}) CHECK(traced(flags));
  for (const char* flags : {"00", "02", "0a", "fe", ""}) CHECK(!traced(flags));
}

TEST(a_key_is_offered_in_one_of_two_headers) {
  const auto offered = [](const std::string& lines) {
    HttpHead head;
    const std::string bytes =
        "POST / HTTP/1.1\r\nhost: x\r\n" + lines + "\r\ncontent-length: 2\r\n\r\n";
    CHECK(read_head(bytes, head).status == HeadStatus::complete);
    return std::string(offered_key(head));
  };
  CHECK(offered("x-api-key:  a b") == "a b" && offered("a: b").empty());
  CHECK(offered("Authorization: bEARER \t a") == "a");
  CHECK(offered("Authorization: Bearer a\r\nx-api-key: b") == "a");
  CHECK(offered("Authorization: Basic a\r\nx-api-key: b") == "b");
  CHECK(offered("Authorization: Bearer\r\nx-api-key: b") == "b");
}

TEST(keys_are_found_by_their_digest) {
  const auto hex = [](std::string_view text) {
    std::string digits;
    for (const std::uint8_t byte : sha256(text)) {
      digits += "0123456789abcdef"[byte >> 4];
      digits += "0123456789abcdef"[byte & 15];
    }
    return digits;
  };
  CHECK(hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(hex(std::string(119, 'a')) ==
        "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb");
  ApiKeys keys;
  CHECK(keys.find("a") == nullptr);
  const auto key = [](const char* name) {
    return std::make_shared<const ApiKey>(ApiKey{name, sha256(name), false, nullptr});
  };
  keys.replace({key("a"), key("b")});
  CHECK(keys.find("b")->name == "b" && keys.find("c") == nullptr && keys.find("") == nullptr);
}

TEST(a_bucket_gives_a_seconds_worth) {
  TokenBucket bucket(2);
  CHECK(bucket.take() == 0 && bucket.take() == 0);
  const double wait_s = bucket.take();
  CHECK(wait_s > 0 && wait_s <= 0.5);
  bucket.put_back();
  CHECK(bucket.take() == 0);
}

TEST(a_head_that_is_not_plain_is_left_alone) {
  const auto with = [](const std::string& line) {
    return "POST /v1/rank HTTP/1.1\r\nhost: x\r\n" + line + "\r\ncontent-length: 2\r\n\r\n";
  };
  for (const char* line :
       {"connection: keep-alive", "connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c",
        "Connection: keep-alive , upgrade", "upgrade: websocket", "http2-settings: AAM"}) {
    CHECK(status_of(with(line)) == HeadStatus::complete);
  }
  for (const char* line : {"transfer-encoding: chunked",
                           "Content-Encoding: gzip",
                           "expect: 100-continue",
                           "x-api-key: x\r\nX-API-Key: y",
                           "x-api-key: ",
                           "x-api-key: x ",
                           "Authorization: Bearer x\t",
                           "connection: trailers, upgrade",
                           "content-length: 2",
                           "host: y",
                           "connection: close, ",
                           "a: b\nc: d",
                           "content-type: text/plain",
                           "no colon",
                           " folded: line",
                           "bad name: x",
                           "x: \x01",
                           "x-request-timeout-ms: soon",
                           "x-request-timeout-ms: -1",
                           ": nothing",
                           "x: a\nb: c"}) {
    CHECK(status_of(with(line)) == HeadStatus::unusual);
  }
  for (const char* start :
       {"GET / HTTP/1.1\r\n\r\n", "POST /v1/rank HTTP/1.0\r\n\r\n", "POST  HTTP/1.1\r\n\r\n", "PUT",
        "\r\n", "POST /v1/rank\r\n\r\n", "POST /v1/rank HTTP/1.1\r\nhost: x\r\n\r\n",
        "POST /v1/rank HTTP/1.1\r\ncontent-length: 2\r\n\r\n",
        "POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: +1\r\n\r\n",
        "POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 1 1\r\n\r\n",
        "POST /v1/rank HTTP/1.1\n", "POST /v1/rank HTTP/1.1\r\nhost: x\n"}) {
    CHECK(status_of(start) == HeadStatus::unusual);
  }
  CHECK(status_of("POST /" + std::string(kLongestHead, 'a')) == HeadStatus::unusual);
  std::string many;
  for (int n = 2; n < kMostHeaders; ++n) many += "a: b\r\n";
  CHECK(status_of(with(many + "a: b")) == HeadStatus::unusual);
  CHECK(status_of(with(many.substr(0, many.size() - 2))) == HeadStatus::complete);
}

TEST(a_plain_body_is_read) {
  RankRequestReader reader;
  std::vector<char> kept;
  CHECK(reads(
      reader,
      R"( {"user":{"age":3,"other":"x","tags":["a\u00e9\n",null,1.5]},"context" : {"city":null},
                  "candidates":["maps", "mail"],"k":1,"request_id":"r1"} )",
      kept));
  CHECK(reader.candidates().size() == 2 && reader.candidates()[1].text == "mail");
  CHECK(reader.k() == 1 && reader.request_id() == "r1");
  CHECK(reader.has(0) && reader.has(1) && reader.has(2));
  const Column& tags = reader.columns()[2];
  const auto* const values = static_cast<const Variant*>(tags.values.data);
  CHECK(tags.list == ListLayer::list64 && tags.values.length == 3);
  CHECK(std::string_view(values[0].text, static_cast<std::size_t>(values[0].length)) ==
        "a\xc3\xa9\n");
  CHECK(values[1].tag == Variant::Tag::null && values[2].real == 1.5);
  CHECK(reads(reader, R"({"candidates":["a\"\u00e9"]})", kept));
  CHECK(reader.candidates()[0].text == "a\"\xc3\xa9");
  CHECK(reader.candidates()[0].token == "\"a\\\"\xc3\xa9\"");
  CHECK(reads(reader, R"({"user":{"age":18446744073709551615},"candidates":[7,-9]})", kept));
  CHECK(!reader.has(1) && reader.candidates()[1].integer == -9 && reader.k() == -1);
}

TEST(a_body_that_is_not_plain_is_left_alone) {
  RankRequestReader reader;
  std::vector<char> kept;
  for (const char* body : {"",
                           "{",
                           "[]",
                           "{}",
                           R"({"user":{}})",
                           R"({"candidates":["a"]}x)",
                           R"({"candidates":[]}})",
                           R"({"user":{"price":1},"candidates":["a"]})",
                           R"({"user":{"age":{}},"candidates":["a"]})",
                           R"({"user":{"age":1},"context":{"age":1},"candidates":["a"]})",
                           R"({"user":{"age":01},"candidates":["a"]})",
                           R"({"user":{"age":1.},"candidates":["a"]})",
                           R"({"user":{"age":1e999},"candidates":["a"]})",
                           R"({"candidates":["a"],"explain":true})",
                           R"({"candidates":["a"],"candidates":["b"]})",

                           R"({"candidates":[1.5]})",
                           R"({"candidates":[true]})",
                           R"({"candidates":["a"],"k":-1})",
                           R"({"candidates":["a"],"request_id":""})",
                           R"({"user":{"age":"\ud800"},"candidates":["a"]})",
                           "{\"user\":{\"age\":\"\xff\"},\"candidates\":[\"a\"]}",
                           R"({"candidates":["a",]})",
                           R"({"user":{"age":[[1]]},"candidates":["a"]})",
                           R"({"user":{"age":NaN},"candidates":["a"]})",
                           R"({"user":{"age":36893488147419103232},"candidates":["a"]})"}) {
    CHECK(!reads(reader, body, kept));
  }
}

TEST(no_body_is_read_beyond_its_end) {
  const std::string good =
      R"({"user":{"age":-3.5e2,"tags":["\ud83d\ude00",true,null]},"candidates":["a",12],"k":3})";
  const std::string bytes = "\"\\{}[]:,0129-.eE+ \tnulltruefalse\xc3\xa9u";
  std::mt19937 random(7);
  RankRequestReader reader;
  std::vector<char> kept;
  for (int round = 0; round < 20'000; ++round) {
    std::string body = good.substr(0, random() % (good.size() + 1));
    if (round % 2 == 0) body = good;
    for (unsigned change = random() % 4; change > 0 && !body.empty(); --change) {
      body[random() % body.size()] = bytes[random() % bytes.size()];
    }
    if (!reads(reader, body, kept)) continue;
    for (const Column& column : reader.columns()) {
      for (std::int64_t i = 0; i < column.values.length; ++i) {
        const Variant& value = static_cast<const Variant*>(column.values.data)[i];
        if (value.tag == Variant::Tag::text) {
          CHECK(is_utf8({value.text, static_cast<std::size_t>(value.length)}));
        }
      }
    }
  }
}

TEST(scores_are_sorted_as_by_a_stable_sort) {
  std::mt19937 random(3);
  SortingRoom room;
  for (const std::int64_t n : {0, 1, 2, 47, 48, 200, 1000}) {
    std::vector<double> scores;
    for (std::int64_t i = 0; i < n; ++i) {
      const double drawn = static_cast<double>(random()) / 4e9 - 0.5;
      const double few[] = {0.0, -0.0, 1.0, -1.0, 1e-300, 0.5};
      scores.push_back(random() % 2 == 0 ? drawn : few[random() % 6]);
    }
    std::vector<std::int64_t> wanted(scores.size()), order(scores.size());
    std::iota(wanted.begin(), wanted.end(), 0);
    std::stable_sort(wanted.begin(), wanted.end(), [&](std::int64_t a, std::int64_t b) {
      return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
    });
    sort_descending(scores.data(), n, room, order.data());
    CHECK(order == wanted);
  }
}

TEST(a_misspelt_key_is_left_to_the_full_server) {
  // As in tests/data/test_misspelt.py.
  for (const auto& [key, column] :
       std::vector<std::pair<const char*, const char*>>{{"ctiy", "city"},
                                                        {"userCountry", "user_country"},
                                                        {"country", "user_country"},
                                                        {"user_contry", "user_country"},
                                                        {"hours", "hour"},
                                                        {"app-price", "app_price"},
                                                        {"stra\xc3\x9f"
                                                         "enname",
                                                         "strassenname"}}) {
    CHECK(is_misspelt(key, column));
  }
  for (const auto& [key, column] :
       std::vector<std::pair<const char*, const char*>>{{"user_id", "user_country"},
                                                        {"feature_1", "feature_2"},
                                                        {"id", "ad"},
                                                        {"", "age"},
                                                        {"age", ""},
                                                        {"device_id", "device"},
                                                        {"rage", "cape"},
                                                        {"price", "user_country"}}) {
    CHECK(!is_misspelt(key, column));
  }
  const RequestNames names{{{"city", "user_country"}, {}}, {{}, {}}, 0, -1};
  RankRequestReader reader;
  const auto reads = [&](const std::string& user) {
    return reader.read("{\"user\":{" + user + "},\"candidates\":[1]}", names);
  };
  CHECK(!reads(R"("ctiy":"a")"));
  CHECK(reads(R"("ctiy":"a","city":"b")"));  // it is not absent
  CHECK(reads(R"("user_id":1)"));
  const std::string many = R"("a0":1,"b0":1,"c0":1,"d0":1,"e0":1,"f0":1,"g0":1,"h0":1,"i0":1)";
  CHECK(!reads(many));
  CHECK(reads(many + R"(,"city":"a","user_country":"b")"));
}

TEST(blake2b_gives_the_digests_of_hashlib) {
  CHECK(blake2b_64("") == 0xe4a6a0577479b2b4);
  CHECK(blake2b_64("request 7") == 0xb212eddf2c9b0de1);
  CHECK(blake2b_64(std::string(128, 'a')) == 0xf06643fe9c7e18da);
  CHECK(blake2b_64(std::string(129, 'b')) == 0x4922ab16afda6a41);
  CHECK(blake2b_64(std::string(300, 'c')) == 0x70d5127cbd74de3b);
}

TEST(inline_items_are_columns_of_one_length) {
  RankRequestReader reader;
  std::vector<char> kept;
  CHECK(reads(reader,
              R"({"items":{"id":["a",7,"\u00e9"],"price":[1,null,[2,null]],"x":[1,2,3]},"k":2})",
              kept));
  CHECK(reader.are_inline() && reader.candidates().size() == 3 && reader.k() == 2);
  CHECK(reader.candidates()[0].token == "\"a\"" && reader.candidates()[1].token == "7");
  CHECK(reader.candidates()[2].text == "\xc3\xa9");
  CHECK(reader.has_item(0) && !reader.has_item(1) && reader.n_item_values() == 4 + 3);
  const Column& price = reader.item_columns()[0];
  CHECK(price.length == 3 && price.list == ListLayer::list64);
  CHECK(!row_is_null(price, 0) && row_is_null(price, 1) && !row_is_null(price, 2));
  CHECK(elements_of(price, 2).begin == 2 && elements_of(price, 2).end == 4);
  CHECK(reader.item_columns()[1].length == 3 && reader.item_columns()[1].list == ListLayer::none);
  for (const char* body :
       {R"({"items":{}})", R"({"items":{"price":[1],"shop":[1,2]}})", R"({"items":{"age":[1]}})",
        R"({"items":{"price":[1],"id":[1,2]}})", R"({"items":{"price":[[1],[2]],"id":[1,2,3]}})",
        R"({"items":{"x":[],"id":[1]}})", R"({"items":{"price":[1,2],"id":[1]}})",
        R"({"items":{"price":[1]},"candidates":[1]})", R"({"items":{"price":1}})",
        R"({"items":{"id":[1.5]}})", R"({"items":{"id":[["a"]]}})", R"({"items":{"id":[null]}})",
        R"({"items":{"price":[1],"price":[2]}})", R"({"items":{"price":[1],"shp":[2]}})",
        R"({"items":{"price":[1,]}})", R"({"items":{"price":[1]})", R"({"items":[1]})"}) {
    CHECK(!reads(reader, body, kept));
  }
  CHECK(reads(reader, R"({"items":{"price":[]},"head":"buy"})", kept));
  CHECK(reader.candidates().empty() && reader.names_head() && reader.head() == "buy");
}

TEST(records_of_refusals_are_no_lost_rows) {
  RankFrontOptions options;
  options.queued_records = 1;
  RankFront front(options);
  const FrontRequest request;
  std::string out;
  for (int i = 0; i < 3; ++i) front.refuse(request, out);
  CHECK(front.take_records().size() == 1 && front.dropped() == 0);
}

TEST(a_formula_is_computed_step_by_step) {
  using Kind = ScoreFormula::Kind;
  std::vector<ScoreCurve> curves(2);
  curves[1].column = 1;
  curves[1].points = {0, 1, 3};
  curves[1].values = {0, 2, 3};
  std::vector<double> stack;
  const float logits[] = {4, 2};
  const double numbers[] = {0.5, 0};
  const auto value = [&](std::vector<ScoreFormula::Step> steps) {
    const ScoreFormula formula{std::move(steps)};
    formula.check(2, 2);
    return formula.value(curves, logits, numbers, stack);
  };
  const ScoreFormula::Step a{Kind::head, 0, 0}, b{Kind::head, 1, 0}, x{Kind::column, 0, 0};
  CHECK(value({a, b, {Kind::multiply, 0, 0}}) == 10 && value({a, {Kind::root, 0, 0}}) == 2);
  CHECK(value({a, x, {Kind::subtract, 0, 0}, {Kind::negate, 0, 0}}) == -3.5);
  CHECK(value({a, b, {Kind::minimum, 0, 0}, {Kind::constant, 0, 3}, {Kind::maximum, 0, 0}}) == 3);
  const double none = value({a, {Kind::column, 1, 0}, {Kind::divide, 0, 0}});
  CHECK(none != none);
  for (const auto& steps : std::vector<std::vector<ScoreFormula::Step>>{
           {}, {a, b}, {{Kind::add, 0, 0}}, {{Kind::head, 2, 0}}, {{Kind::column, 2, 0}}}) {
    bool refused = false;
    try {
      ScoreFormula{steps}.check(2, 2);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}

}  // namespace widedeep
