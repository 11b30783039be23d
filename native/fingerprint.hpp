// FarmHash's Fingerprint64 (farmhashna::Hash64, Google 2014): the same number on every machine and
// for ever, and the hash of TensorFlow's hash bucket and crossed columns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace widedeep {

std::uint64_t fingerprint64(const char* text, std::size_t length) noexcept;

// Folds a second fingerprint into a first one; the order matters.
std::uint64_t fingerprint_cat64(std::uint64_t first, std::uint64_t second) noexcept;

}  // namespace widedeep
