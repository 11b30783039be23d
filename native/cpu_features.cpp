#include "cpu_features.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace widedeep {
namespace {

constexpr Isa kAll[] = {Isa::baseline, Isa::avx2, Isa::avx512};

Isa choose_isa() {
  const Isa best = detect_isa();
  const char* wanted = std::getenv("WIDEDEEP_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (const Isa isa : kAll) {
    if (std::string(wanted) != isa_name(isa)) continue;
    if (isa <= best) return isa;
    throw std::runtime_error(std::string("WIDEDEEP_ISA: got '") + wanted +
                             "', but this processor supports at most '" + isa_name(best) +
                             "'; unset it or choose that");
  }
  throw std::runtime_error(std::string("WIDEDEEP_ISA: got '") + wanted +
                           "', expected 'baseline', 'avx2' or 'avx512'; unset it to choose by "
                           "the processor");
}

}  // namespace

Isa detect_isa() noexcept {
#if defined(__x86_64__)
  // These ask the operating system too (it must save the wide registers).
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::baseline;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  return Isa::avx2;
#else
  return Isa::baseline;
#endif
}

Isa active_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

bool has_avx512bf16() {
#if defined(__x86_64__)
  return active_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16") &&
         __builtin_cpu_supports("avx512vbmi2");
#else
  return false;
#endif
}

const char* isa_name(Isa isa) noexcept {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    default:
      return "baseline";
  }
}

}  // namespace widedeep
