// BLAKE2b (RFC 7693): by it requests are told apart for trials and samples, and users are hidden.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace widedeep {

// The digest of 8 bytes as a big-endian number; a purpose of at most 16 bytes sets it apart.
std::uint64_t blake2b_64(std::string_view text, std::string_view purpose = {});

// The digest of 16 bytes with a key of at most 64, as hexadecimal digits.
std::string blake2b_hex(std::string_view text, std::string_view key);

}  // namespace widedeep
