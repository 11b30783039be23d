// The head of an HTTP/1.1 request, read strictly: what is unusual in any way is not read here but
// left to the full server, so no two readers can disagree about where a request ends.
#pragma once

#include <cstdint>
#include <string_view>

namespace widedeep {

// Views of the bytes given.
struct HttpHead {
  std::string_view path;
  std::string_view request_id;     // x-request-id; empty if there is none
  std::string_view authorization;  // empty if there is none
  std::string_view api_key;        // x-api-key; empty if there is none
  std::int64_t body_length = 0;
  std::int64_t json_length = -1;  // inference-header-content-length; -1 if there is none
  bool is_binary = false;         // the body is told to be bytes, not JSON
  double timeout_ms = 0;          // x-request-timeout-ms; 0 if there is none
  bool traced = false;            // traceparent, whose caller samples the trace
  bool close = false;             // the caller wants no further answer on this connection
};

enum class HeadStatus : std::uint8_t { complete, more, unusual };

struct HeadResult {
  HeadStatus status;
  std::int64_t length = 0;  // of the head, with its empty line
};

// The key that a caller offers, as a bearer's token or by itself; empty if there is none.
std::string_view offered_key(const HttpHead& head);

// A complete head is that of a POST whose body is JSON, or JSON and bytes, of a told length, sent
// as it is. A head that
// can no longer become one is `unusual`, at the latest at `kLongestHead`.
inline constexpr std::int64_t kLongestHead = 16 << 10;
inline constexpr int kMostHeaders = 128;
HeadResult read_head(std::string_view bytes, HttpHead& head);

}  // namespace widedeep
