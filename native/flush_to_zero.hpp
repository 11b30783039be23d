// Denormal numbers treated as zero: weights that L1 or decay drives to nothing must not slow the
// arithmetic a hundredfold.
#pragma once

#include <cstdint>

namespace widedeep {

// Sets flush-to-zero (and denormals-are-zero) for this thread, and puts the old mode back.
class ScopedFlushToZero {
 public:
  ScopedFlushToZero() noexcept;
  ~ScopedFlushToZero() noexcept;
  ScopedFlushToZero(const ScopedFlushToZero&) = delete;
  ScopedFlushToZero& operator=(const ScopedFlushToZero&) = delete;

 private:
  std::uint64_t saved_;
};

// The reverse: denormals count for what they are, in a thread that flushes them otherwise. For code
// that compares numbers (a bucket's edge at 0 lies above -1e-310) rather than multiplies them.
class ScopedKeepDenormals {
 public:
  ScopedKeepDenormals() noexcept;
  ~ScopedKeepDenormals() noexcept;
  ScopedKeepDenormals(const ScopedKeepDenormals&) = delete;
  ScopedKeepDenormals& operator=(const ScopedKeepDenormals&) = delete;

 private:
  std::uint64_t saved_;
};

}  // namespace widedeep
