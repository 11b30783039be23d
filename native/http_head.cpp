#include "http_head.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <utility>

namespace widedeep {
namespace {

constexpr std::string_view kMethod = "POST ";
constexpr std::string_view kVersion = " HTTP/1.1\r\n";

bool is_token(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_';
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c; }

bool same(std::string_view text, std::string_view lower_case) {
  return text.size() == lower_case.size() &&
         std::equal(text.begin(), text.end(), lower_case.begin(),
                    [](char a, char b) { return lower(a) == b; });
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool read_length(std::string_view text, std::int64_t& length) {
  if (text.empty() || text.size() > 15) return false;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), length);
  return text.front() != '-' && parsed.ec == std::errc() && parsed.ptr == text.end();
}

bool read_timeout(std::string_view text, double& milliseconds) {
  const bool plain =
      !text.empty() && text.size() < 16 &&
      std::all_of(
          text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || c == '.'; });
  if (!plain) return false;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), milliseconds);
  return parsed.ec == std::errc() && parsed.ptr == text.end() && milliseconds > 0;
}

bool is_json(std::string_view type) {
  type = trimmed(type.substr(0, type.find(';')));
  // The second is what curl sends when it is told nothing.
  return same(type, "application/json") || same(type, "application/x-www-form-urlencoded");
}

bool is_octets(std::string_view type) {
  return same(trimmed(type.substr(0, type.find(';'))), "application/octet-stream");
}

bool is_request_id(std::string_view text) {
  return !text.empty() && text.size() <= 128 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

// Headers that say that the request is not a plain one.
constexpr std::array<std::string_view, 5> kUnusual = {"transfer-encoding", "content-encoding",
                                                      "expect", "trailer", "proxy-authorization"};

// Takes the options of a connection; false if one is unknown. A wish for another protocol is
// ignored, as HTTP allows: the body belongs to the request in any case.
bool read_connection(std::string_view options, bool& close) {
  for (bool more = true; more;) {
    const std::size_t comma = options.find(',');
    more = comma != std::string_view::npos;
    const std::string_view option = trimmed(options.substr(0, comma));
    const bool is_wish = same(option, "upgrade") || same(option, "http2-settings");
    if (same(option, "close")) {
      close = true;
    } else if (!is_wish && !same(option, "keep-alive")) {
      return false;
    }
    if (more) options.remove_prefix(comma + 1);
  }
  return true;
}

// An empty or a second one is for the full server to refuse.
bool take_credentials(std::string_view value, std::string_view& credentials) {
  if (!credentials.empty() || value.empty()) return false;
  credentials = value;
  return true;
}

// What a head has told so far.
struct Reader {
  HttpHead& head;
  bool has_length = false;
  bool has_type = false;
  bool has_host = false;
  int headers = 0;

  // False if the header is none of a plain request.
  bool take(std::string_view name, std::string_view value) {
    if (++headers > kMostHeaders) return false;
    if (same(name, "content-length")) {
      if (has_length) return false;
      return has_length = read_length(value, head.body_length);
    }
    if (same(name, "content-type")) {
      if (has_type) return false;
      head.is_binary = is_octets(value);
      return has_type = head.is_binary || is_json(value);
    }
    if (same(name, "connection")) return read_connection(value, head.close);
    if (same(name, "host")) return !std::exchange(has_host, true);
    if (same(name, "x-request-id")) {
      if (!head.request_id.empty() || !is_request_id(value)) return false;
      head.request_id = value;
      return true;
    }
    if (same(name, "inference-header-content-length")) {
      return head.json_length < 0 && value.size() < 12 && read_length(value, head.json_length);
    }
    if (same(name, "authorization")) return take_credentials(value, head.authorization);
    if (same(name, "x-api-key")) return take_credentials(value, head.api_key);
    if (same(name, "traceparent")) {
      const char flags = value.empty() ? '0' : value.back();
      head.traced = flags >= '0' && (flags & 1) == (flags <= '9');
      return true;
    }
    if (same(name, "x-request-timeout-ms")) {
      return head.timeout_ms == 0 && read_timeout(value, head.timeout_ms);
    }
    return std::none_of(kUnusual.begin(), kUnusual.end(),
                        [&](std::string_view unusual) { return same(name, unusual); });
  }
};

// Whether the bytes could still become that text.
bool begins(std::string_view bytes, std::string_view text) {
  return bytes.substr(0, text.size()) == text.substr(0, bytes.size());
}

bool take_line(std::string_view line, Reader& reader) {
  const std::size_t colon = line.find(':');
  if (colon == std::string_view::npos || colon == 0) return false;
  const std::string_view name = line.substr(0, colon);
  const std::string_view value = trimmed(line.substr(colon + 1));
  const bool is_padded = !value.empty() && value.end() != line.end();
  const auto is_text = [](char c) { return (c >= 0x20 && c < 0x7f) || c == '\t'; };
  // The full server takes blanks at the end for a part of the value.
  return !is_padded && std::all_of(name.begin(), name.end(), is_token) &&
         std::all_of(value.begin(), value.end(), is_text) && reader.take(name, value);
}

}  // namespace

std::string_view offered_key(const HttpHead& head) {
  constexpr std::string_view kScheme = "bearer ";
  if (!same(head.authorization.substr(0, kScheme.size()), kScheme)) return head.api_key;
  return trimmed(head.authorization.substr(kScheme.size()));
}

HeadResult read_head(std::string_view bytes, HttpHead& head) {
  const HeadResult unusual = {HeadStatus::unusual};
  const bool is_long = static_cast<std::int64_t>(bytes.size()) >= kLongestHead;
  // Whether a line that has not ended may yet end as lines should.
  const auto more = [&](std::size_t line) {
    const bool is_hopeless = is_long || bytes.find('\n', line) != std::string_view::npos;
    return HeadResult{is_hopeless ? HeadStatus::unusual : HeadStatus::more};
  };
  if (!begins(bytes, kMethod)) return unusual;
  std::size_t at = bytes.find('\r');
  if (at == std::string_view::npos || at + 1 == bytes.size()) return more(0);
  const std::size_t version = at + 2 < kVersion.size() ? 0 : at + 2 - kVersion.size();
  if (version <= kMethod.size() || bytes.substr(version, kVersion.size()) != kVersion) {
    return unusual;
  }
  head = {};
  head.path = bytes.substr(kMethod.size(), version - kMethod.size());
  Reader reader{head};
  for (at += 2;;) {
    const std::size_t end = bytes.find('\r', at);
    if (end == std::string_view::npos || end + 1 == bytes.size()) return more(at);
    if (bytes[end + 1] != '\n') return unusual;
    if (end == at) break;
    if (!take_line(bytes.substr(at, end - at), reader)) return unusual;
    at = end + 2;
  }
  // The full server refuses a head without a host (RFC 9112, 3.2).
  if (!reader.has_length || !reader.has_host) return unusual;
  return {HeadStatus::complete, static_cast<std::int64_t>(at + 2)};
}

}  // namespace widedeep
