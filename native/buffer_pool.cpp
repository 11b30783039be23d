#include "buffer_pool.hpp"

#if defined(__linux__)
#include <malloc.h>
#endif

#include <sys/mman.h>

#include <array>
#include <cstdlib>
#include <mutex>
#include <new>

namespace widedeep {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kLeastPooled = std::size_t{1} << 20;  // malloc keeps smaller ones itself
constexpr std::size_t kMostBuffers = 16;

// Stands before the data.
struct alignas(kAlignment) Header {
  std::size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::array<Header*, kMostBuffers> free{};
  std::size_t bytes = 0;
};

// Never deleted: arrays may be freed while the process ends.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

Header* take(std::size_t bytes) {
  Pool& p = pool();
  // Where another thread holds the lock (or held it when this process was forked), do without.
  const std::unique_lock lock(p.mutex, std::try_to_lock);
  if (!lock.owns_lock()) return nullptr;
  for (Header*& slot : p.free) {
    if (slot == nullptr || slot->bytes < bytes || slot->bytes / 2 > bytes) continue;
    Header* const found = slot;
    slot = nullptr;
    p.bytes -= found->bytes;
    return found;
  }
  return nullptr;
}

bool keep(Header* header) {
  Pool& p = pool();
  const std::unique_lock lock(p.mutex, std::try_to_lock);
  if (!lock.owns_lock() || p.bytes + header->bytes > kMostPooledBytes) return false;
  for (Header*& slot : p.free) {
    if (slot != nullptr) continue;
    slot = header;
    p.bytes += header->bytes;
    return true;
  }
  return false;
}

// Large buffers are mappings of their own: malloc would keep what is freed, scattered over the
// arenas of many threads, and a long run would slowly grow.
void* allocate(std::size_t bytes) {
  if (bytes < kLeastPooled) return std::aligned_alloc(kAlignment, bytes);
  void* const raw =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return raw == MAP_FAILED ? nullptr : raw;
}

void release(Header* header) noexcept {
  const std::size_t bytes = header->bytes + sizeof(Header);
  if (bytes < kLeastPooled) {
    std::free(header);
  } else {
    munmap(header, bytes);
  }
}

}  // namespace

void* pooled_allocate(std::size_t bytes) {
  Header* header = bytes >= kLeastPooled ? take(bytes) : nullptr;
  if (header == nullptr) {
    const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    void* const raw = rounded < bytes ? nullptr : allocate(sizeof(Header) + rounded);
    if (raw == nullptr) throw std::bad_alloc();
    header = new (raw) Header{rounded};
  }
  return header + 1;
}

void pooled_free(void* data) noexcept {
  if (data == nullptr) return;
  Header* const header = static_cast<Header*>(data) - 1;
  if (header->bytes < kLeastPooled || !keep(header)) release(header);
}

std::size_t pooled_bytes() noexcept {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  return p.bytes;
}

void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 1 << 27);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

}  // namespace widedeep
