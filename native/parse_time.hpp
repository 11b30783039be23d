// Times as ISO 8601 writes them.
#pragma once

#include <cstdint>
#include <optional>

#include "vocabulary.hpp"

namespace widedeep {

// `text` as microseconds since 1970: a date, or a date and a time ("2024-05-01T12:30:00.25+02:00").
// Without a zone it is UTC. Nothing for any other text.
std::optional<std::int64_t> parse_time(const TextSpan& text);

}  // namespace widedeep
