// CRC-32C by the processor's instruction, or eight bytes at a time by tables (Kounavis and Berry
// 2005, "slicing-by-8").
#include <stdint.h>
#include <string.h>

#include "crc32c.hpp"

#if defined(__SSE4_2__)
#include <nmmintrin.h>
#endif

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {

#if defined(__SSE4_2__)

uint32_t crc32c_extend(uint32_t state, const uint8_t* bytes, int64_t n) {
  uint64_t wide = state;
  for (; n >= 8; n -= 8, bytes += 8) {
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    wide = _mm_crc32_u64(wide, word);
  }
  uint32_t narrow = static_cast<uint32_t>(wide);
  for (; n > 0; --n, ++bytes) narrow = _mm_crc32_u8(narrow, *bytes);
  return narrow;
}

#else

namespace {

struct Tables {
  uint32_t of[8][256];  // of[k][b]: byte b with k zero bytes behind it

  constexpr Tables() : of{} {
    constexpr uint32_t kPolynomial = 0x82F63B78u;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t crc = byte;
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) != 0 ? kPolynomial : 0u);
      of[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; ++byte) {
      for (int k = 1; k < 8; ++k) {
        of[k][byte] = (of[k - 1][byte] >> 8) ^ of[0][of[k - 1][byte] & 0xFFu];
      }
    }
  }
};

constexpr Tables kTables;

}  // namespace

uint32_t crc32c_extend(uint32_t state, const uint8_t* bytes, int64_t n) {
  for (; n >= 8; n -= 8, bytes += 8) {
    uint64_t word;
    memcpy(&word, bytes, sizeof word);  // little-endian, as all processors that we compile for
    word ^= state;
    uint32_t next = 0;
    for (int k = 0; k < 8; ++k) next ^= kTables.of[7 - k][(word >> (8 * k)) & 0xFFu];
    state = next;
  }
  for (; n > 0; --n, ++bytes) state = (state >> 8) ^ kTables.of[0][(state ^ *bytes) & 0xFFu];
  return state;
}

#endif

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
