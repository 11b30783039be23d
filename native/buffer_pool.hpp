// Memory for large arrays that come and go with every chunk.
#pragma once

#include <cstddef>

namespace widedeep {

// Like malloc (64-byte aligned, not initialised; throws std::bad_alloc) and free, but a few large
// buffers are kept for the next call: the kernel would zero fresh pages each time, which costs more
// than filling them.
void* pooled_allocate(std::size_t bytes);
void pooled_free(void* data) noexcept;

// What is kept now, at most kMostPooledBytes.
constexpr std::size_t kMostPooledBytes = std::size_t{128} << 20;
std::size_t pooled_bytes() noexcept;

// Lets the C library keep what is freed, for torch's tensors too: a step's temporary ones, each of
// some megabytes, would be given back to the system and cleared by it again in every step.
void keep_freed_memory();

}  // namespace widedeep
