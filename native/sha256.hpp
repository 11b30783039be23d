// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace widedeep {

using Sha256Digest = std::array<std::uint8_t, 32>;

Sha256Digest sha256(std::string_view text);

}  // namespace widedeep
