// How a kernel is written once and run with the processor's best instruction set.
//
//   scale.hpp       namespace widedeep { WIDEDEEP_DECLARE_ISA(void scale(float* x, int64_t n, float
//   a)) } scale_isa.cpp   namespace widedeep::WIDEDEEP_ISA_NAMESPACE { void scale(...) { ... } }
//   scale.cpp       void scale(float* x, int64_t n, float a) { WIDEDEEP_DISPATCH(scale)(x, n, a); }
//
// A *_isa.cpp file is compiled once for each set, so it must not define a symbol outside its own
// namespace: include C headers only (<stdint.h>, <string.h>, <immintrin.h>), keep helpers in an
// anonymous namespace. `std::vector` there would give the linker an AVX-512 copy of its functions
// to use everywhere, and a processor without AVX-512 would then meet it.
#pragma once

#include "cpu_features.hpp"

#if defined(__x86_64__)
#define WIDEDEEP_DECLARE_ISA(...) \
  namespace baseline {            \
  __VA_ARGS__;                    \
  }                               \
  namespace avx2 {                \
  __VA_ARGS__;                    \
  }                               \
  namespace avx512 {              \
  __VA_ARGS__;                    \
  }
#define WIDEDEEP_DISPATCH(function)                                                    \
  (::widedeep::active_isa() == ::widedeep::Isa::avx512 ? &::widedeep::avx512::function \
   : ::widedeep::active_isa() == ::widedeep::Isa::avx2 ? &::widedeep::avx2::function   \
                                                       : &::widedeep::baseline::function)
#else
#define WIDEDEEP_DECLARE_ISA(...) \
  namespace baseline {            \
  __VA_ARGS__;                    \
  }
#define WIDEDEEP_DISPATCH(function) (&::widedeep::baseline::function)
#endif
