#include "blake2b.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace widedeep {
namespace {

using Words8 = std::array<std::uint64_t, 8>;

constexpr Words8 kStart = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b,
                           0xa54ff53a5f1d36f1, 0x510e527fade682d1, 0x9b05688c2b3e6c1f,
                           0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
constexpr std::uint8_t kOrder[10][16] = {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
                                         {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
                                         {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
                                         {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
                                         {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
                                         {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
                                         {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
                                         {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
                                         {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
                                         {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};
constexpr std::size_t kBlock = 128;
constexpr int kRounds = 12;

void mix(std::uint64_t* v, int a, int b, int c, int d, std::uint64_t x, std::uint64_t y) {
  v[a] += v[b] + x;
  v[d] = std::rotr(v[d] ^ v[a], 32);
  v[c] += v[d];
  v[b] = std::rotr(v[b] ^ v[c], 24);
  v[a] += v[b] + y;
  v[d] = std::rotr(v[d] ^ v[a], 16);
  v[c] += v[d];
  v[b] = std::rotr(v[b] ^ v[c], 63);
}

void take_block(Words8& state, const char* block, std::uint64_t total, bool is_last) {
  std::uint64_t m[16];
  std::memcpy(m, block, kBlock);
  std::uint64_t v[16];
  std::copy(state.begin(), state.end(), v);
  std::copy(kStart.begin(), kStart.end(), v + 8);
  v[12] ^= total;
  if (is_last) v[14] = ~v[14];
  for (int round = 0; round < kRounds; ++round) {
    const std::uint8_t* const at = kOrder[round % 10];
    for (int i = 0; i < 4; ++i) {
      mix(v, i, 4 + i, 8 + i, 12 + i, m[at[2 * i]], m[at[2 * i + 1]]);
    }
    for (int i = 0; i < 4; ++i) {
      mix(v, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, m[at[8 + 2 * i]],
          m[at[9 + 2 * i]]);
    }
  }
  for (std::size_t i = 0; i < 8; ++i) state[i] ^= v[i] ^ v[i + 8];
}

// The state after all blocks; its first bytes are the digest.
Words8 digest(std::string_view text, std::uint64_t n_bytes, std::string_view key,
              std::string_view purpose) {
  static_assert(std::endian::native == std::endian::little);
  Words8 state = kStart;
  state[0] ^= 0x01010000 ^ static_cast<std::uint64_t>(key.size()) << 8 ^ n_bytes;
  std::uint64_t words[2] = {};
  std::copy_n(purpose.begin(), std::min(purpose.size(), sizeof words),
              reinterpret_cast<char*>(words));
  state[6] ^= words[0];
  state[7] ^= words[1];
  std::uint64_t total = 0;
  char block[kBlock] = {};
  if (!key.empty()) {
    std::copy(key.begin(), key.end(), block);
    total += kBlock;
    take_block(state, block, total, text.empty());
    if (text.empty()) return state;
  }
  while (text.size() > kBlock) {
    total += kBlock;
    take_block(state, text.data(), total, false);
    text.remove_prefix(kBlock);
  }
  std::fill(block, block + kBlock, '\0');
  std::copy(text.begin(), text.end(), block);
  take_block(state, block, total + text.size(), true);
  return state;
}

std::uint64_t byte_of(const Words8& state, std::size_t i) {
  return state[i / 8] >> (8 * (i % 8)) & 0xff;
}

}  // namespace

std::uint64_t blake2b_64(std::string_view text, std::string_view purpose) {
  const Words8 state = digest(text, 8, {}, purpose);
  std::uint64_t big = 0;
  for (std::size_t i = 0; i < 8; ++i) big = big << 8 | byte_of(state, i);
  return big;
}

std::string blake2b_hex(std::string_view text, std::string_view key) {
  constexpr char kHex[] = "0123456789abcdef";
  const Words8 state = digest(text, 16, key, {});
  std::string hex;
  for (std::size_t i = 0; i < 16; ++i) {
    hex += kHex[byte_of(state, i) >> 4];
    hex += kHex[byte_of(state, i) & 15];
  }
  return hex;
}

}  // namespace widedeep
