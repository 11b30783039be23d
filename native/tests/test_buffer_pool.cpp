#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "buffer_pool.hpp"
#include "check.hpp"

using widedeep::pooled_allocate;
using widedeep::pooled_bytes;
using widedeep::pooled_free;

namespace {

constexpr std::size_t kMegabyte = std::size_t{1} << 20;

}  // namespace

TEST(a_large_buffer_is_used_again) {
  void* const first = pooled_allocate(3 * kMegabyte);
  CHECK(reinterpret_cast<std::uintptr_t>(first) % 64 == 0);
  const std::size_t before = pooled_bytes();
  pooled_free(first);
  CHECK(pooled_bytes() == before + 3 * kMegabyte);
  // Neither a much smaller nor a larger array gets it.
  void* const small = pooled_allocate(kMegabyte);
  void* const large = pooled_allocate(4 * kMegabyte);
  CHECK(small != first && large != first);
  void* const again = pooled_allocate(2 * kMegabyte);
  CHECK(again == first);
  for (void* data : {small, large, again}) pooled_free(data);
}

TEST(the_pool_keeps_a_bounded_number_of_bytes) {
  std::vector<void*> all;
  for (int i = 0; i < 64; ++i) all.push_back(pooled_allocate(8 * kMegabyte));
  for (void* data : all) pooled_free(data);
  CHECK(pooled_bytes() <= widedeep::kMostPooledBytes);
  pooled_free(nullptr);
}

TEST(threads_share_the_pool) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 200; ++i) {
        auto* const data = static_cast<unsigned char*>(pooled_allocate(kMegabyte + 4096));
        std::memset(data, t, 4096);
        for (int k = 0; k < 4096; ++k) CHECK(data[k] == t);
        pooled_free(data);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}
