#include <cstring>
#include <memory>
#include <vector>

#include "check.hpp"
#include "crc32c.hpp"

using widedeep::crc32c;

namespace {

std::uint32_t by_bits(const std::vector<std::uint8_t>& bytes) {
  std::uint32_t state = 0xFFFFFFFFu;
  for (const std::uint8_t byte : bytes) {
    state ^= byte;
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1u) ? 0x82F63B78u : 0u);
  }
  return ~state;
}

}  // namespace

TEST(crc32c_gives_the_checksums_of_the_standard) {
  const std::uint8_t digits[] = {'1', '2', '3', '4', '5', '6', '7', '8', '9'};
  CHECK(crc32c(digits, 9) == 0xE3069283u);
  CHECK(crc32c(std::vector<std::uint8_t>(32, 0x00).data(), 32) == 0x8A9136AAu);
  CHECK(crc32c(std::vector<std::uint8_t>(32, 0xFF).data(), 32) == 0x62A8AB43u);
}

TEST(crc32c_is_that_of_single_bits_wherever_the_bytes_lie_and_are_cut) {
  for (std::size_t n = 0; n < 70; ++n) {
    std::vector<std::uint8_t> bytes(n);
    for (std::size_t i = 0; i < n; ++i) bytes[i] = static_cast<std::uint8_t>(37 * i + n);
    const std::uint32_t expected = by_bits(bytes);
    for (std::size_t shift = 0; shift < 9; ++shift) {
      // An allocation that ends with the bytes: a sanitizer sees a read past them.
      const std::unique_ptr<std::uint8_t[]> copy(new std::uint8_t[n + shift]);
      if (n > 0) std::memcpy(copy.get() + shift, bytes.data(), n);
      CHECK(crc32c(copy.get() + shift, static_cast<std::int64_t>(n)) == expected);
    }
    const auto cut = static_cast<std::int64_t>(n / 3);
    const std::uint32_t first = crc32c(bytes.data(), cut);
    CHECK(crc32c(bytes.data() + cut, static_cast<std::int64_t>(n) - cut, first) == expected);
  }
}
