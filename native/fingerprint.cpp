#include "fingerprint.hpp"

#include <bit>
#include <cstring>
#include <utility>

namespace widedeep {
namespace {

static_assert(std::endian::native == std::endian::little, "words are read in memory order");

// The three odd constants of the algorithm, primes between 2^63 and 2^64.
constexpr std::uint64_t k0 = 0xc3a5c85c97cb3127;
constexpr std::uint64_t k1 = 0xb492b66fbe98f273;
constexpr std::uint64_t k2 = 0x9ae16a3b2f90404f;

std::uint64_t word64(const char* at) noexcept {
  std::uint64_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

std::uint64_t word32(const char* at) noexcept {
  std::uint32_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

std::uint64_t byte_at(const char* text, std::size_t i) noexcept {
  return static_cast<unsigned char>(text[i]);
}

std::uint64_t fold_high(std::uint64_t x) noexcept { return x ^ (x >> 47); }

std::uint64_t mix_pair(std::uint64_t u, std::uint64_t v, std::uint64_t factor) noexcept {
  const std::uint64_t a = fold_high((u ^ v) * factor);
  return fold_high((v ^ a) * factor) * factor;
}

std::uint64_t hash_to_16(const char* s, std::size_t n) noexcept {
  const std::uint64_t factor = k2 + n * 2;
  if (n >= 8) {
    const std::uint64_t a = word64(s) + k2;
    const std::uint64_t b = word64(s + n - 8);
    const std::uint64_t c = std::rotr(b, 37) * factor + a;
    const std::uint64_t d = (std::rotr(a, 25) + b) * factor;
    return mix_pair(c, d, factor);
  }
  if (n >= 4) return mix_pair(n + (word32(s) << 3), word32(s + n - 4), factor);
  if (n > 0) {
    const std::uint64_t y = byte_at(s, 0) + (byte_at(s, n >> 1) << 8);
    const std::uint64_t z = n + (byte_at(s, n - 1) << 2);
    return fold_high((y * k2) ^ (z * k0)) * k2;
  }
  return k2;
}

std::uint64_t hash_17_to_32(const char* s, std::size_t n) noexcept {
  const std::uint64_t factor = k2 + n * 2;
  const std::uint64_t a = word64(s) * k1;
  const std::uint64_t b = word64(s + 8);
  const std::uint64_t c = word64(s + n - 8) * factor;
  const std::uint64_t d = word64(s + n - 16) * k2;
  return mix_pair(std::rotr(a + b, 43) + std::rotr(c, 30) + d, a + std::rotr(b + k2, 18) + c,
                  factor);
}

std::uint64_t hash_33_to_64(const char* s, std::size_t n) noexcept {
  const std::uint64_t factor = k2 + n * 2;
  const std::uint64_t a = word64(s) * k2;
  const std::uint64_t b = word64(s + 8);
  const std::uint64_t c = word64(s + n - 8) * factor;
  const std::uint64_t d = word64(s + n - 16) * k2;
  const std::uint64_t y = std::rotr(a + b, 43) + std::rotr(c, 30) + d;
  const std::uint64_t z = mix_pair(y, a + std::rotr(b + k2, 18) + c, factor);
  const std::uint64_t e = word64(s + 16) * factor;
  const std::uint64_t f = word64(s + 24);
  const std::uint64_t g = (y + word64(s + n - 32)) * factor;
  const std::uint64_t h = (z + word64(s + n - 24)) * factor;
  return mix_pair(std::rotr(e + f, 43) + std::rotr(g, 30) + h, e + std::rotr(f + a, 18) + g,
                  factor);
}

using Pair = std::pair<std::uint64_t, std::uint64_t>;

Pair mix_32_bytes(const char* s, std::uint64_t a, std::uint64_t b) noexcept {
  const std::uint64_t z = word64(s + 24);
  a += word64(s);
  b = std::rotr(b + a + z, 21);
  const std::uint64_t start = a;
  a += word64(s + 8);
  a += word64(s + 16);
  return {a + z, b + std::rotr(a, 44) + start};
}

// 56 bytes of state (x, y, z, v, w) that each block of 64 bytes is mixed into.
struct LongState {
  std::uint64_t x, y, z;
  Pair v, w;
};

std::uint64_t hash_long(const char* s, std::size_t n) noexcept {
  constexpr std::uint64_t kSeed = 81;
  LongState t{kSeed * k2 + word64(s), kSeed * k1 + 113, 0, {0, 0}, {0, 0}};
  t.z = fold_high(t.y * k2 + 113) * k2;
  const std::size_t tail = (n - 1) & 63;
  const char* const end = s + (n - 1 - tail);
  for (; s != end; s += 64) {
    t.x = std::rotr(t.x + t.y + t.v.first + word64(s + 8), 37) * k1;
    t.y = std::rotr(t.y + t.v.second + word64(s + 48), 42) * k1;
    t.x ^= t.w.second;
    t.y += t.v.first + word64(s + 40);
    t.z = std::rotr(t.z + t.w.first, 33) * k1;
    t.v = mix_32_bytes(s, t.v.second * k1, t.x + t.w.first);
    t.w = mix_32_bytes(s + 32, t.z + t.w.second, t.y + word64(s + 16));
    std::swap(t.z, t.x);
  }
  // The last 64 bytes, which overlap the blocks above, with another multiplier.
  const std::uint64_t factor = k1 + ((t.z & 0xff) << 1);
  s = end + tail - 63;
  t.w.first += tail;
  t.v.first += t.w.first;
  t.w.first += t.v.first;
  t.x = std::rotr(t.x + t.y + t.v.first + word64(s + 8), 37) * factor;
  t.y = std::rotr(t.y + t.v.second + word64(s + 48), 42) * factor;
  t.x ^= t.w.second * 9;
  t.y += t.v.first * 9 + word64(s + 40);
  t.z = std::rotr(t.z + t.w.first, 33) * factor;
  t.v = mix_32_bytes(s, t.v.second * factor, t.x + t.w.first);
  t.w = mix_32_bytes(s + 32, t.z + t.w.second, t.y + word64(s + 16));
  std::swap(t.z, t.x);
  return mix_pair(mix_pair(t.v.first, t.w.first, factor) + fold_high(t.y) * k0 + t.z,
                  mix_pair(t.v.second, t.w.second, factor) + t.x, factor);
}

}  // namespace

std::uint64_t fingerprint64(const char* text, std::size_t length) noexcept {
  if (length <= 16) return hash_to_16(text, length);
  if (length <= 32) return hash_17_to_32(text, length);
  if (length <= 64) return hash_33_to_64(text, length);
  return hash_long(text, length);
}

std::uint64_t fingerprint_cat64(std::uint64_t first, std::uint64_t second) noexcept {
  constexpr std::uint64_t kFactor = 0xc6a4a7935bd1e995;  // MurmurHash64A's multiplier
  const std::uint64_t mixed = (first ^ kFactor ^ (fold_high(second * kFactor) * kFactor)) * kFactor;
  return fold_high(fold_high(mixed) * kFactor);
}

}  // namespace widedeep
