#include "flush_to_zero.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace widedeep {
namespace {

#if defined(__x86_64__)
constexpr std::uint64_t kFlush = 0x8040;  // MXCSR: FTZ (bit 15) and DAZ (bit 6)
std::uint64_t read_mode() noexcept { return _mm_getcsr(); }
void write_mode(std::uint64_t mode) noexcept { _mm_setcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
constexpr std::uint64_t kFlush = std::uint64_t{1} << 24;  // FPCR: FZ
std::uint64_t read_mode() noexcept {
  std::uint64_t mode;
  __asm__ __volatile__("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void write_mode(std::uint64_t mode) noexcept { __asm__ __volatile__("msr fpcr, %0" : : "r"(mode)); }
#else
constexpr std::uint64_t kFlush = 0;
std::uint64_t read_mode() noexcept { return 0; }
void write_mode(std::uint64_t) noexcept {}
#endif

}  // namespace

ScopedFlushToZero::ScopedFlushToZero() noexcept : saved_(read_mode()) {
  write_mode(saved_ | kFlush);
}

ScopedFlushToZero::~ScopedFlushToZero() noexcept { write_mode(saved_); }

ScopedKeepDenormals::ScopedKeepDenormals() noexcept : saved_(read_mode()) {
  write_mode(saved_ & ~kFlush);
}

ScopedKeepDenormals::~ScopedKeepDenormals() noexcept { write_mode(saved_); }

}  // namespace widedeep
