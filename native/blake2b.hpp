// BLAKE2b (RFC 7693) without a key, of 8 bytes: by it requests are told apart for trials.
#pragma once

#include <cstdint>
#include <string_view>

namespace widedeep {

// The digest as a big-endian number.
std::uint64_t blake2b_64(std::string_view text);

}  // namespace widedeep
