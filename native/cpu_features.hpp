// Which instruction set the dispatched kernels run with, decided once a process.
#pragma once

namespace widedeep {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };

// The best set that this processor and operating system support.
Isa detect_isa() noexcept;

// The set in use: detect_isa(), or the one that the environment variable WIDEDEEP_ISA names
// (baseline, avx2, avx512). Throws std::runtime_error if that is unknown or not supported here.
Isa active_isa();

// Whether AVX-512 BF16 may be used: the processor has it and active_isa() is avx512.
bool has_avx512bf16();

const char* isa_name(Isa isa) noexcept;

}  // namespace widedeep
