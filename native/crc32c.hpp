// CRC-32C (Castagnoli's polynomial, reflected: RFC 3720, appendix B.4), the checksum of tensor
// bundles.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"

namespace widedeep {

WIDEDEEP_DECLARE_ISA(
    // The register after `n` more bytes; it starts as, and ends by, the complement of a checksum.
    uint32_t crc32c_extend(uint32_t state, const uint8_t* bytes, int64_t n))

// The checksum of bytes that follow others whose checksum is `before` (0: of none).
inline uint32_t crc32c(const uint8_t* bytes, int64_t n, uint32_t before = 0) {
  return ~WIDEDEEP_DISPATCH(crc32c_extend)(~before, bytes, n);
}

}  // namespace widedeep
