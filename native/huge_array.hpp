// A large array that is read here and there: on huge pages, where the system has them, a read costs
// one cache miss and not also a walk through page tables.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace widedeep {

template <class T>
class HugeArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  HugeArray() = default;
  HugeArray(std::size_t size, const T& value) : size_(size) {
    constexpr std::size_t kHugePage = std::size_t{2} << 20;
    const std::size_t bytes = size * sizeof(T);
    const std::size_t alignment = bytes >= kHugePage ? kHugePage : alignof(std::max_align_t);
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    data_.reset(static_cast<T*>(std::aligned_alloc(alignment, std::max(rounded, alignment))));
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    // Only advice: without huge pages all works as before.
    if (bytes >= kHugePage) madvise(data_.get(), rounded, MADV_HUGEPAGE);
#endif
    std::uninitialized_fill_n(data_.get(), size, value);
  }

  std::size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  const T* data() const noexcept { return data_.get(); }
  T& operator[](std::size_t i) noexcept { return data_.get()[i]; }
  const T& operator[](std::size_t i) const noexcept { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* data) const noexcept { std::free(data); }
  };
  std::size_t size_ = 0;
  std::unique_ptr<T, Free> data_;
};

}  // namespace widedeep
